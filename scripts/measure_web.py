"""Time the page of `perfusion web` on the shipped world: a bias moved, until its coarse and its full picture stand.

python scripts/measure_web.py [moves] [concept file ...]     # writes results/web.json; without a file, concepts that are learned in a few steps

What a page's event does, without the server: it adds some hundredths to each (the browser test shows the whole way).
cpu_seconds are the server process's own and say what a quiet machine would need on one core; load says how busy this one was.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from perfusion.atomic import write_json
from perfusion.config import ROOT
from perfusion.learning.pictures import picture_paths
from perfusion.web.command import configuration
from perfusion.web.lesson import Lesson
from perfusion.web.library import Library
from perfusion.web.studio import COARSE, SHIFTS, Knob, Studio, Wish

QUICK = [
    "max_steps=2",
    "selection.every=null",
    "covariance.captions=1000",
]  # speed does not depend on what is learned


def main(moves: int = 12, *files: str) -> None:
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
    cfg, library = configuration(QUICK), Library(Path(tempfile.mkdtemp()))
    studio = Studio(cfg.model, library, "cpu")
    if not files:
        lesson = Lesson(Path(tempfile.mkdtemp()) / "lesson", picture_paths(ROOT / "data/concepts/teddy"))
        lesson.find_masks("teddy", cfg.model.segmenter)
        *_, last = lesson.learn(cfg, "teddy*", "teddy", 2)
        files = (str(last.file),)
    words = [library.add(file) for file in files]
    seconds: dict[str, list[tuple[float, float]]] = {"coarse": [], "full": [], "strip": []}

    def timed(name: str, work) -> None:
        clock = time.perf_counter(), time.process_time()
        work()
        seconds[name].append((time.perf_counter() - clock[0], time.process_time() - clock[1]))

    wish = lambda beta: Wish(
        f"a {' and a '.join(words)} on a beach", tuple(Knob(w, beta, 0.1) for w in words), None, 0, studio.sampling.steps, studio.sampling.guidance
    )  # fmt: skip
    studio.picture(wish(0.75), coarse=True)  # warms up, as the picture that is there before a slider moves
    for move in range(moves):
        now = wish(0.7 - 0.01 * move)
        timed("coarse", lambda: studio.picture(now, coarse=True))
        timed("full", lambda: studio.picture(now))
    for move in range(3):
        timed("strip", lambda: studio.strip(wish(0.5 + 0.01 * move)))
    result = {
        "what": f"perfusion web on {cfg.model.id}: a moved bias of {len(words)} concept(s), {COARSE} and {studio.sampling.steps} steps, a strip of "
        f"{len(SHIFTS)} pictures; medians of {moves} moves",
        **{f"{name}_{kind}": round(statistics.median(t[i] for t in times), 3) for name, times in seconds.items() for i, kind in enumerate(("seconds", "cpu_seconds"))},
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(x, 1) for x in os.getloadavg()],
        "torch": torch.__version__,
    }  # fmt: skip
    print(write_json("results/web.json", result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])

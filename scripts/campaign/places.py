"""Places and clocks that fail: python scripts/campaign/places.py --rounds 5

A full disk (a tmpfs of some kilobytes), a run folder that is read-only, a clock that goes back between and within jobs, two
runs in one folder. Each must end in one sentence or in the same result, with every file whole. Full and read-only disks are
mounted, which root alone may; elsewhere these two are counted as skipped.
"""

import itertools
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common import arguments, keep, small_world, workplace
from contents import damaged
from kills import COMMANDS, Undisturbed, place
from processes import Child, one_sentence, perfusion

GENERATE = (
    "generate", "concepts={teddy*: c.safetensors}", 'prompts=["a teddy* at night"]', "images=2", "model.steps=2", "hydra.run.dir=run",
)  # fmt: skip
RUNS = {name: COMMANDS[name] for name in ("train", "covariance", "evaluate", "collect")} | {"generate": GENERATE}


def main() -> None:
    asked, started = arguments(__doc__, rounds=5), time.perf_counter()
    random.seed(asked.seed)
    by_check: dict[str, list[str] | None] = {}
    with workplace() as folder:
        small_world(folder / "world")
        undisturbed = {name: Undisturbed(name, folder) for name in COMMANDS}
        for check in (full_disk, read_only, clock_back, two_runs):
            skipped = check in (full_disk, read_only) and os.geteuid() != 0
            problems = None if skipped else [p for _ in range(asked.rounds) for p in check(folder, undisturbed)]
            by_check[check.__name__] = problems
            print(check.__name__, "skipped" if skipped else problems or "well", flush=True)
    figures = {
        f"places_{name}": "skipped" if problems is None else len(problems) for name, problems in by_check.items()
    }
    figures |= {"places_rounds": asked.rounds, "places_problems": [p for v in by_check.values() for p in v or []][:20]}
    keep(asked.results, "places", figures, started)


@contextmanager
def disk(name: str, folder: Path, kib: int) -> Iterator[Path]:
    """A small disk with what a command begins with, and so many KiB free."""
    source, here = place("evaluate" if name == "generate" else name, folder, folder / "source"), folder / "disk"
    here.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib + used(source)}k", "tmpfs", here], check=True)
    try:
        shutil.copytree(source, here, dirs_exist_ok=True)
        os.environ["PERFUSION_CACHE"] = str(here / "cache")
        yield here
    finally:
        subprocess.run(["umount", here], check=True)


def used(folder: Path) -> int:
    """KiB that a folder's files take, in pages of 4."""
    return sum(4 + p.stat().st_size // 4096 * 4 for p in folder.rglob("*"))


def ended(what: str, command: Callable, here: Path, log: Path, allowed: tuple[int, ...]) -> list[str]:
    """Run a command; a line for each thing that is not well at its end."""
    code = Child(command, here, log).wait()
    problems = [f"{what}: {problem}" for problem in damaged(here)]
    if code not in allowed or (code and not one_sentence(log)):
        problems.append(f"{what} ended with {code}: {log.read_text(errors='replace')[-400:]}")
    return problems


def full_disk(folder: Path, undisturbed: dict[str, Undisturbed]) -> list[str]:
    """A disk that fills up anywhere between the first file and the last."""
    problems = []
    for name, command in RUNS.items():
        room = random.randint(4, 64 if name == "generate" else used(folder / "undisturbed" / name))
        with disk(name, folder, room) as here:
            problems += ended(f"{name} on a disk of {room} KiB", perfusion(*command), here, folder / "full.log", (0, 2))
    return problems


def read_only(folder: Path, undisturbed: dict[str, Undisturbed]) -> list[str]:
    problems = []
    for name, command in RUNS.items():
        with disk(name, folder, 65_536) as here:
            (here / "run").mkdir()
            subprocess.run(["mount", "-o", "remount,ro", here], check=True)
            problems += ended(
                f"{name} in a read-only folder", perfusion(*command), here, folder / "read_only.log", (2,)
            )
    return problems


def clock_back(folder: Path, undisturbed: dict[str, Undisturbed]) -> list[str]:
    """Each look at the clock says an earlier time than the one before; results are the undisturbed ones."""
    problems, step = [], random.choice([1, 60, 86_400])

    def backwards(command: Callable) -> Callable:
        def run():
            times = itertools.count(time.time(), -step)
            time.time = lambda: next(times)
            command()

        return run

    for name in ("train", "sweep"):
        here, what = place(name, folder, folder / "clock"), f"{name} with a clock that goes back"
        problems += ended(what, backwards(perfusion(*COMMANDS[name])), here, folder / "clock.log", (0,))
        problems += [f"{p} with a clock that goes back" for p in undisturbed[name].differing(here)]
    return problems


def two_runs(folder: Path, undisturbed: dict[str, Undisturbed]) -> list[str]:
    """The second one in the same folder is refused in a sentence, or comes after the first; never both at once."""
    problems = []
    for name in ("train", "covariance"):
        here = place(name, folder, folder / "two")
        first = Child(perfusion(*COMMANDS[name]), here, folder / "first.log")
        time.sleep(random.uniform(0, 0.5))
        second = Child(perfusion(*COMMANDS[name]), here, folder / "second.log")
        codes = second.wait(), first.wait()
        said = [(folder / f"{which}.log").read_text(errors="replace") for which in ("second", "first")]
        refused = [
            code == 2 and ("being written by another run" in text or "exists already" in text)
            for code, text in zip(codes, said)
        ]
        if sorted(codes) != [0, 2] or not any(refused) or any("Traceback" in text for text in said):
            problems.append(f"two of {name} ended with {codes}: {json.dumps([t[-300:] for t in said])}")
        problems += undisturbed[name].differing(here)
    here, logs = place("sweep", folder, folder / "two"), [folder / f"{i}.log" for i in range(2)]
    codes = [child.wait() for child in [Child(perfusion(*COMMANDS["sweep"]), here, log) for log in logs]]
    if codes != [0, 0]:
        problems.append(f"two sweeps ended with {codes}: {[log.read_text()[-300:] for log in logs]}")
    return problems + undisturbed["sweep"].differing(here)


if __name__ == "__main__":
    main()

"""Kill -9 at random moments, then the same command again: python scripts/campaign/kills.py --kills 200

Of train, a sweep, collect, covariance and evaluate side by side, on the tests' small world. Half of the kills come at a random
moment of the command's work, half at a random one of its changes to the file system (a file opened, renamed, ...), where there
is most to lose. After each kill every file must be whole; after the last of up to four in a row the same command runs to its
end, and all that it leaves must be what an undisturbed run leaves. A sweep's finished results must not even be written again.
`results_lost` counts what is not so. --each: how many of each command go side by side; --minutes: after which none begins.
"""

import json
import mmap
import os
import random
import shutil
import struct
import time
from functools import partial
from pathlib import Path

from common import arguments, keep, small_world, workplace
from contents import contents, damaged
from helpers_emojiland import QUICK, SCORE
from processes import Child, killed_at, perfusion, watched

from perfusion.atomic import write_text

STEPS = ("max_steps=4", "selection.every=2")
ONE = ("concept=cat", "evaluation.beta=[0.6,0.9]")
COMMANDS = {
    "train": ("train", *QUICK, *STEPS, "hydra.run.dir=run", "concept_file=out.safetensors"),
    "sweep": ("train", "-m", "+experiment=key_locking", *ONE, *QUICK, *SCORE, "evaluation.prompts=p.yaml"),
    "collect": ("collect", "experiment=key_locking", "draws=300", "hydra.run.dir=run"),
    "covariance": ("covariance", "count=800", "batch_size=8", "save_every=2", "output=C.safetensors", "hydra.run.dir=run"),
    "evaluate": ("evaluate", "concept=teddy", "concept_file=c.safetensors", "model.steps=2", *SCORE,
                 "evaluation.prompts=p.yaml", "hydra.run.dir=run"),
}  # fmt: skip
PROMPTS = 'dev: [{text: "a {}"}, {text: "a {} at night", place: night}]\n'


def main() -> None:
    asked, started = arguments(__doc__, kills=200, each=1, minutes=600), time.perf_counter()
    with workplace() as folder:
        small_world(folder / "world")
        undisturbed = [Undisturbed(name, folder) for name in COMMANDS] * asked.each
        until, children = started + 60 * asked.minutes, []
        for i, of in enumerate(undisturbed):
            most = (asked.kills + i) // len(undisturbed)
            work = partial(rounds, of, most, until, f"{asked.seed} {i}", folder / f"{i}-{of.name}")
            children.append(Child(work, folder, folder / f"{i}-{of.name}.log"))
        for child in children:
            assert child.wait() == 0, child.log.read_text()[-3000:]
        reports = [json.loads(child.log.with_suffix(".json").read_text()) for child in children]
    kills = {name: sum(one["kills"] for one in reports if one["command"] == name) for name in COMMANDS}
    lost = [problem for one in reports for problem in one["lost"]]
    figures = {"kills": sum(kills.values()), "kills_by_command": kills}
    figures |= {"kills_at_file_changes": sum(one["at_changes"] for one in reports)}
    keep(asked.results, "kills", figures | {"results_lost": len(lost), "lost": lost[:20]}, started)


def rounds(of: "Undisturbed", most: int, until: float, seed: str, here: Path) -> None:
    """Rounds of one command, until so many kills met it running, or that time; what is found goes to a file beside `here`."""
    random.seed(seed)
    kills, at_changes, lost = 0, 0, []
    while kills < most and time.perf_counter() < until:
        problems, moments = a_round(of, here, min(4, most - kills))
        lost, kills, at_changes = lost + problems, kills + len(moments), at_changes + moments.count("change")
        print(f"{kills} kills, {len(lost)} lost; {of.name} {moments}: {problems or 'whole'}", flush=True)
    report = {"command": of.name, "kills": kills, "at_changes": at_changes, "lost": lost}
    write_text(here.with_suffix(".json"), json.dumps(report))


class Undisturbed:
    """What a command leaves, its seconds of work and its changes to the file system; later ones stand on what earlier left."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder, here, log = name, folder, folder / "undisturbed" / name, folder / f"{name}.log"
        seen = mmap.mmap(-1, 8)  # shared with the child
        command = watched(perfusion(*COMMANDS[name]), lambda n: struct.pack_into("q", seen, 0, n))
        child = Child(command, place(name, folder, here), log)
        assert child.wait() == 0, log.read_text()[-3000:]
        self.contents, self.seconds, (self.changes,) = contents(here), child.seconds, struct.unpack("q", seen)
        print(f"{name}: {self.seconds:.1f} s, {self.changes} changes, {len(self.contents)} files", flush=True)

    def differing(self, here: Path) -> list[str]:
        """A line for each file in a folder that this command does not leave, or leaves with another content."""
        left = contents(here)
        differ = [p for p in sorted(self.contents | left) if self.contents.get(p) != left.get(p)]
        return [f"{self.name}: {p} is not as undisturbed" for p in differ]


def place(name: str, folder: Path, here: Path) -> Path:
    """A fresh folder with what a command begins with, and where its covariances are kept."""
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    os.environ["PERFUSION_CACHE"] = str(here / "cache")
    (here / "p.yaml").write_text(PROMPTS)
    if name == "collect":
        shutil.copytree(folder / "undisturbed/sweep/multirun", here / "multirun")
    if name == "evaluate":
        shutil.copy(folder / "undisturbed/train/out.safetensors", here / "c.safetensors")
    return here


def a_round(of: Undisturbed, here: Path, most: int) -> tuple[list[str], list[str]]:
    """Some kills in a row in one folder, then the command to its end: what was lost, and what each kill came at."""
    name, command = of.name, perfusion(*COMMANDS[of.name])
    place(name, of.folder, here)
    log, moments, problems = here.with_suffix(".out"), [], []
    for _ in range(random.randint(1, most)):
        if random.random() < 0.5:
            killed, moment = Child(command, here, log).kill(after=random.uniform(0, of.seconds)), "moment"
        else:
            dying, moment = killed_at(command, random.randint(1, of.changes)), "change"
            killed = Child(dying, here, log).wait() == -9
        moments += [moment] * killed
        problems += damaged(here)
    results = {p: p.stat().st_mtime_ns for p in here.glob("multirun/*/*/result.json")}
    code = Child(command, here, log).wait()
    said = log.read_text(errors="replace")
    done_before = name == "covariance" and "exists already" in said and "Traceback" not in said
    if code and not done_before:
        problems.append(f"{name}: the same command ended with {code}: {said[-300:]}")
    problems += [f"{p.relative_to(here)} was written again" for p, at in results.items() if p.stat().st_mtime_ns != at]
    return problems + of.differing(here), moments


if __name__ == "__main__":
    main()

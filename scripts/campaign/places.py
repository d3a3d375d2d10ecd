"""Places and clocks that fail: python scripts/campaign/places.py --rounds 5

A full disk (a tmpfs of some kilobytes), a run folder that is read-only, a clock that goes back between and within jobs, two
runs in one folder. Each must end in one sentence or in the same result, with every file whole. Full and read-only disks are
mounted, which root alone may; elsewhere these two are counted as skipped.
"""

import json
import shutil
import subprocess
import time
from pathlib import Path

from common import Child, arguments, content, files, keep, one_sentence, perfusion, rng, small_world, workplace
from kills import COMMANDS, damaged, place, references

RUNS = {name: COMMANDS[name] for name in ("train", "covariance", "evaluate", "collect")}
GENERATE = (
    "generate",
    "concepts={teddy*: c.safetensors}",
    'prompts=["a teddy* at night"]',
    "images=2",
    "model.steps=2",
    "hydra.run.dir=run",
)


def main() -> None:
    asked, started = arguments(__doc__, rounds=5), time.perf_counter()
    random, found = rng(asked.seed), {}
    with workplace() as folder:
        small_world(folder / "world")
        undisturbed = references(folder)
        for name, check in {"full_disk": full_disk, "read_only": read_only}.items():
            found[name] = [p for _ in range(asked.rounds) for p in check(folder, random)] if mounts(folder) else None
            print(name, found[name], flush=True)
        found["clock_back"] = [p for _ in range(asked.rounds) for p in clock_back(folder, random, undisturbed)]
        print("clock_back", found["clock_back"], flush=True)
        found["two_runs"] = [p for _ in range(asked.rounds) for p in two_runs(folder, random)]
        print("two_runs", found["two_runs"], flush=True)
    figures = {f"places_{name}": "skipped" if problems is None else len(problems) for name, problems in found.items()}
    figures["places_rounds"] = asked.rounds
    keep(
        asked.results,
        "places",
        figures | {"places_problems": [p for v in found.values() for p in v or []][:20]},
        started,
    )


def mounts(folder: Path) -> bool:
    """Whether a small disk can be mounted here."""
    (folder / "disk").mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder / "disk"], capture_output=True, check=False
    )
    if made.returncode == 0:
        subprocess.run(["umount", folder / "disk"], check=True)
    return made.returncode == 0


def ended_well(name: str, child: Child, here: Path, allowed: tuple[int, ...]) -> list[str]:
    code = child.wait()
    said = child.log.read_text(errors="replace")
    problems = damaged(here)
    if code not in allowed or (code and not one_sentence(child.log)):
        problems.append(f"{name} ended with {code}: {said[-400:]}")
    return problems


def overrides_of(name: str) -> tuple[str, ...]:
    return GENERATE if name == "generate" else RUNS[name]


def prepared(name: str, folder: Path, here: Path) -> Path:
    place("evaluate" if name == "generate" else name, folder, here)
    return here


def full_disk(folder: Path, random) -> list[str]:
    """A disk that fills up in the middle, at another size each time."""
    problems = []
    for name in (*RUNS, "generate"):
        here, size = folder / "disk", random.choice([4, 16, 40, 80, 160])
        source = prepared(name, folder, folder / "source")
        used = sum(p.stat().st_size // 4096 * 4 + 8 for p in source.rglob("*"))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={used + size}k", "tmpfs", here], check=True)
        try:
            shutil.copytree(source, here, dirs_exist_ok=True)
            child = Child(perfusion(*overrides_of(name)), here, folder / "full.log")
            problems += ended_well(f"{name} on a full disk of {used} + {size} KiB", child, here, (0, 2))
        finally:
            subprocess.run(["umount", here], check=True)
    return problems


def read_only(folder: Path, random) -> list[str]:
    problems = []
    for name in (*RUNS, "generate"):
        here, source = folder / "disk", prepared(name, folder, folder / "source")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", here], check=True)
        try:
            shutil.copytree(source, here, dirs_exist_ok=True)
            (here / "run").mkdir()
            subprocess.run(["mount", "-o", "remount,ro", here], check=True)
            child = Child(perfusion(*overrides_of(name)), here, folder / "ro.log")
            problems += ended_well(f"{name} in a read-only folder", child, here, (2,))
        finally:
            subprocess.run(["umount", here], check=True)
    return problems


def clock_back(folder: Path, random, undisturbed: dict) -> list[str]:
    """Each look at the clock says an earlier time than the one before; results are the undisturbed ones."""
    problems, step = [], random.choice([1, 60, 86_400])

    def backwards(overrides):
        def run():
            now = [time.time()]

            def earlier():
                now[0] -= step
                return now[0]

            time.time = earlier
            perfusion(*overrides)()

        return run

    for name in ("train", "sweep"):
        here = place(name, folder, folder / "clock")
        child = Child(backwards(COMMANDS[name]), here, folder / "clock.log")
        problems += ended_well(f"{name} with a clock that goes back", child, here, (0,))
        found = {str(p.relative_to(here)): content(p) for p in files(here)}
        expected = undisturbed[name][0]
        problems += [
            f"{name}: {p} differs with a clock that goes back" for p in expected if found.get(p) != expected[p]
        ]
    return problems


def two_runs(folder: Path, random) -> list[str]:
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
        problems += damaged(here)
    here = place("sweep", folder, folder / "two")
    children = [Child(perfusion(*COMMANDS["sweep"]), here, folder / f"{i}.log") for i in range(2)]
    codes = [child.wait() for child in children]
    if codes != [0, 0]:
        problems.append(
            f"two sweeps ended with {codes}: {[(folder / f'{i}.log').read_text()[-300:] for i in range(2)]}"
        )
    return problems + damaged(here)


if __name__ == "__main__":
    main()

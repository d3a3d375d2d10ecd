"""Kill -9 at random moments, then the same command again: python scripts/campaign/kills.py --kills 200

Of train, a sweep, collect, covariance and evaluate in turn, on the tests' small world. After each kill every file must be
whole; after the last of up to three in a row the same command runs to its end, and all that it leaves must be what an
undisturbed run leaves. A sweep's finished results must not even be written again. `results_lost` counts what is not so.
"""

import shutil
import time
from pathlib import Path

from common import Child, arguments, content, files, keep, perfusion, rng, small_world, workplace
from helpers_emojiland import QUICK, SCORE

STEPS = ("max_steps=4", "selection.every=2", "picture=false", "attention=false")
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
    asked, started = arguments(__doc__, kills=200), time.perf_counter()
    random, lost, kills, by_command = rng(asked.seed), [], 0, dict.fromkeys(COMMANDS, 0)
    with workplace() as folder:
        small_world(folder / "world")
        undisturbed = references(folder)
        while kills < asked.kills:
            name = min(by_command, key=by_command.get)
            before = by_command[name]
            problems, killed = a_round(name, folder, undisturbed, random, min(3, asked.kills - kills))
            lost += problems
            kills, by_command[name] = kills + killed, before + max(killed, 1)
            print(f"{kills} kills, {len(lost)} lost; {name}: {problems or 'whole'}", flush=True)
    figures = {"kills": kills, "results_lost": len(lost), "lost": lost[:20]}
    keep(asked.results, "kills", figures, started)


def references(folder: Path) -> dict[str, tuple[dict, float]]:
    """What each command leaves undisturbed, and how long it takes; the later ones stand on what the earlier left."""
    found = {}
    for name, overrides in COMMANDS.items():
        here = place(name, folder, folder / "undisturbed" / name)
        child = Child(perfusion(*overrides), here, folder / f"{name}.log")
        assert child.wait() == 0, (folder / f"{name}.log").read_text()[-3000:]
        found[name] = {str(p.relative_to(here)): content(p) for p in files(here)}, child.seconds
        print(f"{name}: {child.seconds:.1f} s undisturbed, {len(found[name][0])} files", flush=True)
    return found


def place(name: str, folder: Path, here: Path) -> Path:
    """A fresh folder with what a command begins with."""
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    (here / "p.yaml").write_text(PROMPTS)
    if name == "collect":
        shutil.copytree(folder / "undisturbed/sweep/multirun", here / "multirun")
    if name == "evaluate":
        shutil.copy(folder / "undisturbed/train/out.safetensors", here / "c.safetensors")
    return here


def a_round(name: str, folder: Path, undisturbed: dict, random, most: int) -> tuple[list[str], int]:
    """Some kills in a row in one folder, then the command to its end: what was lost, and the kills that met it running."""
    expected, seconds = undisturbed[name]
    here, log, killed, problems = place(name, folder, folder / "here"), folder / "here.log", 0, []
    for _ in range(random.randint(1, most)):
        killed += Child(perfusion(*COMMANDS[name]), here, log).kill(after=random.uniform(0, 1.02 * seconds))
        problems += damaged(here)
    results = {p: p.stat().st_mtime_ns for p in here.glob("multirun/*/*/result.json")}
    code = Child(perfusion(*COMMANDS[name]), here, log).wait()
    said = log.read_text(errors="replace")
    done_before = name == "covariance" and "exists already" in said and "Traceback" not in said
    if code and not done_before:
        problems.append(f"{name}: the same command ended with {code}: {said[-300:]}")
    problems += [
        f"{p} was written again" for p, at in results.items() if p.stat().st_mtime_ns != at and name != "train"
    ]
    found = {str(p.relative_to(here)): content(p) for p in files(here)}
    problems += [f"{name}: {p} is not as undisturbed" for p in expected | found if expected.get(p) != found.get(p)]
    return problems, killed


def damaged(here: Path) -> list[str]:
    problems = []
    for path in files(here):
        try:
            content(path)
        except Exception as error:
            problems.append(f"{path.name} is not whole after a kill: {type(error).__name__} {error}"[:200])
    return problems


if __name__ == "__main__":
    main()

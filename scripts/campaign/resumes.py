"""Trainings killed at a random step and resumed, bit for bit the uninterrupted ones: python scripts/campaign/resumes.py --resumes 30

Each is killed (-9) once its last.ckpt is of a random step, and goes on from there with resume=. Compared are the last
checkpoints (weights, optimiser, selection), the concept files and the selections' scores; settings change every few.
"""

import random
import time
from pathlib import Path

from common import arguments, keep, small_world, workplace
from contents import content
from helpers_emojiland import QUICK
from processes import Child, perfusion

STEPS = 8


def main() -> None:
    asked, started = arguments(__doc__, resumes=30), time.perf_counter()
    random.seed(asked.seed)
    mismatches, done = [], 0
    with workplace() as folder:
        small_world(folder / "world")
        while done < asked.resumes:
            settings = drawn()
            whole = folder / f"{done}-whole"
            child = run(whole, *settings)
            assert child.wait() == 0, child.log.read_text()[-3000:]
            for _ in range(min(3, asked.resumes - done)):
                half, rest = folder / f"{done}-half", folder / f"{done}-rest"
                step = killed_at(run(half, *settings), half / "last.ckpt", random.randint(1, STEPS - 2))
                child = run(rest, *settings, f"resume={half / 'last.ckpt'}")
                code = child.wait()
                differ = [f"exit code {code}: {child.log.read_text()[-300:]}"] if code else compared(whole, rest)
                mismatches += [f"{settings} from step {step}: {what}" for what in differ]
                done += 1
                print(f"{done}: step {step} of {STEPS}, {differ or 'equal'}", flush=True)
    keep(
        asked.results,
        "resumes",
        {"resumes": done, "resume_mismatches": len(mismatches), "mismatches": mismatches[:20]},
        started,
    )


def drawn() -> list[str]:
    return [
        f"seed={random.randrange(1000)}", f"batch_size={random.choice([1, 2, 3])}", f"lock={random.choice(['local', 'trained'])}",
        f"trainer.accumulate_grad_batches={random.choice([1, 2])}", f"i_star_gradient={random.choice(['true', 'false'])}",
        f"masked_prior={random.choice(['true', 'false'])}", f"beta={random.choice([0.6, 0.75])}",
    ]  # fmt: skip


def run(folder: Path, *settings: str) -> Child:
    folder.mkdir()
    short = (f"max_steps={STEPS}", "selection.every=1", f"hydra.run.dir={folder}")
    return Child(perfusion("train", *QUICK, *short, *settings), folder, folder / "out.log")


def killed_at(child: Child, checkpoint: Path, step: int) -> int:
    """Kill a training once its checkpoint is of a step; returns the step of the checkpoint that is left."""
    from perfusion.learning.resume import read as read_checkpoint

    until = time.monotonic() + 600
    while time.monotonic() < until:
        if checkpoint.exists() and read_checkpoint(checkpoint)["global_step"] >= step:
            child.kill()
            return read_checkpoint(checkpoint)["global_step"]
        time.sleep(0.01)
    raise TimeoutError(child.log.read_text()[-3000:])


def compared(whole: Path, rest: Path) -> list[str]:
    """Which of a run's outcomes are another's, byte for byte and number for number."""
    differ = [name for name in ("last.ckpt", "concept.safetensors") if content(whole / name) != content(rest / name)]
    one, two = (content(folder / "result.json") for folder in (whole, rest))  # without its clock
    return differ + [k for k in ("selection", "kept_step") if one[k] != two[k]]


if __name__ == "__main__":
    main()

"""Values that fit no key, and extremes that do: python scripts/campaign/inputs.py --inputs 3000 --runs 300

tests/helpers_inputs.py draws a command, one of its keys and a value. Each of --inputs must be refused by the check in one
sentence that names the key, or pass it; of those that pass, --runs are given to the command itself on the tests' small world,
which must end with exit code 0, or 2 and one sentence. `tracebacks` counts any other end; `input_examples` lists some.
"""

import time
from pathlib import Path

from common import arguments, keep, small_world, workplace
from helpers_emojiland import QUICK
from helpers_inputs import BESIDE, bad_inputs, short, written
from processes import Child, one_sentence, perfusion

SIDE_BY_SIDE = 4


def main() -> None:
    asked, started = arguments(__doc__, inputs=3000, runs=300), time.perf_counter()
    passed: list[tuple] = []
    counts = bad_inputs(asked.inputs, asked.seed, lambda *one: passed.append(one) if short(*one) else None)
    examples, ends = counts.pop("tracebacks"), {"runs": 0, "runs_finished": 0, "runs_refused": 0}
    print(counts, flush=True)
    with workplace() as folder:
        small_world(folder / "assets")
        beside = BESIDE | {"train": [*QUICK, *BESIDE["train"]]}
        teddy, log = folder / "teddy.safetensors", folder / "log"
        learned = Child(perfusion("train", *beside["train"], "hydra.run.dir=.", f"concept_file={teddy}"), folder, log)
        assert learned.wait() == 0, log.read_text()[-3000:]
        for first in range(0, min(asked.runs, len(passed)), SIDE_BY_SIDE):
            some = passed[first : min(first + SIDE_BY_SIDE, asked.runs)]
            children = [begun(folder / str(first + i), teddy, beside, *one) for i, one in enumerate(some)]
            for (command, key, value), child in zip(some, children):
                code, said = child.wait(), child.log.read_text(errors="replace")
                ends["runs"] += 1
                ends["runs_finished"] += code == 0
                ends["runs_refused"] += code == 2
                if not (code == 0 and "Traceback" not in said or code == 2 and one_sentence(child.log)):
                    examples.append(f"perfusion {command} ++{key}={written(value):.200}: exit {code}: {said[-600:]}")
                    print(examples[-1], flush=True)
    figures = counts | {"tracebacks": len(examples)} | ends | {"input_examples": examples[:20]}
    keep(asked.results, "inputs", figures, started)


def begun(home: Path, concept: Path, beside: dict[str, list[str]], command: str, key: str, value) -> Child:
    """A command with one drawn value, in a folder of its own that holds a concept file."""
    home.mkdir()
    (home / concept.name).hardlink_to(concept)
    given = perfusion(command, *beside[command], "hydra.run.dir=run", f"++{key}={written(value)}")
    return Child(given, home, home / "log")


if __name__ == "__main__":
    main()

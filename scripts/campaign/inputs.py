"""Values that fit no key, and extremes that do: python scripts/campaign/inputs.py --inputs 3000 --runs 300 --extras 200

tests/helpers_inputs.py draws a command, one of its keys and a value. Each of --inputs must be refused by the check in one
sentence that names the key, or pass it; of those that pass, --runs are given to the command itself on the tests' small world,
which must end with exit code 0, or 2 and one sentence. So must --extras more, each with a key of Lightning's trainer or
logger, or of Hydra's own. `tracebacks` counts any other end, one that takes minutes too; `input_examples` lists some.
"""

import time
from pathlib import Path

from common import arguments, keep, small_world, workplace
from helpers_emojiland import DRAWN, QUICK
from helpers_inputs import BESIDE, bad_inputs, extras, on_the_line, short
from processes import Child, one_sentence, perfusion

SIDE_BY_SIDE = 4
MINUTES = 10  # of the clock, after which a command hangs


def main() -> None:
    asked, started = arguments(__doc__, inputs=3000, runs=300, extras=200), time.perf_counter()
    passed: dict[str, list[tuple]] = {"runs": [], "extras": []}
    keep_short = lambda name: lambda *one: passed[name].append(one) if short(*one) else None
    counts = bad_inputs(asked.inputs, asked.seed, keep_short("runs"))
    more = bad_inputs(4 * asked.extras, asked.seed, keep_short("extras"), drawn_by=extras)
    examples, ends = counts.pop("tracebacks") + more["tracebacks"], {}
    print(counts, more, flush=True)
    with workplace() as folder:
        small_world(folder / "assets")
        beside = BESIDE | {"train": [*QUICK, *DRAWN, *BESIDE["train"]]}
        teddy, log = folder / "teddy.safetensors", folder / "log"
        learned = Child(perfusion("train", *beside["train"], "hydra.run.dir=.", f"concept_file={teddy}"), folder, log)
        assert learned.wait() == 0, log.read_text()[-3000:]
        for name, limit in {"runs": asked.runs, "extras": asked.extras}.items():
            ends |= {name: 0, f"{name}_finished": 0, f"{name}_refused": 0}
            for first in range(0, min(limit, len(passed[name])), SIDE_BY_SIDE):
                some = passed[name][first : min(first + SIDE_BY_SIDE, limit)]
                children = [begun(folder / f"{name}{first + i}", teddy, beside, *one) for i, one in enumerate(some)]
                for (command, key, value), child in zip(some, children):
                    code, said = child.wait(MINUTES * 60), child.log.read_text(errors="replace")
                    ends[name] += 1
                    ends[f"{name}_finished"] += code == 0
                    ends[f"{name}_refused"] += code == 2
                    if not (code == 0 and "Traceback" not in said or code == 2 and one_sentence(child.log)):
                        line = " ".join(on_the_line(command, key, value))
                        examples.append(f"perfusion {command} {line:.200}: exit {code}: {said[-600:]}")
                        print(examples[-1], flush=True)
    figures = counts | {"tracebacks": len(examples)} | ends | {"input_examples": examples[:20]}
    keep(asked.results, "inputs", figures, started)


def begun(home: Path, concept: Path, beside: dict[str, list[str]], command: str, key: str, value) -> Child:
    """A command with one drawn value, in a folder of its own that holds a concept file."""
    home.mkdir()
    (home / concept.name).hardlink_to(concept)
    given = perfusion(command, *beside[command], "hydra.run.dir=run", *on_the_line(command, key, value))
    return Child(given, home, home / "log")


if __name__ == "__main__":
    main()

"""Damaged files of every kind that is read: python scripts/campaign/fuzz.py --files 10000

Concept, covariance, checkpoint, result, mask and YAML files, and the checkpoints that `perfusion import` reads, with bits
flipped, cut, lengthened, swapped headers, huge sizes, foreign tensors and NaN. Each must be refused in one sentence
(UserError) or say exactly what the whole file says. `silent_loads` counts those that say something else, `tracebacks` any
other error, `over_memory` those that took more than twice the file (and 16 MiB, which is the allocator's grain).
"""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

from common import arguments, keep, workplace
from damage import mutated
from kinds import KINDS
from processes import Child, preload

GRAIN = 2**24


def main() -> None:
    asked, started = arguments(__doc__, files=10_000, kinds=",".join(KINDS)), time.perf_counter()
    figures: Counter = Counter()
    examples: list[str] = []
    preload()
    with workplace() as folder:
        kinds = asked.kinds.split(",")
        for i, kind in enumerate(kinds):
            count = (asked.files * (i + 1)) // len(kinds) - (asked.files * i) // len(kinds)
            child = Child(lambda: batch(kind, folder / kind, count, asked.seed), folder, folder / f"{kind}.log")
            assert child.wait() == 0, (folder / f"{kind}.log").read_text()[-3000:]
            counts = json.loads((folder / kind / "counts.json").read_text())
            examples += counts.pop("examples")
            figures.update(counts)
            print(f"{kind}: {counts}, {child.seconds:.0f} s", flush=True)
    counted = {
        k: figures[k] for k in ("fuzzed_files", "refused", "unchanged", "silent_loads", "tracebacks", "over_memory")
    }
    keep(asked.results, "fuzz", counted | {"fuzzed_kinds": kinds, "fuzz_examples": examples[:20]}, started)


def batch(kind: str, folder: Path, count: int, seed: int) -> None:
    """`count` damaged files of one kind, read one after the other; counts go to counts.json."""
    from perfusion.errors import UserError

    make, read, name = KINDS[kind]
    random.seed(seed)
    folder.mkdir()
    whole, other = make(folder, 0), make(folder, 1)
    path = folder / name
    path.write_bytes(whole)
    signal.signal(signal.SIGALRM, slow)
    expected = read(path)
    assert expected == read(path), f"{kind}: the whole file does not say the same twice"
    counts, examples = Counter(fuzzed_files=count), []
    for i in range(count):
        how, damaged = mutated(kind, whole, other)
        path.write_bytes(damaged)
        before = memory(reset=True)
        try:
            signal.alarm(20)  # seconds: some small files describe what no one waits for
            outcome = "unchanged" if read(path) == expected else "silent_loads"
            if damaged == other and outcome == "silent_loads":
                outcome = "unchanged"  # another whole file
        except UserError:
            outcome = "refused"
        except BaseException as error:
            outcome = "tracebacks"
            examples.append(f"{kind} {how}: {type(error).__name__} {error}"[:200])
        signal.alarm(0)
        counts[outcome] += 1
        if memory() - before > 2 * len(damaged) + GRAIN:
            counts["over_memory"] += 1
            examples.append(f"{kind} {how}: {(memory() - before) >> 20} MiB for {len(damaged)} bytes")
        if outcome == "silent_loads":
            examples.append(f"{kind} {how}: loads and says something else")
            (folder.parent / f"silent-{kind}-{i}").write_bytes(damaged)
    (folder / "counts.json").write_text(json.dumps(counts | {"examples": examples[:5]}))


def slow(*_):
    raise TimeoutError("20 s were not enough")


def memory(reset: bool = False) -> int:
    """This process's peak of resident memory in bytes since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    main()

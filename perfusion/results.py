"""Result files: JSON of one format version, written whole or not at all, and read back strictly."""

import csv
import hashlib
import io
import json
import os
import platform
import resource
import shutil
import subprocess
from contextlib import AbstractContextManager, suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np

from perfusion.atomic import write_text
from perfusion.errors import UserError, loading

FORMAT = 2  # 1 had no sum


def write_result(path: str | Path, result: dict) -> None:
    """One line a key, so that thousands of rows stay small and a diff stays readable."""
    result = json.loads(
        json.dumps({"format": FORMAT} | {k: v for k, v in result.items() if k != "format"})
    )  # as it is read back
    lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in (result | {"sum": _sum(result)}).items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _sum(result: dict) -> str:
    """A digest of all the rest, so that no number changes unseen."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:16]


def read_result(path: str | Path) -> dict:
    """A result.json of this program. Raises UserError for one that is damaged or of another format version."""
    try:
        result = json.loads(Path(path).read_text())
        edition = result["format"]
        expected = result.pop("sum", None if edition == 1 else "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a result of an evaluation; remove its folder and run the job again.") from error
    if edition not in (1, FORMAT):
        raise UserError(
            f"{path} has result format {edition}, this program reads 1 and {FORMAT}; remove its folder and run the job again, "
            "or use the program that wrote it."
        )
    if expected not in (None, _sum(result)):
        raise UserError(
            f"{path} is not as it was written: it is damaged or was edited; remove its folder and run the job again, or make "
            'it "format": 1 without its "sum" to have it read as it is.'
        )
    return result


def undamaged(path: str | Path) -> AbstractContextManager[None]:
    """A with-block that reads `path`, or what came of it. Raises UserError where that is not what this program writes."""
    return loading(f"{path} is damaged or was edited", "remove its folder and run the job again, or restore the file")


def write_csv(path: str | Path, columns: dict[str, list]) -> None:
    """Columns of equal length; empty cells for None."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_text(path, out.getvalue())


def size_of(joined: dict) -> str:
    """How many concepts and training seeds an experiment's joined result is over, in words."""
    concepts, seeds = len(joined["concepts"]), len(joined["seeds"])
    return f"{concepts} concept{'s' * (concepts > 1)} x {seeds} seed{'s' * (seeds > 1)}"


def mean(values: list) -> float | None:
    """Mean over what is not None, rounded; None where there is nothing."""
    known = [v for v in values if v is not None]
    return round(float(np.mean(known)), 6) if known else None


def forget_peak() -> None:
    """From here on `peak_mib` is about what comes, as far as the system can forget (Linux, CUDA)."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> int:
    """The most memory so far: of the GPU, if there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // 2**20
    with suppress(OSError):
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def surroundings() -> dict:
    """What a number was made with: versions, commit, machine."""
    root, commit = Path(__file__).parents[1], None
    if shutil.which("git") and (root / ".git").exists():  # not another repository's, around an installed package
        command = ["git", "-C", root, "describe", "--always", "--dirty"]
        commit = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip() or None
    return {
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "open_clip_torch")},
        "python": platform.python_version(),
        "commit": commit,
        "cores": os.cpu_count(),
    }

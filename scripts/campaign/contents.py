"""What the files say that a command leaves, without clocks and places, so that two runs can be compared."""

import csv
import hashlib
import json
from pathlib import Path

VOLATILE = {
    "seconds", "train_seconds", "job_seconds", "median_seconds", "peak_mib", "surroundings", "commits", "sum", "folder",
}  # fmt: skip
LOGS = {"metrics.csv", "hparams.yaml", "multirun.yaml"}  # Lightning's, line by line, and Hydra's of where it ran


def files(folder: Path) -> list[Path]:
    """What a command leaves for people: no logs, no locks, nothing that it calls unfinished (.part)."""
    return [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".hydra" not in p.parts and not p.name.startswith(".") and ".part" not in str(p)
        and p.suffix not in (".log", ".lock", ".pdf") and p.name not in LOGS
    ]  # fmt: skip


def contents(folder: Path) -> dict[str, object]:
    """{path within the folder: what the file says}. Raises where one is not whole."""
    return {str(p.relative_to(folder)): content(p) for p in files(folder)}


def damaged(folder: Path) -> list[str]:
    """A line for each file that is not whole."""
    problems = []
    for path in files(folder):
        try:
            content(path)
        except Exception as error:
            problems.append(f"{path.name} is not whole: {type(error).__name__} {error}"[:200])
    return problems


def content(path: Path):
    """What a file says. Raises where it is not whole."""
    from PIL import Image
    from safetensors import safe_open

    from perfusion.learning.resume import read as read_checkpoint

    kind = path.suffix
    if kind == ".json":
        return _plain(json.loads(path.read_text()))
    if kind in (".safetensors", ".state"):
        with safe_open(path, framework="np") as file:
            return {"metadata": _plain(file.metadata())} | {k: digest(file.get_tensor(k)) for k in file.keys()}  # noqa: SIM118
    if kind == ".ckpt":
        return tensors(read_checkpoint(path))
    if kind in (".png", ".jpg"):
        with Image.open(path) as picture:
            return digest(picture.convert("RGBA"))
    if kind == ".csv":
        text = path.read_text()
        assert text.endswith("\n"), f"{path} is cut"
        return list(csv.reader(text.splitlines()))
    return path.read_text()


def digest(array) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in VOLATILE}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def tensors(value):
    """A checkpoint with every tensor as its digest."""
    import torch

    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), digest(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    if isinstance(value, dict):
        kept = {str(k): v for k, v in value.items() if "path" not in str(k) and "dir" not in str(k)}
        return {k: tensors(v) for k, v in kept.items() if k not in VOLATILE}
    return [tensors(v) for v in value] if isinstance(value, (list, tuple)) else value

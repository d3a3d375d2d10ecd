"""A training's checkpoints: written whole or not at all, and read with every byte checked, as tensors alone.

Lightning writes to the system's temporary folder and moves the file from there: onto another disk that is a copy, which a
kill cuts in two; and torch.load does not look at the sums of what it reads.
"""

import zipfile
from pathlib import Path

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from perfusion.atomic import whole
from perfusion.errors import UserError


class Checkpoints(TorchCheckpointIO):
    """For pl.Trainer(plugins=[...])."""

    def save_checkpoint(self, checkpoint: dict, path: str, storage_options=None) -> None:
        with whole(path) as part:
            torch.save(checkpoint, part)

    def load_checkpoint(self, path: str, map_location=None, weights_only: bool | None = None) -> dict:
        return read_checkpoint(path)


def read_checkpoint(path: str | Path) -> dict:
    """What a checkpoint holds, on the CPU. Raises UserError for a file that is damaged, or holds more than tensors."""
    try:
        found = tensors(path)
        parts = {"state_dict": dict, "global_step": int, "loops": dict, "callbacks": dict}
        if not (isinstance(found, dict) and all(isinstance(found.get(k), kind) for k, kind in parts.items())):
            raise ValueError("it is no training's")
        if not all(isinstance(t, torch.Tensor) and t.isfinite().all() for t in found["state_dict"].values()):
            raise ValueError("not all of its numbers are finite")
        return found
    except Exception as error:  # on bytes that are no checkpoint the readers raise what they happen to meet
        raise UserError(
            f"resume={path} is not a whole checkpoint ({' '.join(str(error).split())[:100]}); give the last.ckpt of a run of "
            "perfusion train, or null to start anew."
        ) from error


def tensors(path: str | Path):
    """torch.load of a file as tensors alone, with every byte checked. Raises any error on bytes that are damaged."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"its part {damaged} is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)

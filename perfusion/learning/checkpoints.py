"""A training's checkpoints: written whole or not at all, and read with every byte checked, as tensors alone.

Lightning writes to the system's temporary folder and moves the file from there: onto another disk that is a copy, which a
kill cuts in two; and torch.load does not look at the sums of what it reads.
"""

import zipfile
from pathlib import Path

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from perfusion.atomic import whole


class Checkpoints(TorchCheckpointIO):
    """For pl.Trainer(plugins=[...]). What is read here was checked by resume.read before."""

    def save_checkpoint(self, checkpoint: dict, path, storage_options=None) -> None:
        with whole(path) as part:
            torch.save(checkpoint, part)

    def load_checkpoint(self, path, map_location=None, weights_only: bool | None = None) -> dict:
        return tensors(path)


def tensors(path: str | Path):
    """torch.load of a file as tensors alone, with every byte checked. Raises any error on bytes that are damaged."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"its part {damaged} is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)

"""A training's checkpoints: written whole or not at all, and read with every byte checked, as tensors alone.

Lightning writes to the system's temporary folder and moves the file from there: onto another disk that is a copy, which a
kill cuts in two; and torch.load does not look at the sums of what it reads.
"""

import shutil
import tempfile
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
    """torch.load of a file as tensors alone, with every byte checked. Raises any error on bytes that are damaged.

    It takes the file's size of memory, as much again of the temporary folder while it reads.
    """
    if not zipfile.is_zipfile(path):
        return torch.load(path, map_location="cpu", weights_only=True)
    # What was checked is put into a zip file anew: torch's own reader goes by marks that no sum covers.
    with tempfile.TemporaryFile() as sound:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(sound, "w") as clean:
            parts = archive.infolist()
            if sum(part.file_size for part in parts) > Path(path).stat().st_size:
                raise ValueError("its parts are larger than the file")
            for part in parts:
                if part.compress_type != zipfile.ZIP_STORED:  # of any size, once unpacked
                    raise ValueError(f"its part {part.filename} is compressed, which torch does not do")
                with archive.open(part) as checked, clean.open(part.filename, "w", force_zip64=True) as copy:
                    shutil.copyfileobj(checked, copy, 2**20)
        sound.seek(0)
        return torch.load(sound, map_location="cpu", weights_only=True)

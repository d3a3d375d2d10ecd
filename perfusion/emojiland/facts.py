"""What evaluation asks of Emojiland's pictures beside likeness: conf/evaluation names `FactReader`."""

from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from perfusion.emojiland.pretraining import pixels
from perfusion.emojiland.reader import Reader, read
from perfusion.emojiland.scenes import SIDE, Facts
from perfusion.emojiland.vocabulary import ACCESSORIES, ARTS, CLASSES, COLORS, PLACES
from perfusion.errors import UserError

READ = ("object", "place", "color", "accessory", "second", "art")


class FactReader:
    """Checks pictures of a concept, a drawing of `word` by `artist` (None where that is not known), against their prompts' facts.

    FACTS: {fact: words} that a prompt may name.
    """

    FACTS: ClassVar = {"place": PLACES, "color": COLORS, "accessory": ACCESSORIES, "second": CLASSES, "art": ARTS}

    def __init__(self, folder: str | Path, word: str, artist: str | None):
        self.reader, self.word, self.artist = Reader.load(Path(folder)), word, artist

    @staticmethod
    def check(folder: str | Path, resolution: int) -> None:
        """Raises UserError where the reader is not there or damaged, or reads no pictures of so many pixels."""
        if resolution != SIDE:
            raise UserError(
                f"evaluation.reader={folder} reads pictures of {SIDE} pixels, the model draws {resolution}; "
                "set evaluation.reader=null."
            )
        for file in ("config.json", "reader.safetensors"):
            if not (Path(folder) / file).exists():
                raise UserError(
                    f"evaluation.reader={folder} has no {file}; set evaluation.reader=null, or make Emojiland's "
                    "models with `make emojiland`."
                )
        Reader.load(Path(folder))

    def read(self, pictures: list[Image.Image], asked: list[dict[str, str]]) -> list[dict[str, bool | None]]:
        """Whether the object, each asked fact and the drawing are read right, a dict a picture; None where not asked."""
        facts = [Facts(self.word, self.artist, **named) for named in asked]
        readings = read(self.reader, pixels(np.stack([np.asarray(p) for p in pictures])), facts)
        rows = []
        for reading, named in zip(readings, asked):
            row = {f"read_{name}": getattr(reading, name) if name in ("object", *named) else None for name in READ}
            rows.append(row | {"drawing": reading.drawing})
        return rows

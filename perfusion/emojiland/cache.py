"""Scenes drawn once, on disk, for every pretraining script: images, masks, captions and facts by index."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from perfusion.config import home
from perfusion.emojiland.scenes import SIDE, Facts, drawing_of, scene

CHUNK = 1000  # scenes one worker draws at a time
DRAWN = 32  # pixels a side of the drawings that looks are told from
PARTS = {"images": (SIDE, SIDE, 3), "masks": (2, SIDE, SIDE), "drawings": (3, DRAWN, DRAWN, 4)}


def world() -> str:
    """Eight hex digits of what scenes look like, and of what is kept of them: scenes of another edition are never taken."""
    drawn = [scene(0, index, held_out=True) for index in range(16)]
    shown = b"".join(s.image.tobytes() + s.caption.encode() for s in drawn)
    return hashlib.sha256(shown + json.dumps(PARTS).encode()).hexdigest()[:8]


def _chunk(seed: int, start: int, count: int, how: tuple):
    parts, facts = {name: [] for name in PARTS}, []
    for index in range(start, start + count):
        drawn = scene(seed, index, *how)
        parts["images"].append(np.asarray(drawn.image))
        parts["masks"].append(np.stack([np.asarray(drawn.mask), np.asarray(drawn.second)]))
        parts["drawings"].append(np.stack([square(one) for one in _drawings(drawn.facts)]))
        facts.append({"caption": drawn.caption, **asdict(drawn.facts)})
    return {name: np.stack(part) for name, part in parts.items()}, facts


def _drawings(facts: Facts) -> Iterator[Image.Image]:
    own, parts = (facts.object, facts.artist), (facts.trim, facts.details)
    yield drawing_of(*own, (facts.color, *parts), facts.mutant)
    yield drawing_of(*own, (None, *parts), facts.mutant)
    if facts.second:
        yield drawing_of(facts.second, facts.second_artist, seed=facts.second_mutant)
    else:
        yield Image.new("RGBA", (1, 1))


def square(drawing: Image.Image) -> np.ndarray:
    """A drawing as names are told of it: uint8 [DRAWN, DRAWN, 4], premultiplied RGBA, in the middle."""
    padded = Image.new("RGBA", (max(drawing.size),) * 2)
    padded.paste(drawing, ((padded.width - drawing.width) // 2, (padded.width - drawing.height) // 2))
    return np.asarray(padded.convert("RGBa").resize((DRAWN, DRAWN), Image.Resampling.BOX))


class SceneCache:
    """`count` scenes of the stream `seed`, drawn on first use and memory-mapped afterwards.

    `images` uint8 [count, SIDE, SIDE, 3]; `masks` uint8 [count, 2, SIDE, SIDE] of the main and of the second object;
    `drawings` uint8 [count, 3, DRAWN, DRAWN, 4], premultiplied RGBA: the main object as it is drawn, without its body's colour, and the second
    one; `captions` list of str; `facts` list of Facts.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        held_out: bool,
        folder: Path | None = None,
        mutants: float = 0.0,
        strangers: float = 0.0,
    ):
        shares = [f"{mutants:g}", f"{strangers:g}"] if strangers else [f"{mutants:g}"] if mutants else []
        of = "-".join([world(), str(count), str(seed), "all" if held_out else "train", *shares])
        self.folder = folder or home() / f"emojiland/scenes-{of}"
        if not (self.folder / "records.json").exists():
            self._draw(count, seed, (held_out, mutants, strangers))
        self.images, self.masks, self.drawings = (np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in PARTS)
        records = json.loads((self.folder / "records.json").read_text())
        self.captions = [r.pop("caption") for r in records]
        self.facts = [Facts(**r) for r in records]

    def __len__(self) -> int:
        return len(self.captions)

    def _draw(self, count: int, seed: int, how: tuple) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        files = {
            name: np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", np.uint8, (count, *shape))
            for name, shape in PARTS.items()
        }
        records, starts = [], range(0, count, CHUNK)
        with ProcessPoolExecutor() as pool:
            jobs = [pool.submit(_chunk, seed, start, min(CHUNK, count - start), how) for start in starts]
            for start, job in zip(starts, tqdm(jobs, desc=f"drawing {count} scenes", unit="k")):
                parts, facts = job.result()
                for name, part in parts.items():
                    files[name][start : start + CHUNK] = part
                records += facts
        for file in files.values():
            file.flush()
        unfinished = self.folder / "records.tmp"
        unfinished.write_text(json.dumps(records))
        unfinished.rename(self.folder / "records.json")  # last: its presence says that all is there

"""Scenes drawn once, on disk, for every pretraining script: images, masks, captions and facts by index."""

import hashlib
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from perfusion.config import home
from perfusion.emojiland.scenes import SIDE, Facts, drawing_of, scene

CHUNK = 1000  # scenes one worker draws at a time
DRAWN = 32  # pixels a side of the drawings that looks are told from


def world() -> str:
    """Eight hex digits of what is kept of scenes, so that those of another edition of the world are never taken."""
    drawn = [scene(0, index, held_out=True) for index in range(16)]
    kept = [s.image.tobytes() + s.caption.encode() + _drawings(s.facts).tobytes() for s in drawn]
    return hashlib.sha256(b"".join(kept)).hexdigest()[:8]


def _chunk(seed: int, start: int, count: int, held_out: bool, mutants: float):
    images, masks, drawings, facts = [], [], [], []
    for index in range(start, start + count):
        drawn = scene(seed, index, held_out, mutants)
        images.append(np.asarray(drawn.image))
        masks.append(np.asarray(drawn.mask))
        drawings.append(_drawings(drawn.facts))
        facts.append({"caption": drawn.caption, **asdict(drawn.facts)})
    return np.stack(images), np.stack(masks), np.stack(drawings), facts


def _drawings(facts: Facts) -> np.ndarray:
    whole = _square(drawing_of(facts))
    return np.stack([whole, _square(drawing_of(replace(facts, color=None))) if facts.color else whole])


def _square(drawing: Image.Image) -> np.ndarray:
    square = Image.new("RGBA", (max(drawing.size),) * 2)
    square.paste(drawing, ((square.width - drawing.width) // 2, (square.width - drawing.height) // 2))
    return np.asarray(square.convert("RGBa").resize((DRAWN, DRAWN), Image.Resampling.BOX))


class SceneCache:
    """`count` scenes of the stream `seed`, drawn on first use and memory-mapped afterwards.

    `images` uint8 [count, SIDE, SIDE, 3], `masks` uint8 [count, SIDE, SIDE], `captions` list of str, `facts` list of Facts;
    `drawings` uint8 [count, 2, DRAWN, DRAWN, 4], premultiplied RGBA: the main object as it is drawn, and without its body's colour.
    """

    def __init__(self, count: int, seed: int, held_out: bool, folder: Path | None = None, mutants: float = 0.0):
        of = f"{world()}-{count}-{seed}-{'all' if held_out else 'train'}{f'-{mutants:g}' if mutants else ''}"
        self.folder = folder or home() / f"emojiland/scenes-{of}"
        if not (self.folder / "records.json").exists():
            self._draw(count, seed, held_out, mutants)
        self.images = np.load(self.folder / "images.npy", mmap_mode="r")
        self.masks = np.load(self.folder / "masks.npy", mmap_mode="r")
        self.drawings = np.load(self.folder / "drawings.npy", mmap_mode="r")
        records = json.loads((self.folder / "records.json").read_text())
        self.captions = [r.pop("caption") for r in records]
        self.facts = [Facts(**r) for r in records]

    def __len__(self) -> int:
        return len(self.captions)

    def _draw(self, count: int, seed: int, held_out: bool, mutants: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        shape = (count, SIDE, SIDE)
        images = np.lib.format.open_memmap(self.folder / "images.npy", "w+", np.uint8, (*shape, 3))
        masks = np.lib.format.open_memmap(self.folder / "masks.npy", "w+", np.uint8, shape)
        drawings = np.lib.format.open_memmap(self.folder / "drawings.npy", "w+", np.uint8, (count, 2, DRAWN, DRAWN, 4))
        records, starts = [], range(0, count, CHUNK)
        with ProcessPoolExecutor() as pool:
            jobs = [pool.submit(_chunk, seed, start, min(CHUNK, count - start), held_out, mutants) for start in starts]
            for start, job in zip(starts, tqdm(jobs, desc=f"drawing {count} scenes", unit="k")):
                of = slice(start, start + CHUNK)
                images[of], masks[of], drawings[of], facts = job.result()
                records += facts
        images.flush(), masks.flush(), drawings.flush()
        unfinished = self.folder / "records.tmp"
        unfinished.write_text(json.dumps(records))
        unfinished.rename(self.folder / "records.json")  # last: its presence says that all is there

"""Pictures with their masks in a folder of their own, and what is learned from them, step by step."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from perfusion.atomic import whole
from perfusion.errors import UserError
from perfusion.learning.masks import alpha_mask, mask_path, overlay, read_mask, save_mask, segment, source_of
from perfusion.learning.pictures import on_white, read_picture
from perfusion.learning.selection import Selection
from perfusion.learning.train import train

MOST = 7
LARGEST = 40_000_000  # pixels of an uploaded picture
SIDE = 1536  # pixels of the longer side that are kept


@dataclass
class Progress:
    """What is known of a training at a step. scores: of selection steps {step, image, text, score}; drawn: the last one's."""

    step: int = 0
    of: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    scores: list[dict] = field(default_factory=list)
    drawn: list[tuple[str, Image.Image]] = field(default_factory=list)
    file: Path | None = None  # the concept, at the end


class Lesson:
    """1-7 pictures, copied to `folder` as 1.png, 2.png, ...: the names of uploads become no paths here.

    Raises UserError for too many, for one that is too large, or one that cannot be read.
    """

    def __init__(self, folder: Path, uploads: list[str | Path]):
        if not 1 <= len(uploads) <= MOST:
            raise UserError(f"there are {len(uploads)} pictures; give 1 to {MOST} of the concept.")
        self.folder, self.word, self.mended = folder, None, set()
        self.stop = threading.Event()
        pictures = [_opened(Path(path)) for path in uploads]
        folder.mkdir(parents=True)
        self.paths = [folder / f"{n}.png" for n in range(1, len(pictures) + 1)]
        for path, picture in zip(self.paths, pictures):
            picture.save(path)

    # -- masks --------------------------------------------------------------------------------------------------------
    def find_masks(self, word: str, segmenter: str) -> None:
        """Masks beside the pictures: those mended stay, else a picture's alpha channel, else zero-shot by the word."""
        pictures = [read_picture(path)[0] for path in self.paths]
        done = lambda n: (
            n in self.mended or alpha_mask(pictures[n]) or (self.word == word and mask_path(self.paths[n]).exists())
        )
        todo = [n for n in range(len(self.paths)) if not done(n)]
        whites = [on_white(pictures[n]) for n in todo]
        for n, white, mask in zip(todo, whites, segment(whites, [word] * len(todo), segmenter) if todo else []):
            save_mask(self.paths[n], mask, source_of(white, word))
        self.word = word

    def picture_and_mask(self, n: int) -> tuple[Image.Image, Image.Image]:
        picture, size = read_picture(self.paths[n])
        white = on_white(picture)
        mask = read_mask(self.paths[n], {size, picture.size}, source_of(white, self.word or "")) or alpha_mask(picture)
        return white, (mask or Image.new("L", white.size, 255)).resize(white.size)

    def overlays(self) -> list[Image.Image]:
        """The pictures, what their masks leave out faded: what the loss will see."""
        return [overlay(*self.picture_and_mask(n)) for n in range(len(self.paths))]

    def mend(self, n: int, mask: Image.Image) -> None:
        """Take a painted mask for the picture. Raises UserError for one that holds nothing."""
        if not np.asarray(mask).any():
            raise UserError(
                f"the mask of picture {n + 1} is empty, so nothing would be learned from it; paint the object."
            )
        # Without the note of a mask that was made: it stays whatever the word.
        with whole(mask_path(self.paths[n])) as part:
            mask.resize(read_picture(self.paths[n])[0].size, Image.Resampling.BILINEAR).save(part, "PNG")
        self.mended.add(n)

    # -- learning -----------------------------------------------------------------------------------------------------
    def learn(self, cfg: DictConfig, name: str, word: str, steps: int) -> Iterator[Progress]:
        """Learn `name`, a `word`, in at most so many steps; yields after every few, the last time with the file.

        `stop.set()` ends it early with the best concept so far, as does leaving the iterator. Raises what training raises.
        """
        mine = {
            "concept": {"images": str(self.folder), "name": name, "super_category": word}, "max_steps": steps,
            "picture": False, "attention": False, "concept_file": None, "resume": None,
        }  # fmt: skip
        cfg = OmegaConf.merge(cfg, mine)
        OmegaConf.update(cfg, "trainer.enable_progress_bar", False, force_add=True)
        self.stop.clear()
        news: queue.Queue = queue.Queue()
        run = self.folder / f"run-{1 + sum(1 for _ in self.folder.glob('run-*'))}"
        run.mkdir()

        def work():
            try:
                train(cfg, run, [Watch(news, self.stop)])
                news.put(run / "concept.safetensors")
            except BaseException as error:  # what the iterator's user is to see, whatever it is
                news.put(error)

        threading.Thread(target=work, daemon=True).start()
        progress = Progress(of=steps)
        try:
            while True:
                one = news.get()
                if isinstance(one, BaseException):
                    raise one
                if isinstance(one, Path):
                    progress.file = one
                    yield progress
                    return
                progress.step, loss, progress.scores, drawn = one
                if loss is not None:
                    progress.losses.append((progress.step, loss))
                progress.drawn = drawn or progress.drawn
                if news.empty():  # else the newer news is said with it
                    yield progress
        finally:
            self.stop.set()


class Watch(pl.Callback):
    """Tells of every step, and stops the training when asked to; Selection then keeps the best so far, in any case one."""

    def __init__(self, news: queue.Queue, stop: threading.Event):
        self.news, self.stop, self.told = news, stop, 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self._tell(trainer, float(outputs["loss"] if isinstance(outputs, dict) else outputs))
        if self.stop.is_set():
            trainer.should_stop = True

    def on_train_end(self, trainer, module) -> None:
        self._tell(trainer, None)  # the last selection

    def _tell(self, trainer, loss: float | None) -> None:
        selection = next(c for c in trainer.callbacks if isinstance(c, Selection))
        new = len(selection.history) > self.told
        self.told = len(selection.history)
        self.news.put((trainer.global_step, loss, list(selection.history), list(selection.drawn) if new else []))


def _opened(path: Path) -> Image.Image:
    """The picture, upright, in RGB or RGBA, no larger than SIDE. Raises UserError."""
    try:
        with Image.open(path) as header:
            size = header.size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"picture {path.name} cannot be read; give a whole PNG, JPEG or WebP file.") from error
    if size[0] * size[1] > LARGEST:
        raise UserError(
            f"picture {path.name} has {size[0]} x {size[1]} pixels; at most {LARGEST // 10**6} million are allowed."
        )
    picture, _ = read_picture(path)
    picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture

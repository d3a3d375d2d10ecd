"""The tab to teach: pictures, their masks, a word, and a concept that comes out of them while one looks on."""

import re
import secrets
import shutil
import tempfile
from pathlib import Path

import gradio as gr
import numpy as np
from omegaconf import DictConfig
from PIL import Image

from perfusion.config import ROOT
from perfusion.errors import UserError
from perfusion.learning.pictures import picture_paths
from perfusion.method.text import add_placeholders, near_words, single_token
from perfusion.web.chart import Point, Series, chart
from perfusion.web.kindly import kindly
from perfusion.web.lesson import MOST, Lesson, Progress
from perfusion.web.studio import Studio
from perfusion.web.words import bold

PAINT = (255, 0, 200)
VEIL = 150  # how opaque a full mask is painted, of 255
CANVAS = 512  # pixels of the longer side that is painted on
MOST_STEPS = 5000


class Teach:
    """Builds the tab within a gr.Blocks. cfg: of conf/train.yaml; folder: where lessons are kept."""

    def __init__(self, studio: Studio, cfg: DictConfig, folder: Path):
        self.studio, self.cfg, self.folder = studio, cfg, folder
        self.lesson = gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                self._pictures()
            with gr.Column(scale=1, min_width=320):
                self._learning()
        self._events()

    def _pictures(self) -> None:
        gr.Markdown(f"### 1. Pictures\n1 to {MOST}, of one thing in different places.")
        kinds = {"file_count": "multiple", "file_types": [".png", ".jpg", ".jpeg", ".webp"]}
        self.uploads = gr.File(label="Drop pictures here", elem_id="uploads", **kinds)
        self.example = gr.Dropdown(examples(), value=None, label="or take pictures that are here", elem_id="example")
        gr.Markdown("### 2. What kind of thing is it?")
        self.kind = gr.Textbox(
            label="Super-category",
            placeholder="teddy",
            info="one word that the model knows",
            elem_id="kind",
            max_length=40,
        )
        self.near = gr.Radio([], label="Words that are one token, the nearest first", elem_id="near")
        self.show = gr.Button("Show the masks", elem_id="show")
        self.masks = gr.Gallery(
            label="Masks: what is faded does not count. Choose one to mend it.", columns=4, height="auto", format="png",
            allow_preview=False, elem_classes="pixels", elem_id="masks", buttons=[], visible=False,
        )  # fmt: skip
        self.at = gr.State(None)  # the number of the picture that is being painted
        self.canvas = gr.ImageEditor(
            label="Paint what counts", type="pil", format="png", sources=(), transforms=(), layers=False,
            brush=gr.Brush(colors=[f"rgba{(*PAINT, VEIL / 255)}"], default_size=24, color_mode="fixed"),
            eraser=gr.Eraser(default_size=24), visible=False, elem_id="canvas", height=560, canvas_size=(CANVAS, CANVAS),
        )  # fmt: skip
        self.mend = gr.Button("Take this mask", visible=False, elem_id="mend")

    def _learning(self) -> None:
        gr.Markdown("### 3. Learn")
        self.name = gr.Textbox(
            label="Its word in prompts", placeholder="teddy*", info="a new word", elem_id="name", max_length=40
        )
        self.steps = gr.Number(
            self.cfg.max_steps, label="Steps at most", precision=0, minimum=1, maximum=MOST_STEPS, elem_id="max_steps"
        )
        with gr.Row():
            self.go = gr.Button("Learn", variant="primary", elem_id="learn")
            self.cancel = gr.Button("Stop, keep the best", variant="stop", interactive=False, elem_id="cancel")
        self.said = gr.Markdown(elem_id="said")
        self.curve = gr.HTML(elem_id="curve")
        self.scores = gr.HTML(elem_id="scores")
        self.drawn = gr.Gallery(
            label="What it draws now", columns=4, height="auto", format="png", allow_preview=False, elem_classes="pixels",
            elem_id="drawn", buttons=[], visible=False,
        )  # fmt: skip
        self.file = gr.File(label="The concept", interactive=False, visible=False, elem_id="file")
        self.learned = gr.State(None)  # its word, for the other tabs

    def _events(self) -> None:
        private = {"api_visibility": "private"}
        quick = private | {"queue": False, "show_progress": "hidden"}
        self.kind.change(kindly(self.nearest), self.kind, [self.near, self.name], **quick)
        self.near.input(lambda w: (w, f"{w}*"), self.near, [self.kind, self.name], **quick)
        self.example.input(
            kindly(self.take_example), self.example, [self.uploads, self.kind, self.near, self.name], **quick
        )
        begin = [self.uploads, self.kind, self.lesson]
        shown = [self.lesson, self.masks]
        self.show.click(kindly(self.show_masks), begin, shown, concurrency_id="learn", **private)
        painting = [self.lesson, self.at, self.canvas]
        painted = [self.masks, self.at, self.canvas, self.mend]
        self.masks.select(kindly(self.paint), painting, painted, **private)
        self.mend.click(kindly(self.take_mask), painting, painted, **private)
        said = [self.said, self.curve, self.scores, self.drawn]
        seen = [self.lesson, *painted, *said, self.file, self.learned, self.cancel]
        inputs = [*begin, self.at, self.canvas, self.name, self.steps]
        self.done = self.go.click(
            kindly(self.learn), inputs, seen, concurrency_id="learn", show_progress="minimal", show_progress_on=self.said,
            api_name="lesson", **private,  # not /learn, which is for programs
        )  # fmt: skip
        self.cancel.click(kindly(self.stop), self.lesson, self.said, **quick)

    # -- what happens -------------------------------------------------------------------------------------------------
    def nearest(self, text: str):
        near = near_words(self.studio.tokenizer, text.strip(), 8) if text.strip() else []
        return gr.update(choices=near, value=text if text in near else None), f"{near[0]}*" if near else gr.skip()

    def take_example(self, name: str | None):
        if not name:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        folder = ROOT / "data/concepts" / examples_checked(name)
        copies = Path(tempfile.mkdtemp())
        paths = [str(shutil.copy(p, copies)) for p in picture_paths(folder)]
        return paths, name, *self.nearest(name)

    def opened(self, uploads, word: str, lesson: Lesson | None) -> Lesson:
        """The visitor's lesson with these pictures and masks for the word. Raises UserError."""
        word = (word or "").strip().lower()
        if not word:
            raise UserError("no super-category is given; write what kind of thing it is, such as teddy.")
        single_token(self.studio.tokenizer, word)
        uploads = [str(u) for u in uploads or []]
        if lesson is None or lesson.uploads != uploads:
            lesson = Lesson(self.folder / secrets.token_hex(8), uploads)
            lesson.uploads = uploads
        if self.cfg.masks:
            lesson.find_masks(word, self.cfg.model.segmenter)
        return lesson

    def show_masks(self, uploads, word: str, lesson: Lesson | None):
        lesson = self.opened(uploads, word, lesson)
        return lesson, gr.update(value=lesson.overlays(), visible=True)

    def paint(self, lesson: Lesson | None, at: int | None, painted: dict | None, event: gr.SelectData):
        if lesson is None:
            return [gr.skip()] * 4
        masks = gr.skip()
        if at is not None:
            lesson.mend(at, mask_of(painted))
            masks = lesson.overlays()
        picture, mask = lesson.picture_and_mask(event.index)
        scale = CANVAS / max(picture.size)
        size = tuple(round(scale * s) for s in picture.size)
        picture, mask = picture.resize(size, Image.Resampling.NEAREST), mask.resize(size, Image.Resampling.BILINEAR)
        layer = Image.new("RGBA", size, (*PAINT, 0))
        layer.putalpha(mask.point(lambda m: round(m * VEIL / 255)))
        value = {"background": picture.convert("RGBA"), "layers": [layer], "composite": None}
        return masks, event.index, gr.update(value=value, visible=True), gr.update(visible=True)

    def take_mask(self, lesson: Lesson, at: int, painted: dict | None):
        lesson.mend(at, mask_of(painted))
        return lesson.overlays(), *self.put_away()

    def put_away(self):
        return None, gr.update(visible=False), gr.update(visible=False)

    def learn(self, uploads, word: str, lesson: Lesson | None, at: int | None, painted, name: str, steps: float):
        before, lesson = lesson, self.opened(uploads, word, lesson)
        if at is not None and lesson is before:  # strokes count, whether or not they were taken before
            lesson.mend(at, mask_of(painted))
        name = (name or "").strip() or f"{lesson.word}*"
        add_placeholders(self.studio.tokenizer, [name])
        if not 1 <= (steps or 0) <= MOST_STEPS:
            raise UserError(f"steps={steps or 'nothing'} does not work; allowed is 1 to {MOST_STEPS}.")
        nothing = [gr.update(value=None)] * 3
        yield (
            lesson,
            gr.update(value=lesson.overlays(), visible=True),
            *self.put_away(),
            f"Preparing to learn {name}: the model is loaded; the first time its covariance is measured, too, which takes minutes.",
            *nothing,
            gr.update(value=None, visible=False),
            None,
            gr.update(interactive=True),
        )
        for progress in lesson.learn(self.cfg, name, word.strip().lower(), int(steps)):
            if progress.file:
                break
            yield *[gr.skip()] * 5, *self.seen(name, progress), *[gr.skip()] * 3
        kept = self.studio.library.add(progress.file)
        concept = self.studio.library[kept]
        said = f"{bold(kept)} is learned (step {concept.steps} of {progress.step} kept) and is in Play now."
        file = gr.update(value=handed_out(self.studio.library.file(kept)), visible=True)
        yield *[gr.skip()] * 5, said, *self.seen(name, progress)[1:], file, kept, gr.update(interactive=False)

    def seen(self, name: str, progress: Progress):
        losses = [Point(step, loss, "") for step, loss in smooth(progress.losses)]
        curve = chart([Series("loss", losses)], "step", "masked denoising error, mean of ten steps", dots=False)
        scored = [s for s in progress.scores if "text" in s]
        by = [
            Series(k, [Point(s["step"], s[k], f"step {s['step']}: {k} {s[k]:.3f}") for s in scored])
            for k in ("image", "text", "score")
        ]
        drawn = gr.update(value=[(picture, prompt) for prompt, picture in progress.drawn], visible=bool(progress.drawn))
        return (
            f"Learning {bold(name)}: step {progress.step} of {progress.of}",
            curve,
            chart(by, "step", "selection: raw CLIP cosines"),
            drawn,
        )

    def stop(self, lesson: Lesson | None):
        if lesson is None:
            return gr.skip()
        lesson.stop.set()
        return "Stopping; what is best so far is kept."


def examples() -> list[str]:
    """The concepts whose pictures come with the program."""
    folder = ROOT / "data/concepts"
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def examples_checked(name: str) -> str:
    if name not in examples():
        raise UserError(f"{name} is not one of the pictures here; there are: {', '.join(examples())}.")
    return name


def mask_of(painted: dict | None) -> Image.Image:
    """The mask (mode L) that layers of paint are: soft where an old mask was, full where the brush went."""
    layers = (painted or {}).get("layers") or []
    if not layers:
        raise UserError("nothing is painted; paint the object, or leave the mask as it is.")
    alpha = np.max([np.asarray(layer.convert("RGBA").getchannel("A")) for layer in layers], 0).astype(float)
    return Image.fromarray(np.clip(alpha * 255 / VEIL, 0, 255).round().astype(np.uint8))


def smooth(losses: list[tuple[int, float]], over: int = 10) -> list[tuple[int, float]]:
    """Running mean; a single step's loss is mostly its noise."""
    values = [loss for _, loss in losses]
    return [(step, float(np.mean(values[max(0, i - over + 1) : i + 1]))) for i, (step, _) in enumerate(losses)]


def handed_out(path: Path) -> str:
    """A copy where Gradio may serve files from."""
    return str(shutil.copy(path, Path(tempfile.mkdtemp()) / re.sub(r"[^\w.-]", "", path.name)))

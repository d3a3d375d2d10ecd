"""One pipeline that draws for everyone on the page: concepts put on as asked for, pictures kept, stale ones broken off."""

import threading
from collections import OrderedDict
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

from omegaconf import DictConfig
from PIL import Image

from perfusion.errors import UserError
from perfusion.learning.models import check_device, load_pipeline
from perfusion.method.attention import Looked, look, word_positions
from perfusion.method.denoiser import denoiser_of
from perfusion.method.fingerprint import hash_of
from perfusion.method.pipeline import load_concepts
from perfusion.method.sampling import Sampling, draw
from perfusion.method.text import add_placeholders, twin_prompts
from perfusion.method.text_encoders import text_encoder_of
from perfusion.web.keeping import keep_encodings, keep_keys_and_values
from perfusion.web.library import Library

COARSE = 3  # steps of the picture that comes first
SHIFTS = (-0.3, -0.15, 0.0, 0.15, 0.3)  # of every bias in the strip
KEPT = 256  # pictures kept
MOST_STEPS, MOST_GUIDANCE, MOST_LETTERS = 100, 30.0, 1000


@dataclass(frozen=True)
class Knob:
    """A concept in play, and its gate."""

    word: str
    beta: float
    tau: float


@dataclass(frozen=True)
class Wish:
    """All that a picture follows from; equal wishes give the same picture. lock: None (the concepts' own) or "global"."""

    prompt: str
    knobs: tuple[Knob, ...]
    lock: str | None
    seed: int
    steps: int
    guidance: float

    def check(self) -> None:
        """Raises UserError for what no slider gives (the page's functions can be called by programs, too)."""
        if not self.prompt.strip() or len(self.prompt) > MOST_LETTERS:
            raise UserError(
                f"the prompt has {len(self.prompt)} letters; write 1 to {MOST_LETTERS}, such as: a photo of a teddy*."
            )
        for name, value, low, high in (
            ("seed", self.seed, 0, 2**32 - 1), ("steps", self.steps, 1, MOST_STEPS), ("guidance", self.guidance, 1, MOST_GUIDANCE),
        ):  # fmt: skip
            if not low <= value <= high:
                raise UserError(f"{name}={value} does not work; allowed is {low} to {high}.")


def few(wish: Wish) -> Wish:
    """The wish of the coarse picture that comes first."""
    return replace(wish, steps=min(wish.steps, COARSE))


@dataclass
class Drawing:
    """What is under way, and for whom."""

    wish: Wish
    visitor: str | None
    stale: bool = False


class Broken(Exception):
    """A drawing was broken off, as its wish is stale."""


class Studio:
    """Draws one wish at a time. model: a configuration of conf/model; library: where the wishes' words come from.

    visitor: whose drawing it is; a picture that is kept is everyone's.

    Raises UserError, before any weights load, where the device or the model is not to be had.
    """

    def __init__(self, model: DictConfig, library: Library, device: str | None = None):
        device = check_device(device)
        self.model, self.library, self.pipe = model, library, load_pipeline(model, device)
        self.sampling = Sampling.of(model)
        self.tokenizer, self._encoder = self.pipe.tokenizer, text_encoder_of(self.pipe)  # before any concept is put on
        self.limit = getattr(self._encoder, "limit", self.tokenizer.model_max_length)  # tokens of a prompt
        self.encodings = keep_encodings(self.pipe)
        keep_keys_and_values(denoiser_of(self.pipe))
        denoiser_of(self.pipe).register_forward_pre_hook(self._check_wanted)
        library.open(self.tokenizer, model.id, hash_of(self.pipe))
        self._one_at_a_time = threading.Lock()
        self._handle, self._drawing, self._pictures = None, None, OrderedDict()

    # -- pictures -----------------------------------------------------------------------------------------------------
    def picture(self, wish: Wish, coarse: bool = False, visitor: str | None = None) -> Image.Image:
        """The wish's picture; coarse: the same after COARSE steps. Raises Broken where it was broken off, and UserError."""
        wish = few(wish) if coarse else wish
        return self._kept(wish, "picture", lambda: self._draw(wish, [wish.prompt], visitor)[0])

    def base(self, wish: Wish, visitor: str | None = None) -> tuple[str, Image.Image]:
        """The prompt with the super-categories' words, and what the base model draws of it from the same noise."""
        supers = {k.word: self.library[k.word].super_category for k in wish.knobs}
        prompt = twin_prompts([wish.prompt], supers)[0]
        plain = replace(wish, prompt=prompt, knobs=(), lock=None)
        # Not taken off for it: a prompt that holds no concept's word draws what the base model draws, to the last bit.
        return prompt, self._kept(
            plain, "picture", lambda: self._draw(replace(wish, prompt=prompt, lock=None), [prompt], visitor)[0]
        )

    def strip(self, wish: Wish, visitor: str | None = None) -> list[tuple[float, Image.Image]]:
        """Five pictures, every concept's bias shifted, the middle one being the wish's own: in one batch where the model's
        draw_batch allows it."""
        betas = [{k.word: round(k.beta + shift, 4) for k in wish.knobs} for shift in SHIFTS]

        def work():
            parts = [betas[i : i + self.sampling.batch] for i in range(0, len(betas), self.sampling.batch)]
            return [p for part in parts for p in self._draw(wish, [wish.prompt] * len(part), visitor, beta=part)]

        return list(zip(SHIFTS, self._kept(wish, "strip", work)))

    def looked(self, wish: Wish, visitor: str | None = None) -> Looked:
        """The wish's picture, and where each word of it is looked at."""

        def work():
            with self._at_work(wish, visitor):
                return look(self.pipe, [wish.prompt], [wish.seed], self._sampling(wish))[0]

        return self._kept(wish, "looked", work)

    def words(self, prompt: str, concepts: list[str]) -> tuple[list[str], int]:
        """The words whose maps `looked` will have, and how many tokens the prompt has."""
        tokenizer, _ = add_placeholders(self.tokenizer, concepts)
        return list(word_positions(tokenizer, prompt, self._encoder)), len(tokenizer(prompt, verbose=False).input_ids)

    def break_off(self, wish: Wish, visitor: str | None = None) -> None:
        """Let this visitor's drawing of this wish, if it is under way, end after its present step."""
        drawing = self._drawing  # another may be under way a moment later
        if drawing and drawing.visitor == visitor and drawing.wish in (wish, few(wish)):
            drawing.stale = True

    def _check_wanted(self, *call) -> None:
        """Before every call of the denoiser: not every pipeline can be interrupted (PixArt's cannot)."""
        if self._drawing and self._drawing.stale:
            raise Broken

    # -- the pipeline -------------------------------------------------------------------------------------------------
    def _kept(self, wish: Wish, kind: str, make):
        """`make()`, or what it gave for an equal wish; one at a time."""
        wish.check()
        with self._one_at_a_time:
            key = (wish, kind)
            if key not in self._pictures:
                self._pictures[key] = make()
                while len(self._pictures) > KEPT:
                    self._pictures.popitem(last=False)
            self._pictures.move_to_end(key)
            return self._pictures[key]

    def _draw(self, wish: Wish, prompts: list[str], visitor: str | None, **gate) -> list[Image.Image]:
        with self._at_work(wish, visitor, **gate):
            return draw(self.pipe, prompts, [wish.seed] * len(prompts), self._sampling(wish))

    def _sampling(self, wish: Wish) -> Sampling:
        return replace(self.sampling, steps=wish.steps, guidance=wish.guidance)

    @contextmanager
    def _at_work(self, wish: Wish, visitor: str | None, **gate):
        """The wish's concepts are on, with their gates, for a with-block."""
        self._put_on([k.word for k in wish.knobs])
        settings = {
            "beta": {k.word: k.beta for k in wish.knobs}, "tau": {k.word: k.tau for k in wish.knobs}, "lock": wish.lock,
        }  # fmt: skip
        self._drawing = Drawing(wish, visitor)
        try:
            with self._handle.gate(**(settings | gate)) if self._handle else nullcontext():
                yield
        finally:
            self._drawing = None

    def _put_on(self, words: list[str]) -> None:
        """Exactly these concepts are on the pipeline; nothing is done where they are already."""
        if set(self._handle.concepts if self._handle else ()) == set(words):
            return
        if self._handle:
            self._handle.unload()
            self._handle = None
        self.encodings.clear()  # the words' tokens and embeddings are others
        if words:
            self._handle = load_concepts(self.pipe, {word: self.library[word] for word in words})

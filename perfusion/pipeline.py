"""Concepts on a stock diffusers Stable Diffusion pipeline.

    handle = load_concepts(pipe, {"teddy*": "teddy.safetensors"})
    pipe("a teddy* on a beach")                      # as ever: batches, negative prompts, callbacks, any scheduler
    with handle.gate(beta=[.6, .7, .8]):             # or one for all, {"teddy*": .6}, or one per image
        pipe(["a teddy* on a beach"] * 3)
    handle.unload()                                  # the base model again, to the last bit

Only `encode_prompt` of this one pipeline object is overridden: its encodings come out with the gates' columns beside
them (edit.augment), and the denoiser's widened to_k / to_v read those.
"""

import os
import warnings
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from perfusion.concept import Concept, base_hash
from perfusion.edit import augment, overlap
from perfusion.errors import UserError
from perfusion.projections import lock_o_star_k, widen
from perfusion.text import PlaceholderRows, add_placeholders, has_token, super_encoding, tokenize, twin_prompts

PARTS = ("tokenizer", "text_encoder", "unet", "encode_prompt")


def load_concepts(
    pipe, concepts: dict[str, str | os.PathLike | Concept], always_on: bool = False, global_edit: bool = False
) -> "LoadedConcepts":
    """Teach a stock pipeline some concepts: {trigger word: file or Concept}. The word may differ from the file's own.

    always_on: a concept acts on every prompt, negative ones too. By default it acts on the prompts that hold its
    word, so that any other prompt draws exactly what the base model draws. global_edit: under the global lock, the
    keys' encodings still pass the gated edit (method.md 3); plain by default.

    Raises UserError, before anything is changed, for a bad file, another base model, or a word that is taken.
    """
    missing = [part for part in PARTS if getattr(pipe, part, None) is None]
    if missing or getattr(pipe, "tokenizer_2", None) is not None:
        raise UserError(
            f"pipeline {type(pipe).__name__} lacks {missing} or has several text encoders; allowed are "
            "Stable Diffusion pipelines with one tokenizer, text_encoder and unet."
        )
    if getattr(pipe, "_perfusion", None) is not None:
        raise UserError(
            f"concepts {list(pipe._perfusion.concepts)} are loaded already; unload_concepts(pipe) first and "
            "load all that you need together."
        )
    if not concepts:
        raise UserError('concepts={} is empty; give at least one, as {"teddy*": "teddy.safetensors"}.')
    concepts = {trigger: c if isinstance(c, Concept) else Concept.load(c) for trigger, c in concepts.items()}
    hash, base_id = base_hash(pipe.text_encoder, pipe.unet), str(pipe.config.get("_name_or_path", ""))
    for concept in concepts.values():
        concept.check_base(base_id, hash)
    return LoadedConcepts(pipe, concepts, always_on, global_edit)


def unload_concepts(pipe) -> None:
    """Undo `load_concepts`. Raises UserError where nothing is loaded."""
    _loaded(pipe).unload()


def set_gate(pipe, **settings) -> None:
    """`LoadedConcepts.set_gate` of the concepts on this pipeline."""
    _loaded(pipe).set_gate(**settings)


def _loaded(pipe) -> "LoadedConcepts":
    if getattr(pipe, "_perfusion", None) is None:
        raise UserError("no concepts are loaded on this pipeline; call load_concepts(pipe, {...}) first.")
    return pipe._perfusion


class LoadedConcepts:
    """The concepts on one pipeline: their gates, and the way back."""

    def __init__(self, pipe, concepts: dict[str, Concept], always_on: bool, global_edit: bool):
        self.pipe, self.concepts, self.always_on, self.global_edit = pipe, concepts, always_on, global_edit
        self.settings = {"beta": None, "tau": None, "lock": None}
        tokenizer, self.token_ids = add_placeholders(pipe.tokenizer, list(concepts))
        stack = lambda name: torch.stack([getattr(c, name) for c in concepts.values()])
        self.i_stars, self.c_inv_i_stars = stack("i_star"), stack("c_inv_i_star")
        self._check_distinct()
        super_encodings = torch.stack(
            [super_encoding(pipe.tokenizer, pipe.text_encoder, c.super_category) for c in concepts.values()]
        )
        locked = lock_o_star_k(pipe.unet, super_encodings)
        o_star_v, o_star_k = {}, {}
        for name, keys in locked.items():
            if any(name not in c.o_star_v for c in concepts.values()):
                raise UserError(
                    f"a concept has no o_star for layer {name} of this model; use the model it was learned on."
                )
            o_star_v[name] = torch.stack([c.o_star_v[name] for c in concepts.values()])
            trained = [c.o_star_k[name].to(keys) if c.o_star_k else None for c in concepts.values()]
            o_star_k[name] = torch.stack([key if o is None else o for o, key in zip(trained, keys, strict=True)])
        # From here on the pipeline changes.
        self._widened = widen(pipe.unet, self.i_stars, o_star_v, o_star_k)
        rows = {self.token_ids[trigger]: c.embedding for trigger, c in concepts.items()}
        self._rows = PlaceholderRows(pipe.text_encoder, rows)
        self._tokenizer, pipe.tokenizer = pipe.tokenizer, tokenizer
        self._own = pipe.__dict__.get("encode_prompt")  # normally None: the class's method
        self._encode_base, pipe.encode_prompt = pipe.encode_prompt, self.encode_prompt
        pipe._perfusion = self

    def _check_distinct(self) -> None:
        condition = torch.linalg.cond(overlap(self.i_stars, self.c_inv_i_stars).double())
        if condition > 1e5:
            raise UserError(
                f"concepts {list(self.concepts)} have all but the same i* (condition {condition:.1e}, allowed "
                "1e5), so they cannot be told apart in one prompt; load one of them, or them one at a time."
            )

    def unload(self) -> None:
        """Put the pipeline's own weights, tokenizer and encode_prompt back: the same objects as before."""
        _loaded(self.pipe)
        self._widened.restore()
        self._rows.remove()
        self.pipe.tokenizer = self._tokenizer
        if self._own is None:
            del self.pipe.encode_prompt
        else:
            self.pipe.encode_prompt = self._own
        self.pipe._perfusion = None

    def set_gate(self, **settings) -> None:
        """Set beta, tau or lock for the calls to come; None goes back to the concepts' own.

        beta, tau: a number, {trigger: number}, or a list of these, one per prompt or one per image.
        lock: "global" (keys see the prompt with the super-category's word), the concepts' own lock, or a list of these.
        Raises UserError for an unknown name or value.
        """
        for name, value in settings.items():
            if name not in self.settings:
                raise UserError(f"{name}={value} is unknown; allowed are: {', '.join(self.settings)}.")
            for one in value if _is_list(value) else [value]:
                self._check_lock(one) if name == "lock" else self._values(name, one)
        self.settings.update(settings)

    @contextmanager
    def gate(self, **settings):
        """`set_gate` for the length of a with-block."""
        before = dict(self.settings)
        self.set_gate(**settings)
        try:
            yield self
        finally:
            self.settings = before

    def _check_lock(self, lock: str | None) -> None:
        allowed = {"global"} | set.intersection(*({c.lock} for c in self.concepts.values()))
        if lock is not None and lock not in allowed:
            raise UserError(
                f"lock={lock} is not to be had with {list(self.concepts)}, trained with "
                f"{[c.lock for c in self.concepts.values()]}; allowed are None and {sorted(allowed)}."
            )

    def _values(self, name: str, value) -> list[float]:
        """One setting of one sample as a number for every concept."""
        own = {trigger: getattr(c, name) for trigger, c in self.concepts.items()}
        named = value if isinstance(value, dict) else {} if value is None else dict.fromkeys(own, value)
        for trigger, number in named.items():
            if trigger not in own:
                raise UserError(
                    f'{name} names the concept "{trigger}", which is not loaded; loaded are: {", ".join(own)}.'
                )
            if isinstance(number, bool) or not isinstance(number, (int, float)) or (name == "tau" and number <= 0):
                raise UserError(f"{name}={number} of {trigger} must be a {'positive ' * (name == 'tau')}number.")
        return [float(x) for x in (own | named).values()]

    def _per_image(self, name: str, prompts: int, images: int) -> list:
        """The setting as one value per image: [prompts * images], the images of one prompt side by side."""
        value = self.settings[name]
        if not _is_list(value):
            return [value] * (prompts * images)
        if len(value) == prompts * images:
            return list(value)
        if len(value) == prompts:
            return [v for v in value for _ in range(images)]
        raise UserError(
            f"{name} is a list of {len(value)} for {prompts} prompt(s) with {images} image(s) each; allowed are "
            f"one value, or a list of {prompts} or {prompts * images}."
        )

    def encode_prompt(
        self,
        prompt,
        device,
        num_images_per_prompt,
        do_classifier_free_guidance,
        negative_prompt=None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        **kwargs,
    ):
        """The pipeline's `encode_prompt`, its encodings [B, T, d] widened to [B, T, 2 (d + 2J)]: V's part, then K's."""
        images = num_images_per_prompt
        e, e_negative = self._encode_base(
            prompt,
            device,
            images,
            do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            **kwargs,
        )
        again = lambda prompts: self._encode_base(prompts, device, images, False, **kwargs)[0]
        if prompt_embeds is not None:
            prompt = None
        prompts = None if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)
        wide = self._widen(e, prompts, images, again)
        if e_negative is None:
            return wide, None
        if negative_prompt_embeds is not None:
            negatives = None
        elif negative_prompt is None:
            negatives = [""] * (len(e) // images)
        else:
            negatives = [negative_prompt] if isinstance(negative_prompt, str) else list(negative_prompt)
        return wide, self._widen(e_negative, negatives, images, again)

    def _widen(self, e: Tensor, prompts: list[str] | None, images: int, again) -> Tensor:
        """Both parts of the encodings e [B, T, d] of prompts; every concept off where the prompts are not known."""
        d, J = self.i_stars.shape[1], len(self.concepts)
        if e.shape[-1] == 2 * (d + 2 * J):  # given by the user, out of this very encode_prompt
            return e
        if prompts is None:
            warnings.warn(
                "plain prompt_embeds do not say which concepts they hold: drawn with every concept off; give "
                "prompts, or embeds out of this pipeline's encode_prompt.",
                stacklevel=4,
            )
            zeros = e.new_zeros(*e.shape[:2], 2 * J)
            return torch.cat([e, zeros, e, zeros], dim=-1)
        tokenize(self.pipe.tokenizer, prompts)  # warns where a prompt is cut
        has = [
            [self.always_on or h for h in has_token(self.pipe.tokenizer, prompts, i)] for i in self.token_ids.values()
        ]
        on = torch.tensor(has).T.repeat_interleave(images, dim=0).to(e.device)
        gates = [
            torch.tensor([self._values(name, v) for v in self._per_image(name, len(prompts), images)])
            for name in ("beta", "tau")
        ]
        v = augment(e, self.i_stars, self.c_inv_i_stars, *gates, on)
        is_global = torch.tensor([lock == "global" for lock in self._per_image("lock", len(prompts), images)])
        if not is_global.any():
            return torch.cat([v, v], dim=-1)
        twin = again(twin_prompts(prompts, {t: c.super_category for t, c in self.concepts.items()}))
        k = augment(twin, self.i_stars, self.c_inv_i_stars, *gates, on if self.global_edit else on & False)
        k = torch.where(is_global.to(e.device)[:, None, None], k, v)
        return torch.cat([v, k], dim=-1)


def _is_list(value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)

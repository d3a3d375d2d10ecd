"""Concepts on a stock diffusers pipeline whose denoiser has cross-attention (docs/pipelines.md says which are tested).

    handle = load_concepts(pipe, {"teddy*": "teddy.safetensors"})
    pipe("a teddy* on a beach")                      # as ever: batches, negative prompts, callbacks, any scheduler
    with handle.gate(beta=[.6, .7, .8]):             # or one for all, {"teddy*": .6}, or one per image
        pipe(["a teddy* on a beach"] * 3)
    handle.unload()                                  # the base model again, to the last bit

`encode_prompt` of this one pipeline object is overridden: its encodings come out with the gates' columns beside them
(edit.augment), and the denoiser's widened to_k / to_v read those. A ControlNet is handed the encodings without the
columns. The methods that load, change or save parts of the pipeline find it without concepts, which are put back around
what they leave.
"""

import functools
import threading
import warnings
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from perfusion.errors import UserError
from perfusion.method.concept import Concept
from perfusion.method.edit import augment
from perfusion.method.fingerprint import Base
from perfusion.method.gates import as_python, check_distinct, check_gate, numbers, per_image
from perfusion.method.layers import WidenedLinear, lock_o_star_k, widen
from perfusion.method.parts import check_parts
from perfusion.method.prompt_call import PromptCall
from perfusion.method.sources import Source, by_word
from perfusion.method.text import (
    PlaceholderRows,
    add_placeholders,
    aligned,
    drops_spaces,
    held_tokens,
    spellings,
    super_encoding,
    tokenize,
    twin_prompts,
)
from perfusion.method.text_encoders import tokenizers_of

PARTS = ("tokenizer", "text_encoder", "encode_prompt")
# A tokenizer keeps how it was last asked to pad and cut, so two threads that ask one disturb each other.
ENCODING = threading.RLock()
# Methods of a pipeline that change what W or the tokens are, or write them.
ON_THE_BASE = (
    "load_lora_weights",
    "unload_lora_weights",
    "set_adapters",
    "delete_adapters",
    "enable_lora",
    "disable_lora",
    "fuse_lora",
    "unfuse_lora",
    "load_textual_inversion",
    "unload_textual_inversion",
    "load_ip_adapter",
    "unload_ip_adapter",
    "save_pretrained",
    "push_to_hub",
)


def load_concepts(
    pipe,
    concepts: dict[str, Source] | Source | Sequence[Source],
    always_on: bool = False,
    global_edit: bool = False,
    **hub,
) -> "LoadedConcepts":
    """Teach a stock pipeline some concepts: {trigger word: file, "user/repo" on the hub, or Concept}. The word may differ
    from the file's own; one concept, or a list, without words goes by its own.

    hub: revision, token, cache_dir, local_files_only, weight_name, as of diffusers' own loaders.

    always_on: a concept acts on every prompt, negative ones too. By default it acts on the prompts that hold its
    word, so that any other prompt draws exactly what the base model draws. global_edit: under the global lock, the
    keys' encodings still pass the gated edit (method.md 3); plain by default.

    Raises UserError, before anything is changed, for a bad file, another base model, or a word that is taken.
    """
    missing = [part for part in PARTS if getattr(pipe, part, None) is None]
    if missing:
        raise UserError(
            f"pipeline {type(pipe).__name__} lacks {missing}; allowed are Stable Diffusion pipelines (SDXL's among them), "
            "PixArt's and Sana's, that have them all (SDXL's refiner has not)."
        )
    base = Base(pipe)
    attentions = base.attentions  # says so where there is none, before anything else is asked of the pipeline
    if next(base.denoiser.parameters()).is_meta:
        raise UserError(
            f"the weights of {type(pipe).__name__} are offloaded one by one (enable_sequential_cpu_offload) or not loaded; "
            "use enable_model_cpu_offload, or load_concepts before anything is offloaded."
        )
    if getattr(pipe, "_perfusion", None) is not None:
        raise UserError(
            f"concepts {list(pipe._perfusion.concepts)} are loaded already; call unload() on their handle first and "
            "load all that you need together."
        )
    if any(isinstance(a.to_k, WidenedLinear) for a in attentions.values()):
        raise UserError(
            f"the denoiser of this {type(pipe).__name__} holds concepts already, which were loaded on another pipeline that shares "
            "it; call unload() on their handle first, or give each pipeline a denoiser of its own."
        )
    loaded = by_word(concepts, **hub)
    base_id = str(pipe.config.get("_name_or_path", ""))
    for concept in loaded.values():
        concept.check_base(base_id, base.hash)
        concept.check_numbers()
    return LoadedConcepts(base, loaded, always_on, global_edit)


class LoadedConcepts:
    """The concepts on one pipeline: their gates, and the way back."""

    def __init__(self, base: Base, concepts: dict[str, Concept], always_on: bool, global_edit: bool):
        self.pipe, self.concepts, self.always_on, self.global_edit = base.pipe, concepts, always_on, global_edit
        self.settings = {"beta": None, "tau": None, "lock": None}
        add_placeholders(self.pipe.tokenizer, list(concepts))  # says whether the words will do, before all else
        stack = lambda name: torch.stack([getattr(c, name).float() for c in concepts.values()])
        self.i_stars, self.c_inv_i_stars = stack("i_star"), stack("c_inv_i_star")
        check_distinct(list(concepts), self.i_stars, self.c_inv_i_stars, always_on)
        self._install(base)

    def _install(self, base: Base) -> None:
        """Put the concepts on the pipeline as it is. Raises UserError, before anything is changed, where they do not fit."""
        pipe, concepts = self.pipe, self.concepts
        self._encoder, self._tokenizers = base.text_encoder, tokenizers_of(pipe)
        projected = hasattr(self._encoder, "project")  # by the denoiser: its encodings are not yet what i* lives among
        self._width = (pipe.text_encoder if projected else self._encoder).config.hidden_size
        added = {name: add_placeholders(tokenizer, list(concepts)) for name, tokenizer in self._tokenizers.items()}
        self.token_ids = added["tokenizer"][1]
        self._widen_denoiser(base)
        # From here on the pipeline changes in its other parts.
        rows = [{ids[trigger]: c.embedding for trigger, c in concepts.items()} for _, ids in added.values()]
        self._rows = PlaceholderRows(self._encoder, rows)
        self._with_words = {name: tokenizer for name, (tokenizer, _) in added.items()}
        for name, tokenizer in self._with_words.items():
            setattr(pipe, name, tokenizer)
        changed = [name for name in ("encode_prompt", *ON_THE_BASE) if hasattr(pipe, name)]
        self._own = {
            name: pipe.__dict__[name] for name in changed if name in pipe.__dict__
        }  # normally the class has them
        for name in changed:
            setattr(pipe, name, functools.partial(self._on_the_base, name))
        pipe.encode_prompt = self.encode_prompt
        controlnet = getattr(pipe, "controlnet", None)
        self._hook = controlnet and controlnet.register_forward_pre_hook(self._narrow, with_kwargs=True)
        self._changed, pipe._perfusion = changed, self

    def _remove(self) -> None:
        """The pipeline's own weights, tokenizers and methods: the same objects as before."""
        self._widened.restore()
        self._rows.remove()
        if self._hook:
            self._hook.remove()
        for name, tokenizer in self._tokenizers.items():
            # Another pipeline that was made of this one's parts may hold the tokenizer with the words: they leave it too.
            self._with_words[name]._tokenizer = tokenizer._tokenizer
            setattr(self.pipe, name, tokenizer)
        for name in self._changed:
            del self.pipe.__dict__[name]
        self.pipe.__dict__.update(self._own)
        self.pipe._perfusion = None

    def _on_the_base(self, name: str, *args, **kwargs):
        """A method of the pipeline, called on it without the concepts; they are put back around what it leaves."""
        own = {id(getattr(self.pipe, part)): tokenizer for part, tokenizer in self._tokenizers.items()}
        kwargs = {key: own.get(id(value), value) for key, value in kwargs.items()}  # tokenizer=pipe.tokenizer_2
        args = tuple(own.get(id(value), value) for value in args)
        self._remove()
        try:
            return getattr(self.pipe, name)(*args, **kwargs)
        finally:
            try:
                self._install(Base(self.pipe))
            except UserError as error:  # a textual inversion may have taken a concept's word
                raise UserError(
                    f"after {name} concepts {list(self.concepts)} are off and cannot be put back: {error}"
                ) from error

    @property
    def _encode_base(self):
        """The pipeline's own encode_prompt. Not kept: a bound method would be unpickled as the one that stands in for it."""
        return self._own.get("encode_prompt") or functools.partial(type(self.pipe).encode_prompt, self.pipe)

    def _widen_denoiser(self, base: Base) -> None:
        """Put the concepts' rows beside W. Raises UserError, before anything is changed, where they do not fit."""
        concepts = self.concepts
        locked = self._locked_keys([c.super_category for c in concepts.values()], base)
        o_star_v, o_star_k = {}, {}
        for name, keys in locked.items():
            if any(name not in c.o_star_v for c in concepts.values()):
                raise UserError(
                    f"a concept has no o_star for layer {name} of this model; use the model it was learned on."
                )
            o_star_v[name] = torch.stack([c.o_star_v[name] for c in concepts.values()])
            trained = [c.o_star_k[name].to(keys) if c.o_star_k else None for c in concepts.values()]
            o_star_k[name] = torch.stack([key if o is None else o for o, key in zip(trained, keys, strict=True)])
        self._widened = widen(base.denoiser, self.i_stars, o_star_v, o_star_k, base.attentions)

    def _locked_keys(self, words: list[str], base: Base) -> dict[str, Tensor]:
        """o*_K of the local lock for each super-category's word, {layer: [J, d_l]}: computed once for as long as the text
        encoder's weights and W_K stay."""
        keys = {} if base.has_lora else base.known.setdefault("locked_keys", {})
        if new := [word for word in dict.fromkeys(words) if word not in keys]:
            encode = functools.partial(super_encoding, self._tokenizers["tokenizer"], base.text_encoder)
            locked = lock_o_star_k(base.denoiser, torch.stack([encode(word) for word in new]))
            keys |= {word: {name: o_star[i] for name, o_star in locked.items()} for i, word in enumerate(new)}
        return {name: torch.stack([keys[word][name] for word in words]) for name in base.attentions}

    def _narrow(self, module, args, kwargs):
        """A ControlNet's cross-attentions are stock: they take the encodings e alone, without the gates' columns."""
        e = self._width
        narrow = lambda x: x[..., :e] if isinstance(x, Tensor) and x.ndim == 3 and x.shape[-1] == self._wide else x
        return tuple(map(narrow, args)), {name: narrow(value) for name, value in kwargs.items()}

    @property
    def _wide(self) -> int:
        """How wide the denoiser's encodings are with the columns: V's part, then K's."""
        return 2 * (self._width + 2 * len(self.concepts))

    def unload(self) -> None:
        """Put the pipeline's own weights, tokenizer and encode_prompt back: the same objects as before.

        Raises UserError where these concepts are not loaded any more.
        """
        self._check_loaded()
        self._remove()

    def _check_loaded(self) -> None:
        if getattr(self.pipe, "_perfusion", None) is not self:
            raise UserError("these concepts are not loaded any more; call load_concepts(pipe, {...}) first.")

    def set_gate(self, **settings) -> None:
        """Set beta, tau or lock for the calls to come; None goes back to the concepts' own.

        beta, tau: a number, {trigger: number}, or a list of these, one per prompt or one per image.
        lock: "global" (keys see the prompt with the super-category's word), the concepts' own lock, or a list of these.
        Raises UserError for an unknown name or value, or where these concepts are not loaded any more.
        """
        self._check_loaded()
        settings = as_python(settings)
        check_gate(self.concepts, **settings)
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

    def encode_prompt(self, *args, **kwargs):
        """`_encode_prompt`, by one thread at a time."""
        with ENCODING:
            return self._encode_prompt(*args, **kwargs)

    def _encode_prompt(self, *args, **kwargs):
        """The pipeline's `encode_prompt`, its encodings [B, T, c] widened to [B, T, 2 (c + 2J)]: V's part, then K's."""
        self._check_loaded()  # a copy of the pipeline may have been left with this method
        check_parts(self.pipe, self._widened.layers[0][0], self._with_words, self._encoder)
        encoder, tokenizer, count = self._encoder, self.pipe.tokenizer, len(self._tokenizers)
        call = PromptCall(self._encode_base, encoder, tokenizer, count, args, kwargs)
        call.keep(self.concepts)
        encodings, (at, at_negative) = call.encode(), call.places
        e, e_negative = encodings[at], encodings[at_negative]
        encodings[at] = self._widen(e, call, "prompt", 1)
        if e_negative is not None:
            encodings[at_negative] = self._widen(e_negative, call, "negative_prompt", len(e) // call.images)
        return tuple(encodings)

    def _widen(self, e: Tensor, call: PromptCall, kind: str, count: int) -> Tensor:
        """Both parts of the encodings e [B, T, c] of a call's prompts; every concept off where these are not known.

        kind: "prompt" or "negative_prompt"; count: how many prompts one text stands for.
        """
        texts, images, encoder = call.texts(kind, count), call.images, call.encoder(kind)
        J = len(self.concepts)
        if e.shape[-1] == self._wide:  # given by the user, out of this very encode_prompt
            return e
        if texts is None and not self.always_on:
            warnings.warn(
                "plain prompt_embeds do not say which concepts they hold: drawn with every concept off; give "
                "prompts, or embeds out of this pipeline's encode_prompt, or load_concepts(..., always_on=True).",
                stacklevel=5,
            )
            zeros = e.new_zeros(*e.shape[:2], 2 * J)
            return torch.cat([e, zeros, e, zeros], dim=-1)
        tokenizer, count = self.pipe.tokenizer, len(texts[0]) if texts else len(e) // images
        on = torch.ones(len(e), J, dtype=torch.bool, device=e.device)
        if texts:
            cut = [tokenize(tokenizer, p, encoder, self.token_ids) for p in texts]  # warns where a prompt is cut
            # By each prompt, whichever text encoder it is for.
            held = [set.union(*ids) for ids in zip(*(held_tokens(tokenizer, p, encoder) for p in texts), strict=True)]
            has = [[self.always_on or i in row for row in held] for i in self.token_ids.values()]
            on = torch.tensor(has).T.repeat_interleave(images, dim=0).to(e.device)
        gates = [
            torch.tensor([numbers(self.concepts, name, v) for v in per_image(name, self.settings[name], count, images)])
            for name in ("beta", "tau")
        ]

        def gated(e: Tensor, on: Tensor) -> Tensor:
            if not hasattr(encoder, "project"):
                return augment(e, self.i_stars, self.c_inv_i_stars, *gates, on)
            seen = augment(encoder.project(e), self.i_stars, self.c_inv_i_stars, *gates, on)
            return torch.cat([e, seen[..., -2 * J :].to(e.dtype)], dim=-1)

        v = gated(e, on)
        locks = per_image("lock", self.settings["lock"], count, images)
        is_global = torch.tensor([lock == "global" for lock in locks])
        if not is_global.any():
            return torch.cat([v, v], dim=-1)
        if not texts:
            raise UserError(
                'lock="global" needs the prompts, to read them with the super-category\'s word, and plain prompt_embeds do not '
                "say them; give prompts, or lock=None."
            )
        words = {t: c.super_category for t, c in self.concepts.items()}
        twins = [twin_prompts(prompts, words, drops_spaces(tokenizer)) for prompts in texts]
        twin = call.again(kind, twins)
        if hasattr(encoder, "tokenize"):  # a word may be several pieces there
            ids, theirs = (encoder.kept(i) for i in (cut[0], encoder.tokenize(tokenizer, twins[0])))
            spelled = {i: spellings(tokenizer, words[t]) for t, i in self.token_ids.items()}
            to = aligned(ids, theirs, spelled).repeat_interleave(images, dim=0).to(twin.device)
            twin = twin.gather(1, to[..., None].expand_as(twin))
        k = gated(twin, on if self.global_edit else torch.zeros_like(on))
        k = torch.where(is_global.to(e.device)[:, None, None], k, v)
        return torch.cat([v, k], dim=-1)

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
import inspect
import os
import threading
import warnings
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from perfusion.errors import UserError
from perfusion.method.concept import Concept
from perfusion.method.denoiser import denoiser_of
from perfusion.method.edit import augment, overlap
from perfusion.method.fingerprint import hash_of
from perfusion.method.layers import WidenedLinear, cross_attentions, lock_o_star_k, widen
from perfusion.method.memo import remembered
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
from perfusion.method.text_encoders import text_encoder_of, tokenizers_of

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


Source = str | os.PathLike | Concept  # a file, an address on the hub, or a concept in memory


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
    denoiser = denoiser_of(pipe)
    cross_attentions(denoiser)  # says so where there is none, before anything else is asked of the pipeline
    if next(denoiser.parameters()).is_meta:
        raise UserError(
            f"the weights of {type(pipe).__name__} are offloaded one by one (enable_sequential_cpu_offload) or not loaded; "
            "use enable_model_cpu_offload, or load_concepts before anything is offloaded."
        )
    if getattr(pipe, "_perfusion", None) is not None:
        raise UserError(
            f"concepts {list(pipe._perfusion.concepts)} are loaded already; call unload() on their handle first and "
            "load all that you need together."
        )
    if any(isinstance(a.to_k, WidenedLinear) for a in cross_attentions(denoiser).values()):
        raise UserError(
            f"the denoiser of this {type(pipe).__name__} holds concepts already, which were loaded on another pipeline that shares "
            "it; call unload() on their handle first, or give each pipeline a denoiser of its own."
        )
    if not concepts:
        raise UserError('concepts={} is empty; give at least one, as {"teddy*": "teddy.safetensors"}.')
    load = lambda source: source if isinstance(source, Concept) else Concept.load(source, **hub)
    if isinstance(concepts, dict):
        concepts = {trigger: load(source) for trigger, source in concepts.items()}
    else:
        several = [load(source) for source in (concepts if _is_list(concepts) else [concepts])]
        concepts = {concept.trigger: concept for concept in several}
        if len(concepts) < len(several):
            raise UserError(
                f"concepts have the words {[c.trigger for c in several]}, some of them twice; give each its own, as in "
                '{"teddy*": "teddy.safetensors"}.'
            )
    base_id = str(pipe.config.get("_name_or_path", ""))
    hash = hash_of(pipe)
    for concept in concepts.values():
        concept.check_base(base_id, hash)
    return LoadedConcepts(pipe, concepts, always_on, global_edit)


def check_gate(concepts: dict[str, Concept], **settings) -> None:
    """Raises UserError for settings that `LoadedConcepts.set_gate` would not take with these concepts."""
    for name, value in settings.items():
        if name not in ("beta", "tau", "lock"):
            raise UserError(f"{name}={value} is unknown; allowed are: beta, tau, lock.")
        for one in value if _is_list(value) else [value]:
            _check_lock(concepts, one) if name == "lock" else _values(concepts, name, one)


def _check_lock(concepts: dict[str, Concept], lock: str | None) -> None:
    locks = [c.lock for c in concepts.values()]
    allowed = {"global", *(locks[:1] if len(set(locks)) == 1 else [])}
    if lock is not None and lock not in allowed:
        raise UserError(
            f"lock={lock} is not to be had with {list(concepts)}, trained with {locks}; allowed are None and "
            f"{sorted(allowed)}."
        )


def _values(concepts: dict[str, Concept], name: str, value) -> list[float]:
    """One setting of one sample as a number for every concept."""
    own = {trigger: getattr(c, name) for trigger, c in concepts.items()}
    named = value if isinstance(value, dict) else {} if value is None else dict.fromkeys(own, value)
    for trigger, number in named.items():
        if trigger not in own:
            raise UserError(f'{name} names the concept "{trigger}", which is not loaded; loaded are: {", ".join(own)}.')
        if isinstance(number, bool) or not isinstance(number, (int, float)) or (name == "tau" and number <= 0):
            raise UserError(
                f"{name}={number} of {trigger} must be a {'positive number' if name == 'tau' else 'number'}."
            )
    return [float(x) for x in (own | named).values()]


class LoadedConcepts:
    """The concepts on one pipeline: their gates, and the way back."""

    def __init__(self, pipe, concepts: dict[str, Concept], always_on: bool, global_edit: bool):
        self.pipe, self.concepts, self.always_on, self.global_edit = pipe, concepts, always_on, global_edit
        self.settings = {"beta": None, "tau": None, "lock": None}
        add_placeholders(pipe.tokenizer, list(concepts))  # says whether the words will do, before all else
        stack = lambda name: torch.stack([getattr(c, name) for c in concepts.values()])
        self.i_stars, self.c_inv_i_stars = stack("i_star"), stack("c_inv_i_star")
        self._check_distinct()
        self._install()

    def _install(self) -> None:
        """Put the concepts on the pipeline as it is. Raises UserError, before anything is changed, where they do not fit."""
        pipe, concepts = self.pipe, self.concepts
        self._encoder, self._tokenizers = text_encoder_of(pipe), tokenizers_of(pipe)
        projected = hasattr(self._encoder, "project")  # by the denoiser: its encodings are not yet what i* lives among
        self._width = (pipe.text_encoder if projected else self._encoder).config.hidden_size
        added = {name: add_placeholders(tokenizer, list(concepts)) for name, tokenizer in self._tokenizers.items()}
        self.token_ids = added["tokenizer"][1]
        self._widen_denoiser()
        # From here on the pipeline changes in its other parts.
        rows = [{ids[trigger]: c.embedding for trigger, c in concepts.items()} for _, ids in added.values()]
        self._rows = PlaceholderRows(self._encoder, rows)
        for name, (tokenizer, _) in added.items():
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
            getattr(self.pipe, name)._tokenizer = tokenizer._tokenizer
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
            self._install()

    @property
    def _encode_base(self):
        """The pipeline's own encode_prompt. Not kept: a bound method would be unpickled as the one that stands in for it."""
        return self._own.get("encode_prompt") or functools.partial(type(self.pipe).encode_prompt, self.pipe)

    def _widen_denoiser(self) -> None:
        """Put the concepts' rows beside W. Raises UserError, before anything is changed, where they do not fit."""
        concepts = self.concepts
        super_encodings = torch.stack(self._super_encodings([c.super_category for c in concepts.values()]))
        locked = lock_o_star_k(denoiser_of(self.pipe), super_encodings)
        o_star_v, o_star_k = {}, {}
        for name, keys in locked.items():
            if any(name not in c.o_star_v for c in concepts.values()):
                raise UserError(
                    f"a concept has no o_star for layer {name} of this model; use the model it was learned on."
                )
            o_star_v[name] = torch.stack([c.o_star_v[name] for c in concepts.values()])
            trained = [c.o_star_k[name].to(keys) if c.o_star_k else None for c in concepts.values()]
            o_star_k[name] = torch.stack([key if o is None else o for o, key in zip(trained, keys, strict=True)])
        self._widened = widen(denoiser_of(self.pipe), self.i_stars, o_star_v, o_star_k)

    def _super_encodings(self, words: list[str]) -> list[Tensor]:
        """`text.super_encoding` of each word, computed once for as long as the text encoder's weights stay."""
        state = self._encoder.state_dict()
        # A LoRA is switched and scaled without any weight changing: then nothing is kept.
        lora = any("lora_" in name for name in state)
        known = {} if lora else remembered(self.pipe, "super_encodings", state.values(), dict)
        for word in dict.fromkeys(words):
            if word not in known:
                known[word] = super_encoding(self._tokenizers["tokenizer"], self._encoder, word)
        return [known[word] for word in words]

    def _narrow(self, module, args, kwargs):
        """A ControlNet's cross-attentions are stock: they take the encodings e alone, without the gates' columns."""
        e = self._width
        narrow = lambda x: x[..., :e] if isinstance(x, Tensor) and x.ndim == 3 and x.shape[-1] == self._wide else x
        return tuple(map(narrow, args)), {name: narrow(value) for name, value in kwargs.items()}

    @property
    def _wide(self) -> int:
        """How wide the denoiser's encodings are with the columns: V's part, then K's."""
        return 2 * (self._width + 2 * len(self.concepts))

    def _check_distinct(self) -> None:
        # Two at a time, since a prompt holds few of them: more concepts than i* has numbers may be loaded.
        G = overlap(self.i_stars, self.c_inv_i_stars).double()
        cosine = (G * G.T).clamp(min=0).sqrt().fill_diagonal_(0)  # in the metric of C^-1
        if cosine.max() > 1 - 2e-5:
            alike = [list(self.concepts)[i] for i in divmod(int(cosine.argmax()), len(G))]
            raise UserError(
                f"concepts {alike} have all but the same i* (cosine {cosine.max():.6f}, allowed 0.99998), so they "
                "cannot be told apart in one prompt; load one of them, or them one at a time."
            )
        if self.always_on and (condition := torch.linalg.cond(G)) > 1e5:
            raise UserError(
                f"{len(G)} concepts act on every prompt under always_on=True, and their i* depend on each other "
                f"(condition {condition:.1e}, allowed 1e5); load fewer, or leave always_on=False."
            )

    def unload(self) -> None:
        """Put the pipeline's own weights, tokenizer and encode_prompt back: the same objects as before.

        Raises UserError where these concepts are not loaded any more.
        """
        if getattr(self.pipe, "_perfusion", None) is not self:
            raise UserError("these concepts are not loaded any more; call load_concepts(pipe, {...}) first.")
        self._remove()

    def set_gate(self, **settings) -> None:
        """Set beta, tau or lock for the calls to come; None goes back to the concepts' own.

        beta, tau: a number, {trigger: number}, or a list of these, one per prompt or one per image.
        lock: "global" (keys see the prompt with the super-category's word), the concepts' own lock, or a list of these.
        Raises UserError for an unknown name or value.
        """
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

    def encode_prompt(self, *args, **kwargs):
        """`_encode_prompt`, by one thread at a time."""
        with ENCODING:
            return self._encode_prompt(*args, **kwargs)

    def _encode_prompt(self, *args, **kwargs):
        """The pipeline's `encode_prompt`, its encodings [B, T, c] widened to [B, T, 2 (c + 2J)]: V's part, then K's."""
        bound = inspect.signature(self._encode_base).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments | bound.arguments.pop("kwargs", {})
        images = given["num_images_per_prompt"]
        listed = lambda texts: [texts] if isinstance(texts, str) else list(texts)

        def prompts_of(kind: str, count: int):
            """What each text encoder is given as "prompt" or "negative_prompt": one list each; None where not known."""
            if given[f"{kind}_embeds"] is not None:
                return None
            first = given[kind] or ""
            texts = [first, given.get(f"{kind}_2") or first][: len(self._tokenizers)]
            return [listed(t) * count if isinstance(t, str) else listed(t) for t in texts]

        prompts = prompts_of("prompt", 1)
        if given.get("clean_caption") and self._named([*(prompts or [[]])[0], *listed(given["negative_prompt"] or "")]):
            given["clean_caption"] = False  # it takes the * out of teddy*
        masked = "prompt_attention_mask" in given
        # A preamble (Sana's) is for the prompts alone.
        kinds = [{}, {"complex_human_instruction": False} if "complex_human_instruction" in given else {}]

        def asked(texts: list[list[str]] | None, more: dict):
            """The text encoder for a call, and its encodings of other texts, as this call's are made."""
            encoder, call = self._encoder, given | more

            def again(texts: list[list[str]]) -> Tensor:
                changed = {"prompt": texts[0], "do_classifier_free_guidance": False, "negative_prompt": None}
                changed |= {"prompt_2": texts[1]} if len(texts) > 1 else {}
                changed |= {name: None for name in given if name.endswith(("_embeds", "_attention_mask"))}
                return self._encode_base(**(call | changed))[0]

            if masked:
                instruction = call.get("complex_human_instruction") or None
                encoder = encoder.asked(self.pipe.tokenizer, call["max_sequence_length"], instruction)
            return texts, images, again, encoder

        encodings = list(self._encode_base(**given))
        at = 2 if masked else 1  # of the negative prompt's encodings
        e, e_negative = encodings[0], encodings[at]
        encodings[0] = self._widen(e, *asked(prompts, kinds[0]))
        if e_negative is not None:
            negatives = prompts_of("negative_prompt", len(e) // images)
            encodings[at] = self._widen(e_negative, *asked(negatives, kinds[1]))
        return tuple(encodings)

    def _named(self, texts: list[str]) -> bool:
        return any(trigger.lower() in text.lower() for text in texts for trigger in self.concepts)

    def _widen(self, e: Tensor, texts: list[list[str]] | None, images: int, again, encoder) -> Tensor:
        """Both parts of the encodings e [B, T, c] of prompts; every concept off where the prompts are not known."""
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
            torch.tensor([_values(self.concepts, name, v) for v in self._per_image(name, count, images)])
            for name in ("beta", "tau")
        ]

        def gated(e: Tensor, on: Tensor) -> Tensor:
            if not hasattr(encoder, "project"):
                return augment(e, self.i_stars, self.c_inv_i_stars, *gates, on)
            seen = augment(encoder.project(e), self.i_stars, self.c_inv_i_stars, *gates, on)
            return torch.cat([e, seen[..., -2 * J :].to(e.dtype)], dim=-1)

        v = gated(e, on)
        is_global = torch.tensor([lock == "global" for lock in self._per_image("lock", count, images)])
        if not is_global.any():
            return torch.cat([v, v], dim=-1)
        if not texts:
            raise UserError(
                'lock="global" needs the prompts, to read them with the super-category\'s word, and plain prompt_embeds do not '
                "say them; give prompts, or lock=None."
            )
        words = {t: c.super_category for t, c in self.concepts.items()}
        twins = [twin_prompts(prompts, words, drops_spaces(tokenizer)) for prompts in texts]
        twin = again(twins)
        if hasattr(encoder, "tokenize"):  # a word may be several pieces there
            ids, theirs = (encoder.kept(i) for i in (cut[0], encoder.tokenize(tokenizer, twins[0])))
            spelled = {i: spellings(tokenizer, words[t]) for t, i in self.token_ids.items()}
            to = aligned(ids, theirs, spelled).repeat_interleave(images, dim=0).to(twin.device)
            twin = twin.gather(1, to[..., None].expand_as(twin))
        k = gated(twin, on if self.global_edit else torch.zeros_like(on))
        k = torch.where(is_global.to(e.device)[:, None, None], k, v)
        return torch.cat([v, k], dim=-1)


def _is_list(value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)

"""Prompts to encodings: placeholder words, their super-category twins, token positions. Knows no denoiser.

A placeholder such as "teddy*" becomes one added token of a *copy* of the tokenizer. Its learned embedding is written
into the text encoder's input by hooks while they are installed: the frozen embedding matrix is neither resized nor
trained, so removing the hooks restores the encoder exactly, and gradients reach the learned vector and nothing else.
"""

import copy
import difflib
import re
import threading
import warnings
from contextlib import contextmanager

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from perfusion.errors import UserError

# docs/method.md 4, as in the re-implementations.
TEMPLATES = (
    "a photo of a {}",
    "a good photo of a {}",
    "the photo of a {}",
    "a good photo of the {}",
    "image of a {}",
    "image of the {}",
    "a photograph of {}",
    "a {} shown in a photo",
    "a photo of {}",
)


def single_token(tokenizer, super_category: str) -> int:
    """The id of the one token that the super-category word is.

    Raises UserError naming the nearest single-token words where it is none or several.
    """
    ids = tokenizer(super_category, add_special_tokens=False).input_ids
    if len(ids) == 1 and ids[0] not in tokenizer.all_special_ids:
        return ids[0]
    raise UserError(
        f'super_category="{super_category}" is {len(ids)} tokens of the tokenizer, exactly 1 is allowed; '
        f"the nearest single-token words are: {', '.join(near_words(tokenizer, super_category)) or 'none'}."
    )


def near_words(tokenizer, text: str, most: int = 5) -> list[str]:
    """The single-token words nearest to `text` in spelling: the word itself first, else those that a phrase holds."""
    words = [token[:-4] for token in tokenizer.get_vocab() if token.endswith("</w>") and token[:-4].isalpha()]
    near = [part for part in reversed(text.lower().split()) if part in words]
    return near + [w for w in difflib.get_close_matches(text.lower(), words, n=most, cutoff=0.4) if w not in near]


def written(trigger: str) -> re.Pattern:
    """Where a prompt holds a trigger as a word: the boundaries of an AddedToken with single_word=True, any case."""
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)


def add_placeholders(tokenizer, triggers: list[str]):
    """A copy of the tokenizer with one new token per trigger word, and {trigger: token id}.

    Raises UserError for a trigger that is empty, has spaces, is a word the tokenizer knows as one token, or equals
    another.
    """
    tokenizer = _light_copy(tokenizer)
    seen: dict[str, str] = {}
    for trigger in triggers:
        if not trigger.strip() or re.search(r"\s", trigger):
            raise UserError(f'trigger="{trigger}" must be one word without spaces, such as "teddy*".')
        if trigger.lower() in seen:  # the tokenizer lower-cases
            raise UserError(
                f'trigger="{trigger}" collides with "{seen[trigger.lower()]}"; give each concept its own word.'
            )
        if len(tokenizer(trigger, add_special_tokens=False).input_ids) == 1:
            raise UserError(
                f'trigger="{trigger}" is already a word of the tokenizer; use a new one such as "{trigger}*".'
            )
        seen[trigger.lower()] = trigger
    # All at once: each call builds the search for added tokens anew.
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in seen])
    return tokenizer, {trigger: tokenizer.convert_tokens_to_ids(word) for word, trigger in seen.items()}


def _light_copy(tokenizer):
    """A tokenizer that can be given words of its own; the vocabulary and merges are shared, never written to.

    A deep copy of CLIP's 49,408 rows takes half a second, this a tenth of a millisecond.
    """
    base = tokenizer.backend_tokenizer
    backend = Tokenizer(base.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        setattr(backend, part, getattr(base, part))
    for _, token in sorted(base.get_added_tokens_decoder().items()):
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    twin = copy.copy(tokenizer)
    twin._tokenizer = backend
    return twin


def towers(text_encoder) -> list:
    """The text encoder itself, or those whose encodings it concatenates (text_encoders.Towers)."""
    return list(getattr(text_encoder, "towers", [text_encoder]))


class PlaceholderRows:
    """Hooks that give placeholder tokens their learned embeddings; `remove()` takes them out.

    rows: {token id: vector [d_tok]}, read at every call, so a Parameter is trained through the frozen text encoder. Of
    several towers the vector holds the embeddings one after the other; a list has each one's own token ids.
    """

    def __init__(self, text_encoder, rows: dict[int, Tensor] | list[dict[int, Tensor]]):
        self._handles, start, parts = [], 0, towers(text_encoder)
        for tower, own in zip(parts, rows if isinstance(rows, list) else [rows] * len(parts), strict=True):
            width = tower.get_input_embeddings().weight.shape[1]
            hooks = _TowerRows(own, slice(start, start + width))
            self._handles.append(tower.register_forward_pre_hook(hooks.hide, with_kwargs=True))
            self._handles.append(tower.get_input_embeddings().register_forward_hook(hooks.write))
            start += width

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class _TowerRows:
    """The hooks on one text encoder, which reads `part` of every row. A class, so that they are copied and pickled with it."""

    def __init__(self, rows: dict[int, Tensor], part: slice):
        self.rows, self.part, self.seen = rows, part, {}

    def hide(self, module, args, kwargs):
        # The ids lie beyond the matrix: look up any row in their place, `write` replaces what comes out. They are hidden
        # from the whole encoder: one that pools at its largest id (SDXL's second) would take a placeholder for the end.
        ids = args[0] if args else kwargs["input_ids"]
        self.seen[threading.get_ident()] = ids  # of the call under way, in each thread that draws
        hidden = ids.masked_fill(torch.isin(ids, torch.tensor(list(self.rows), device=ids.device)), 0)
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"input_ids": hidden})

    def write(self, module, args, output):
        ids = self.seen.pop(threading.get_ident())
        for token_id in self.rows.keys() & set(ids.unique().tolist()):  # of many concepts a prompt holds few
            # The ids' own device may be another than the encoder's, under CPU offload.
            here = (ids == token_id).to(output.device)[..., None]
            output = torch.where(here, self.rows[token_id][self.part].to(output), output)
        return output


@contextmanager
def placeholder_rows(text_encoder, rows: dict[int, Tensor] | None):
    """`PlaceholderRows` for the length of a with-block."""
    hooks = PlaceholderRows(text_encoder, rows) if rows else None
    try:
        yield
    finally:
        if hooks:
            hooks.remove()


def tokenize(tokenizer, prompts: list[str], words: dict[str, int] | None = None) -> Tensor:
    """Token ids [B, T], padded and cut to the tokenizer's limit as diffusers does; warns where a prompt is cut.

    words: {placeholder: token id}: the warning names those of them that no part of the prompt is left of.
    """
    limit = tokenizer.model_max_length
    for prompt, ids in zip(prompts, tokenizer(prompts, truncation=False, verbose=False).input_ids):
        if len(ids) > limit:
            lost = [word for word, i in (words or {}).items() if i in ids and i not in ids[: limit - 1]]
            without = f", {' and '.join(lost)} among them, without which it is drawn" if lost else ""
            warnings.warn(
                f'prompt "{prompt}" has {len(ids)} tokens, the text encoder takes {limit}: '
                f"the last {len(ids) - limit} before the end are ignored{without}; shorten it.",
                stacklevel=2,
            )
    return tokenizer(prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt").input_ids


def encode(tokenizer, text_encoder, prompts: list[str], rows: dict[int, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Encodings [B, T, d] and token ids [B, T] (on the same device); `ids == token_id` are a word's positions.

    rows: {placeholder's token id: embedding}, differentiable; None where the hooks are installed already, or not
    needed.
    """
    return encode_pooled(tokenizer, text_encoder, prompts, rows)[:2]


def encode_pooled(tokenizer, text_encoder, prompts: list[str], rows: dict[int, Tensor] | None = None):
    """`encode`, and the prompts' pooled embeddings [B, p] where the text encoder is SDXL's two (else what it returns second)."""
    device = towers(text_encoder)[0].get_input_embeddings().weight.device
    ids = tokenize(tokenizer, prompts).to(device)
    with placeholder_rows(text_encoder, rows):
        encodings, pooled = text_encoder(ids)[:2]
    return encodings, ids, pooled


def twin_prompts(prompts: list[str], super_categories: dict[str, str]) -> list[str]:
    """The prompts with every trigger replaced by its super-category's word: no other token changes or moves."""
    for trigger, super_category in super_categories.items():
        prompts = [written(trigger).sub(lambda _, word=super_category: word, p) for p in prompts]
    return prompts


def held_tokens(tokenizer, prompts: list[str]) -> list[set[int]]:
    """The token ids that each prompt holds within the text encoder's limit."""
    return [set(row) for row in tokenizer(prompts, truncation=True, max_length=tokenizer.model_max_length).input_ids]


def mean_at(encodings: Tensor, positions: Tensor) -> Tensor:
    """Mean encoding [d] over the marked positions (bool [B, T]) of encodings [B, T, d]."""
    return encodings[positions].mean(0)


@torch.no_grad()
def super_encoding(tokenizer, text_encoder, super_category: str) -> Tensor:
    """The super-category's encoding [d], float32: its token's, averaged over TEMPLATES.

    A function of the base model and the word alone, so the local lock's o*_K = W_K . (this) need not be stored:
    training and inference both call this. (The paper's start is a mean over the first batch, a random draw of the
    same templates.)
    """
    token_id = single_token(tokenizer, super_category)
    encodings, ids = encode(tokenizer, text_encoder, [t.format(super_category) for t in TEMPLATES])
    return mean_at(encodings.float(), ids == token_id)


@torch.no_grad()
def word_embedding(tokenizer, text_encoder, word: str) -> Tensor:
    """The embedding [d_tok] of a single-token word, float32: where a learned embedding starts. Of all towers in turn."""
    token_id = single_token(tokenizer, word)
    return torch.cat([tower.get_input_embeddings().weight[token_id].float() for tower in towers(text_encoder)])

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
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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


def marks_beginnings(tokenizer) -> bool:
    """Whether tokens tell where a word begins, "▁teddy" (SentencePiece: T5, Gemma), and not where it ends (CLIP)."""
    return any(token.startswith("▁") for token in tokenizer.tokenize("a a"))


def drops_spaces(tokenizer) -> bool:
    """Whether spaces are nothing but borders of words, as T5's tokenizer has it."""
    return tokenizer.tokenize("a  ,") == tokenizer.tokenize("a ,")


def pieces(tokenizer, super_category: str) -> list[int]:
    """The ids of the tokens that the super-category word is amid a sentence: one, or of SentencePiece several.

    Raises UserError, naming the nearest words, for what is not one word, or not one token of a tokenizer of CLIP's kind.
    """
    if marks_beginnings(tokenizer):
        count = len(tokenizer("a", add_special_tokens=False).input_ids)
        ids = tokenizer(f"a {super_category.lower()}", add_special_tokens=False).input_ids[count:]
        if len(super_category.split()) == 1 and tokenizer.unk_token_id not in ids:
            return ids
        raise UserError(
            f'super_category="{super_category}" must be one word that the tokenizer can spell, such as '
            f'"{super_category.split()[-1] if super_category.strip() else "teddy"}".'
        )
    ids = tokenizer(super_category, add_special_tokens=False).input_ids
    if len(ids) == 1 and ids[0] not in tokenizer.all_special_ids:
        return ids
    raise UserError(
        f'super_category="{super_category}" is {len(ids)} tokens of the tokenizer, exactly 1 is allowed; '
        f"the nearest single-token words are: {', '.join(near_words(tokenizer, super_category)) or 'none'}."
    )


def single_token(tokenizer, super_category: str) -> int:
    """The id of the one token that carries the super-category word: the only one, or the last of its `pieces`, which has
    read the whole word in a causal text encoder too. Raises UserError as `pieces` does."""
    return pieces(tokenizer, super_category)[-1]


def spellings(tokenizer, super_category: str) -> list[list[int]]:
    """The ids that the word may be in a prompt: amid a sentence, or where no space stands before it."""
    return [pieces(tokenizer, super_category), tokenizer(super_category.lower(), add_special_tokens=False).input_ids]


def at_word(ids: Tensor, word: list[int]) -> Tensor:
    """bool [B, T]: the last token of every place where ids [B, T] hold the pieces of a word."""
    here = ids == word[-1]
    for back, piece in enumerate(reversed(word[:-1]), 1):
        here = here & F.pad(ids[:, :-back] == piece, (back, 0))
    return here


def near_words(tokenizer, text: str, most: int = 5) -> list[str]:
    """The single-token words nearest to `text` in spelling: the word itself first, else those that a phrase holds."""
    marked = [token for token in tokenizer.get_vocab() if token.startswith("▁") or token.endswith("</w>")]
    words = [word for t in marked if (word := t.removeprefix("▁").removesuffix("</w>")).isalpha()]
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
    # Where a token tells that its word begins, the space before it is a part of it, and is looked for as it was typed.
    bar = marks_beginnings(tokenizer)
    # All at once: each call builds the search for added tokens anew.
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=not bar, lstrip=bar) for word in seen])
    return tokenizer, {trigger: tokenizer.convert_tokens_to_ids(word) for word, trigger in seen.items()}


def _light_copy(tokenizer):
    """A tokenizer that can be given words of its own; the vocabulary and merges are shared, never written to.

    A deep copy of CLIP's 49,408 rows takes half a second, this a tenth of a millisecond.
    """
    base = tokenizer.backend_tokenizer
    backend = Tokenizer(base.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if getattr(base, part) is not None:
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
            # T5's matrix is looked up by another module than the one it is said to be of.
            own_matrix = tower.get_input_embeddings()
            tied = lambda m, weight=own_matrix.weight: isinstance(m, torch.nn.Embedding) and m.weight is weight
            for lookup in {own_matrix, *filter(tied, tower.modules())}:
                self._handles.append(lookup.register_forward_hook(hooks.write))
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
        scale = getattr(module, "scalar_embed_scale", 1)  # Gemma's looks a row up and multiplies it
        for token_id in self.rows.keys() & set(ids.unique().tolist()):  # of many concepts a prompt holds few
            # The ids' own device may be another than the encoder's, under CPU offload.
            here = (ids == token_id).to(output.device)[..., None]
            output = torch.where(here, self.rows[token_id][self.part].to(output) * scale, output)
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


def tokenize(tokenizer, prompts: list[str], text_encoder=None, words: dict[str, int] | None = None) -> Tensor:
    """Token ids [B, T], padded and cut to the limit as diffusers does; warns where a prompt is cut.

    text_encoder: needed where it prepares prompts itself (text_encoders.Captioned). words: {placeholder: token id}: the
    warning names those of them that no part of the prompt is left of.
    """
    limit = getattr(text_encoder, "limit", tokenizer.model_max_length)
    for prompt, ids in zip(prompts, tokenizer(prompts, truncation=False, verbose=False).input_ids):
        if len(ids) > limit:
            lost = [word for word, i in (words or {}).items() if i in ids and i not in ids[: limit - 1]]
            without = f", {' and '.join(lost)} among them, without which it is drawn" if lost else ""
            warnings.warn(
                f'prompt "{prompt}" has {len(ids)} tokens, the text encoder takes {limit}: '
                f"the last {len(ids) - limit} before the end are ignored{without}; shorten it.",
                stacklevel=2,
            )
    if hasattr(text_encoder, "tokenize"):
        return text_encoder.tokenize(tokenizer, prompts)
    return tokenizer(prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt").input_ids


@dataclass
class Encoded:
    """Prompts, as cross-attentions and denoiser take them.

    e [B, T, d]: what the cross-attentions see; ids [B, T]; given [B, T, c], mask [B, T]: where the denoiser projects its
    encodings, what it is called with; pooled [B, p]: SDXL's pooled embeddings, or what else the text encoder returns second.
    """

    e: Tensor
    ids: Tensor
    given: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def with_columns(self, gated: Tensor) -> Tensor:
        """The denoiser's encodings for gated = edit.augment(e, ...) [B, T, d + 2J]: its columns beside what it is given."""
        return gated if self.given is None else torch.cat([self.given, gated[..., self.e.shape[-1] :]], -1)


def encode(tokenizer, text_encoder, prompts: list[str], rows: dict[int, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Encodings [B, T, d] and token ids [B, T] (on the same device); `ids == token_id` are a word's positions.

    rows: {placeholder's token id: embedding}, differentiable; None where the hooks are installed already, or not
    needed.
    """
    text = encoded(tokenizer, text_encoder, prompts, rows)
    return text.e, text.ids


def encoded(tokenizer, text_encoder, prompts: list[str], rows: dict[int, Tensor] | None = None) -> Encoded:
    """`encode`, with all that the denoiser is told."""
    device = towers(text_encoder)[0].get_input_embeddings().weight.device
    ids = tokenize(tokenizer, prompts, text_encoder).to(device)
    with placeholder_rows(text_encoder, rows):
        if hasattr(text_encoder, "project"):
            given, mask = text_encoder.given(ids)
            return Encoded(text_encoder.project(given), text_encoder.kept(ids), given, mask)
        e, pooled = text_encoder(ids)[:2]
    return Encoded(e, ids, pooled=pooled)


def twin_prompts(prompts: list[str], super_categories: dict[str, str], spaced: bool = False) -> list[str]:
    """The prompts with every trigger replaced by its super-category's word: no other token changes, and none moves where
    the word is one token (else see `aligned`).

    spaced: words apart from what follows, as a placeholder is; for a tokenizer that `drops_spaces`.
    """
    for trigger, super_category in super_categories.items():
        pattern = written(trigger)
        prompts = [pattern.sub(lambda _, word=super_category: f" {word} " if spaced else word, p) for p in prompts]
    return prompts


def aligned(ids: Tensor, twin: Tensor, words: dict[int, list[list[int]]]) -> Tensor:
    """For every token of prompts ids [B, T] the position of its own in the twins' ids [B, T]: [B, T].

    words: {placeholder's token id: the ways to spell its super-category}; of several pieces the last one's position.
    """
    length = ids.shape[1]
    positions = torch.arange(length).repeat(len(ids), 1)
    for row, theirs, to in zip(ids.tolist(), twin.tolist(), positions):
        j = 0
        for i, token in enumerate(row):
            j += max((len(word) for word in words.get(token, ()) if theirs[j : j + len(word)] == word), default=1)
            to[i] = min(j, length) - 1
    return positions


def held_tokens(tokenizer, prompts: list[str], text_encoder=None) -> list[set[int]]:
    """The token ids that each prompt holds within the text encoder's limit."""
    if hasattr(text_encoder, "tokenize"):
        return [set(row) for row in text_encoder.tokenize(tokenizer, prompts, "longest").tolist()]
    return [set(row) for row in tokenizer(prompts, truncation=True, max_length=tokenizer.model_max_length).input_ids]


def mean_at(encodings: Tensor, positions: Tensor) -> Tensor:
    """Mean encoding [d] over the marked positions (bool [B, T]) of encodings [B, T, d]."""
    return encodings[positions].mean(0)


@torch.no_grad()
def super_encoding(tokenizer, text_encoder, super_category: str) -> Tensor:
    """The super-category's encoding [d], float32: its (last) token's, averaged over TEMPLATES.

    A function of the base model and the word alone, so the local lock's o*_K = W_K . (this) need not be stored:
    training and inference both call this. (The paper's start is a mean over the first batch, a random draw of the
    same templates.)
    """
    word = pieces(tokenizer, super_category)
    encodings, ids = encode(tokenizer, text_encoder, [t.format(super_category) for t in TEMPLATES])
    return mean_at(encodings.float(), at_word(ids, word))


@torch.no_grad()
def word_embedding(tokenizer, text_encoder, word: str) -> Tensor:
    """The embedding [d_tok] of a word, float32, the mean of its pieces': where a learned embedding starts. Of all towers in turn."""
    ids = pieces(tokenizer, word)
    return torch.cat([tower.get_input_embeddings().weight[ids].float().mean(0) for tower in towers(text_encoder)])

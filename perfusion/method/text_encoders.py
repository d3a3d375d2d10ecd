"""The text side of a pipeline as one text encoder: Stable Diffusion's own, both of SDXL's with their encodings side by side,
or PixArt's T5 and Sana's Gemma with the denoiser's caption projection behind them."""

import copy
import inspect
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from perfusion.errors import UserError
from perfusion.method.caption_projection import caption_projection
from perfusion.method.denoiser import denoiser_of
from perfusion.method.layers import plain
from perfusion.method.memo import kept


def tokenizers_of(pipe) -> dict:
    """The pipeline's tokenizers by their names, one for each text encoder that `text_encoder_of` joins."""
    names = ("tokenizer", "tokenizer_2") if getattr(pipe, "text_encoder_2", None) is not None else ("tokenizer",)
    return {name: getattr(pipe, name) for name in names}


def base_size(tokenizer) -> int:
    """How many tokens the base model's tokenizer has: those before the first that was added to it, by a textual inversion."""
    added = (
        i for i, token in tokenizer.added_tokens_decoder.items() if i >= tokenizer.vocab_size and not token.special
    )
    return min(added, default=len(tokenizer))


def text_encoder_of(pipe) -> nn.Module:
    """What turns token ids of `pipe.tokenizer` into what the cross-attentions see: pipe.text_encoder, `Towers` or `Captioned`.

    Raises UserError where two tokenizers do not share one vocabulary: their encodings would not stand side by side.
    """
    if parts := caption_projection(plain(denoiser_of(pipe))):
        return Captioned(pipe, parts)
    if getattr(pipe, "text_encoder_2", None) is None:
        return pipe.text_encoder
    one, two = pipe.tokenizer, pipe.tokenizer_2
    # What was added to one of them, by a textual inversion, is no part of the base. Comparing 49,408 rows takes longer than
    # all else in load_concepts.
    own = lambda tokenizer, size: {word: i for word, i in tokenizer.get_vocab().items() if i < size}
    if not kept(
        pipe, "vocabulary", (one, two, len(one), len(two)), lambda: own(one, base_size(one)) == own(two, base_size(two))
    ):
        raise UserError(
            f"tokenizer and tokenizer_2 of {type(pipe).__name__} have different vocabularies ({len(pipe.tokenizer)} and "
            f"{len(pipe.tokenizer_2)} tokens); pipelines whose text encoders share one (SDXL's) are allowed."
        )
    return Towers([pipe.text_encoder, pipe.text_encoder_2], [pipe.tokenizer, pipe.tokenizer_2])


class Towers(nn.Module):
    """SDXL's text encoders as one: ids [B, T] of the first tokenizer to (encodings [B, T, d_1 + d_2], pooled [B, p]).

    The encodings are the penultimate layers' (without the final norm), the pooled embedding is the last tower's, as
    StableDiffusionXLPipeline.encode_prompt has it. i*, C and the energies live on the concatenation.
    """

    def __init__(self, text_encoders: list[nn.Module], tokenizers: list):
        super().__init__()
        self.towers = nn.ModuleList(text_encoders)
        self.config = SimpleNamespace(hidden_size=sum(tower.config.hidden_size for tower in text_encoders))
        self.pads, self.eos = [t.pad_token_id for t in tokenizers], tokenizers[0].eos_token_id

    def get_input_embeddings(self) -> nn.Module:
        """The first tower's: says where ids belong. text.word_embedding reads all of them."""
        return self.towers[0].get_input_embeddings()

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        ends = ids == self.eos
        padding = (ends.cumsum(1) - ends.long()) > 0  # after the first EOS; the tokenizers differ in nothing else
        outputs = [
            tower(ids.masked_fill(padding, pad), output_hidden_states=True)
            for tower, pad in zip(self.towers, self.pads)
        ]
        return torch.cat([o.hidden_states[-2] for o in outputs], -1), outputs[-1][0]


class Captioned(nn.Module):
    """A text encoder with an attention mask, and the denoiser's projection of what it gives (PixArt's T5, Sana's Gemma 2).

    ids [B, L] of `tokenize` to (encodings [B, T, d], None). Prompts are prepared as the pipeline's own `__call__` does by
    default: lower-cased, up to `limit` tokens, after `preamble` where there is one (Sana's complex_human_instruction), of
    whose encodings the first alone is kept.
    """

    def __init__(self, pipe, parts: list[nn.Module]):
        super().__init__()
        self.towers, self.projection = nn.ModuleList([pipe.text_encoder]), nn.ModuleList(parts)
        self.config = SimpleNamespace(hidden_size=parts[0].linear_2.out_features)
        default = {name: p.default for name, p in inspect.signature(type(pipe).__call__).parameters.items()}
        if "max_sequence_length" not in default:
            raise UserError(
                f"{type(pipe).__name__} projects its encodings in a way that is not known here; of such pipelines PixArt's and "
                "Sana's are allowed."
            )
        self.pad = pipe.tokenizer.pad_token_id
        self._ask(pipe.tokenizer, default["max_sequence_length"], default.get("complex_human_instruction"))

    def _ask(self, tokenizer, limit: int, instruction: list[str] | None) -> None:
        self.limit, self.preamble = limit, "\n".join(instruction or [])
        self.skip = len(tokenizer.encode(self.preamble)) - 1 if self.preamble else 1

    def asked(self, tokenizer, limit: int, instruction: list[str] | None) -> "Captioned":
        """The same encoder for a call with another limit, or another preamble."""
        twin = copy.copy(self)
        twin._ask(tokenizer, limit, instruction)
        return twin

    def get_input_embeddings(self) -> nn.Module:
        return self.towers[0].get_input_embeddings()

    def tokenize(self, tokenizer, prompts: list[str], padding: str = "max_length") -> Tensor:
        """Token ids [B, L] as the pipeline makes them, the preamble's among them."""
        prompts = [self.preamble + p.lower().strip() for p in prompts]
        limit = self.limit + self.skip - 1
        return tokenizer(
            prompts, padding=padding, max_length=limit, truncation=True, padding_side="right", return_tensors="pt"
        ).input_ids

    def kept(self, x: Tensor) -> Tensor:
        """Of ids or encodings [B, L, ..] those that the denoiser is given, [B, T, ..]."""
        return torch.cat([x[:, :1], x[:, self.skip :]], dim=1)

    def given(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the denoiser is called with: encodings before the projection [B, T, c], and their attention mask [B, T]."""
        mask = (ids != self.pad).long()
        return self.kept(self.towers[0](ids, attention_mask=mask)[0]), self.kept(mask)

    def project(self, e: Tensor) -> Tensor:
        """Encodings [B, T, c] as the cross-attentions see them, [B, T, d]."""
        weight = self.projection[0].linear_1.weight
        projected = e.to(weight)
        for part in self.projection:
            projected = part(projected)
        return projected.to(e.device)

    def forward(self, ids: Tensor) -> tuple[Tensor, None]:
        return self.project(self.given(ids)[0]), None

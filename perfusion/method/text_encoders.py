"""The text side of a pipeline as one text encoder: Stable Diffusion's own, or both of SDXL's with their encodings side by side."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from perfusion.errors import UserError
from perfusion.method.memo import kept


def tokenizers_of(pipe) -> dict:
    """The pipeline's tokenizers by their names, one for each text encoder that `text_encoder_of` joins."""
    names = ("tokenizer", "tokenizer_2") if getattr(pipe, "text_encoder_2", None) is not None else ("tokenizer",)
    return {name: getattr(pipe, name) for name in names}


def base_size(tokenizer) -> int:
    """How many tokens the base model's tokenizer has: those before the first that was added to it, by a textual inversion."""
    added = (i for i, token in tokenizer.added_tokens_decoder.items() if i >= tokenizer.vocab_size and not token.special)
    return min(added, default=len(tokenizer))


def text_encoder_of(pipe) -> nn.Module:
    """What turns token ids of `pipe.tokenizer` into what the cross-attentions see: pipe.text_encoder, or `Towers`.

    Raises UserError where two tokenizers do not share one vocabulary: their encodings would not stand side by side.
    """
    if getattr(pipe, "text_encoder_2", None) is None:
        return pipe.text_encoder
    one, two = pipe.tokenizer, pipe.tokenizer_2
    # What was added to one of them, by a textual inversion, is no part of the base. Comparing 49,408 rows takes longer than
    # all else in load_concepts.
    own = lambda tokenizer, size: {word: i for word, i in tokenizer.get_vocab().items() if i < size}
    if not kept(pipe, "vocabulary", (one, two, len(one), len(two)), lambda: own(one, base_size(one)) == own(two, base_size(two))):
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

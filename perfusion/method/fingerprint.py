"""Hashes of weights: what a concept depends on, told from its numbers alone."""

import hashlib
from collections.abc import Iterable
from functools import cached_property

from torch import Tensor, nn

from perfusion.method.denoiser import denoiser_of
from perfusion.method.layers import cross_attentions, is_lora
from perfusion.method.memo import remembered
from perfusion.method.text import towers
from perfusion.method.text_encoders import base_size, text_encoder_of, tokenizers_of


def tensors_hash(tensors: Iterable[Tensor]) -> str:
    """First 128 bits of the sha256 of shapes and values, as hex. Values are taken in float16, so that the same weights
    loaded in float32 or float16 have one hash; names are left out, because libraries rename modules."""
    digest = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().cpu()
        tensor = tensor.half() if tensor.is_floating_point() else tensor
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def base_hash(text_encoder: nn.Module, denoiser: nn.Module, tokens: list[int] | None = None) -> str:
    """Hash of what a concept depends on: the text encoder's weights (of a transformer's caption projection too, which
    text_encoder_of puts behind it) and every cross-attention's W_K and W_V.

    Of LoRAs that are loaded beside it a concept does not depend: they are left out. tokens: how many the base model has,
    of each text encoder; embeddings of more, which a textual inversion adds, are left out too. None: all are the base's."""
    text = text_encoder.state_dict(keep_vars=True)
    return tensors_hash(base_weights(text_encoder, text, cross_attentions(denoiser), tokens))


def base_weights(
    text_encoder: nn.Module, text: dict[str, Tensor], attentions: dict[str, nn.Module], tokens: list[int] | None = None
) -> list[Tensor]:
    """The tensors of `base_hash`; text: the text encoder's state_dict, of its very Parameters."""
    embeddings = [tower.get_input_embeddings().weight for tower in towers(text_encoder)]
    count = {id(w): n for w, n in zip(embeddings, tokens or [len(w) for w in embeddings], strict=True)}
    own = [w[: count[id(w)]] if id(w) in count else w for name, w in text.items() if "lora_" not in name]
    return [*own, *(w for a in attentions.values() for w in (a.to_k.weight, a.to_v.weight))]


class Base:
    """A pipeline's base model as it is now: what a concept depends on, each part looked up once, when it is asked for."""

    def __init__(self, pipe):
        self.pipe, self.denoiser = pipe, denoiser_of(pipe)

    @cached_property
    def attentions(self) -> dict[str, nn.Module]:
        return cross_attentions(self.denoiser)

    @cached_property
    def text_encoder(self) -> nn.Module:
        return text_encoder_of(self.pipe)

    @cached_property
    def text(self) -> dict[str, Tensor]:
        return self.text_encoder.state_dict(keep_vars=True)

    @property
    def has_lora(self) -> bool:
        """Whether a LoRA lies on the text encoder or on a W_K: it is switched and scaled without any weight changing."""
        return any("lora_" in name for name in self.text) or any(is_lora(a.to_k) for a in self.attentions.values())

    @cached_property
    def weights(self) -> list[Tensor]:
        """`base_weights`, embeddings that are not the base model's left out."""
        tokens = []
        for tower, tokenizer in zip(towers(self.text_encoder), tokenizers_of(self.pipe).values(), strict=True):
            rows, size = len(tower.get_input_embeddings().weight), base_size(tokenizer)
            # Some matrices have more rows than there are tokens, rounded up.
            tokens.append(size if size < len(tokenizer) else rows)
        return base_weights(self.text_encoder, self.text, self.attentions, tokens)

    @cached_property
    def known(self) -> dict:
        """What was computed of the weights before; {} where they are others now, or were written to."""
        return remembered(self.pipe, "base", self.weights, dict)

    @property
    def hash(self) -> str:
        """`base_hash`, computed once for as long as the weights stay (or of those before a cast)."""
        if hasattr(self.pipe, "_perfusion_base_hash"):
            return self.pipe._perfusion_base_hash
        if "hash" not in self.known:
            self.known["hash"] = tensors_hash(self.weights)
        return self.known["hash"]


def hash_of(pipe) -> str:
    """`base_hash` of a pipeline."""
    return Base(pipe).hash

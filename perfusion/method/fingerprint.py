"""Hashes of weights: what a concept depends on, told from its numbers alone."""

import hashlib
from collections.abc import Iterable

from torch import Tensor, nn

from perfusion.method.denoiser import denoiser_of
from perfusion.method.layers import cross_attentions
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
    return tensors_hash(base_weights(text_encoder, denoiser, tokens))


def base_weights(text_encoder: nn.Module, denoiser: nn.Module, tokens: list[int] | None = None) -> list[Tensor]:
    layers = cross_attentions(denoiser).values()
    embeddings = [tower.get_input_embeddings().weight for tower in towers(text_encoder)]
    count = {id(w): n for w, n in zip(embeddings, tokens or [len(w) for w in embeddings], strict=True)}
    text = [
        w[: count[id(w)]] if id(w) in count else w
        for name, w in text_encoder.state_dict(keep_vars=True).items()
        if "lora_" not in name
    ]
    return [*text, *(w for a in layers for w in (a.to_k.weight, a.to_v.weight))]


def known_of(pipe) -> dict:
    """What was computed of the pipeline's base model: {} anew once its weights are others, or were written to."""
    return remembered(pipe, "base", base_weights(*_parts(pipe)), dict)


def hash_of(pipe, known: dict | None = None) -> str:
    """`base_hash` of a pipeline, computed once for as long as its weights stay (or of those before a cast).

    known: what `known_of` gave just now, which looks at every weight."""
    if hasattr(pipe, "_perfusion_base_hash"):
        return pipe._perfusion_base_hash
    known = known_of(pipe) if known is None else known
    if "hash" not in known:
        known["hash"] = base_hash(*_parts(pipe))
    return known["hash"]


def _parts(pipe) -> tuple[nn.Module, nn.Module, list[int]]:
    """The arguments of `base_hash`."""
    text_encoder = text_encoder_of(pipe)
    tokens = []
    for tower, tokenizer in zip(towers(text_encoder), tokenizers_of(pipe).values(), strict=True):
        rows, size = len(tower.get_input_embeddings().weight), base_size(tokenizer)
        tokens.append(size if size < len(tokenizer) else rows)  # some matrices have more rows than tokens, rounded up
    return text_encoder, denoiser_of(pipe), tokens

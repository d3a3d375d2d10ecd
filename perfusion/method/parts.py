"""Whether a pipeline still has the parts that its concepts were put on: an exchanged one would draw without them."""

from perfusion.errors import UserError
from perfusion.method.denoiser import denoiser_of
from perfusion.method.layers import WidenedLinear, is_fused, plain
from perfusion.method.text import towers


def check_parts(pipe, layer: str, tokenizers: dict, text_encoder) -> None:
    """Raises UserError where a part of the pipeline is not as it was when concepts were loaded.

    layer: the name of one attention that was widened then. tokenizers: {the pipeline's name for it: the one with the
    concepts' words}. text_encoder: as text_encoder_of gave it.
    """
    changed, denoiser = [], plain(denoiser_of(pipe))
    attention = dict(denoiser.named_modules()).get(layer)
    if not isinstance(getattr(attention, "to_k", None), WidenedLinear) or is_fused(attention):
        changed.append(type(denoiser).__name__)
    changed += [name for name, tokenizer in tokenizers.items() if getattr(pipe, name) is not tokenizer]
    encoders = {name: getattr(pipe, name) for name in ("text_encoder", "text_encoder_2")[: len(tokenizers)]}
    for (name, encoder), tower in zip(encoders.items(), towers(text_encoder), strict=True):
        changed += [name] if plain(encoder) is not plain(tower) else []
    if changed:
        raise UserError(
            f"{' and '.join(changed)} of this {type(pipe).__name__} was exchanged, or its projections fused, after "
            "load_concepts; call unload() on the handle, then load_concepts on the pipeline as it shall be."
        )

"""Attention maps of a stock UNet: where each text token is looked at, averaged over heads, layers and steps."""

from contextlib import contextmanager

from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn.functional import interpolate

from perfusion.projections import cross_attentions


class AttentionMaps:
    """Running mean of cross-attention probabilities by token. `maps` is [B, T, side, side]; None before the first call.

    Latents [.., height, width] need not be square; `seen` is told of them before every call of the UNet.
    """

    def __init__(self, side: int):
        self.side, self.total, self.calls, self.latents = side, None, 0, None

    def seen(self, unet, args: tuple, kwargs: dict) -> None:
        """A forward pre-hook."""
        self.latents = (args[0] if args else kwargs["sample"]).shape[-2:]

    def add(self, probabilities: Tensor, heads: int) -> None:
        """probabilities [B * heads, pixels, T] of one layer at one step."""
        n, pixels, tokens = probabilities.shape
        h, w = self.latents
        while h * w > pixels:  # a downsampling convolution rounds up
            h, w = -(-h // 2), -(-w // 2)
        mean = probabilities.float().reshape(n // heads, heads, h, w, tokens).mean(1).permute(0, 3, 1, 2)
        mean = interpolate(mean, size=(self.side, self.side), mode="bilinear") * (pixels / self.side**2)  # mass kept
        self.total = mean if self.total is None else self.total + mean
        self.calls += 1

    @property
    def maps(self) -> Tensor | None:
        return None if self.total is None else self.total / self.calls


class _Recorder(AttnProcessor):
    """The plain processor, with its probabilities read on the way: what it computes stays the same."""

    def __init__(self, maps: AttentionMaps):
        self.maps = maps

    def __call__(self, attn, *args, **kwargs):
        scores = attn.get_attention_scores

        def read(*inner):
            probabilities = scores(*inner)
            self.maps.add(probabilities, attn.heads)
            return probabilities

        attn.get_attention_scores = read
        try:
            return super().__call__(attn, *args, **kwargs)
        finally:
            del attn.get_attention_scores


@contextmanager
def attention_maps(unet, side: int):
    """Record every cross-attention of `unet` while a with-block runs; the processors are put back afterwards.

    Under classifier-free guidance the first half of the batch is the empty prompt's.
    """
    layers, maps = cross_attentions(unet).values(), AttentionMaps(side)
    before = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(_Recorder(maps))
    hook = unet.register_forward_pre_hook(maps.seen, with_kwargs=True)
    try:
        yield maps
    finally:
        hook.remove()
        for layer, processor in zip(layers, before):
            layer.set_processor(processor)

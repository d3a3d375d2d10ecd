"""Attention maps of a stock denoiser, averaged over heads, layers and steps: where each token, and each word of a drawn prompt,
is looked at (the paper's Figures 2 and 11)."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from perfusion.method.denoiser import denoiser_of
from perfusion.method.layers import cross_attentions, plain
from perfusion.method.sampling import Sampling, draw
from perfusion.method.text import marks_beginnings, tokenize
from perfusion.method.text_encoders import text_encoder_of

SIDE = 32  # of a word's map


class AttentionMaps:
    """Running mean of cross-attention probabilities by token. `maps` is [B, T, side, side]; None before the first call.

    Latents [.., height, width] need not be square; `seen` is told of them before every call of the denoiser.
    """

    def __init__(self, side: int):
        self.side, self.calls, self.latents = side, 0, (side, side)
        self.total: Tensor | None = None

    def seen(self, denoiser, args: tuple, kwargs: dict) -> None:
        """A forward pre-hook."""
        sample = args[0] if args else kwargs["sample" if "sample" in kwargs else "hidden_states"]
        self.latents = sample.shape[-2:]

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


class Recorder(AttnProcessor):
    """The plain processor, with its probabilities read on the way: what it computes stays the same.

    maps: AttentionMaps, or another that has its `add`.
    """

    def __init__(self, maps):
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
def attention_maps(denoiser, side: int):
    """Record every cross-attention of `denoiser` while a with-block runs; the processors are put back afterwards.

    Under classifier-free guidance the first half of the batch is the empty prompt's.
    """
    layers, maps = cross_attentions(denoiser).values(), AttentionMaps(side)
    before = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(Recorder(maps))
    hook = plain(denoiser).register_forward_pre_hook(maps.seen, with_kwargs=True)
    try:
        yield maps
    finally:
        hook.remove()
        for layer, processor in zip(layers, before):
            layer.set_processor(processor)


@dataclass
class Looked:
    """A drawn picture, and each word's map [side, side]: the mean over heads, layers and steps of the word's tokens."""

    prompt: str
    picture: Image.Image
    maps: dict[str, Tensor]


def word_positions(tokenizer, prompt: str, text_encoder=None) -> dict[str, list[int]]:
    """{word: positions of its tokens} in a tokenized prompt; a word said twice has the positions of both.

    text_encoder: needed where it prepares prompts itself (text_encoders.Captioned).
    """
    ids, positions, word, here = tokenize(tokenizer, [prompt], text_encoder), {}, "", []
    ids = text_encoder.kept(ids) if hasattr(text_encoder, "kept") else ids
    added, bar, outside = tokenizer.get_added_vocab(), marks_beginnings(tokenizer), set(tokenizer.all_special_ids)

    def end() -> None:
        nonlocal word, here
        if word:
            positions[word] = positions.get(word, []) + here
        word, here = "", []

    for position, token in enumerate(tokenizer.convert_ids_to_tokens(ids[0].tolist())):
        if int(ids[0, position]) in outside:
            if position:
                break
            continue
        if token in added or token.startswith("▁"):
            end()
        word, here = word + token.removesuffix("</w>").removeprefix("▁"), [*here, position]
        if token in added or (not bar and token.endswith("</w>")):
            end()
    end()
    return positions


@torch.no_grad()
def look(pipe, prompts: list[str], seeds: list[int], sampling: Sampling, side: int = SIDE) -> list[Looked]:
    """Draw as `draw` does, under classifier-free guidance, and record every word's map."""
    looked, text_encoder = [], text_encoder_of(pipe)
    for start in range(0, len(prompts), sampling.batch):
        part = slice(start, start + sampling.batch)
        with attention_maps(denoiser_of(pipe), side) as recorded:
            pictures = draw(pipe, prompts[part], seeds[part], sampling)
        for prompt, picture, maps in zip(prompts[part], pictures, recorded.maps[-len(pictures) :]):
            words = word_positions(pipe.tokenizer, prompt, text_encoder)
            looked.append(Looked(prompt, picture, {word: maps[at].mean(0).cpu() for word, at in words.items()}))
    return looked

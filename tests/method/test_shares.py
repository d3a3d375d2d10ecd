"""Attention maps by word: the hook changes nothing, the maps are probabilities, the share is what it says."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from perfusion.evaluation.shares import inside
from perfusion.method.attention import attention_maps, look, word_positions
from perfusion.method.layers import cross_attentions
from perfusion.method.pipeline import load_concepts
from perfusion.method.sampling import Sampling, draw
from perfusion.plots import attention_rows, heat_overlay

SAMPLING = Sampling(steps=2, guidance=4.0, batch=2, resolution=16)


def test_recording_changes_no_picture_and_no_processor(pipe, make_concept):
    load_concepts(pipe, {"teddy*": make_concept(pipe)})
    prompts, seeds = ["a teddy* on the beach", "a teddy* in the snow", "the teddy*"], [1, 2, 3]
    before = dict(pipe.unet.attn_processors)
    plain = draw(pipe, prompts, seeds, SAMPLING)
    looked = look(pipe, prompts, seeds, SAMPLING, side=8)
    assert pipe.unet.attn_processors == before
    for a, one in zip(plain, looked, strict=True):
        difference = np.abs(np.asarray(a, int) - np.asarray(one.picture, int))
        assert difference.max() <= 1  # SDPA against the plain product: rounding alone
    assert [list(one.maps) for one in looked] == [["a", "teddy*", "on", "the", "beach"], ["a", "teddy*", "in", "the", "snow"],
                                                  ["the", "teddy*"]]  # fmt: skip
    alone = look(pipe, prompts[1:2], seeds[1:2], SAMPLING, side=8)[0]
    assert torch.allclose(alone.maps["teddy*"], looked[1].maps["teddy*"], atol=1e-5)  # not the empty prompt's half
    assert not torch.allclose(alone.maps["teddy*"], looked[0].maps["teddy*"], atol=1e-5)
    assert len(attention_rows(looked)[0][1]) == 6 and heat_overlay(plain[0], alone.maps["a"]).size == plain[0].size


def test_unet_with_the_hook_is_the_unet(pipe):
    x, e = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 32)
    with torch.no_grad():
        plain = pipe.unet(x, 5, e).sample
        with attention_maps(pipe.unet, 8) as recorded:
            hooked = pipe.unet(x, 5, e).sample
    assert torch.allclose(plain, hooked, atol=1e-5)
    assert recorded.maps.shape == (2, 16, 8, 8) and (recorded.maps >= 0).all()


@pytest.mark.parametrize("height, width", [(8, 8), (8, 16), (7, 9)])
def test_maps_are_the_mean_softmax_of_heads_and_layers(pipe, height, width):
    """Against every layer's own softmax, computed from its query and key."""
    seen, hooks = [], []
    for layer in cross_attentions(pipe.unet).values():

        def keep(attn, inputs, kwargs):
            x, e = inputs[0], kwargs["encoder_hidden_states"]
            q, k = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (attn.to_q(x), attn.to_k(e)))
            p = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1)  # [B, pixels, T]
            assert torch.allclose(p.sum(-1), torch.ones(p.shape[:2]), atol=1e-5)
            h, w = (round(n * (p.shape[1] / height / width) ** 0.5) for n in (height, width))
            seen.append(interpolate(p.mT.unflatten(-1, (h, w)), size=(8, 8), mode="bilinear") * (h * w / 64))

        hooks.append(layer.register_forward_pre_hook(keep, with_kwargs=True))
    with torch.no_grad(), attention_maps(pipe.unet, 8) as recorded:
        pipe.unet(torch.randn(2, 4, height, width), 5, torch.randn(2, 16, 32))
    [h.remove() for h in hooks]
    assert len(seen) > 1 and torch.allclose(recorded.maps, torch.stack(seen).mean(0), atol=1e-5)


def test_words_are_their_tokens(pipe, make_concept):
    load_concepts(pipe, {"teddy*": make_concept(pipe)})
    positions = word_positions(pipe.tokenizer, "a teddy* on a zebra")
    assert (
        positions["a"] == [1, 4]
        and positions["teddy*"] == [2]
        and positions["zebra"] == list(range(5, 5 + len(positions["zebra"])))
    )
    assert len(positions["zebra"]) > 1  # a word of several tokens


def test_share_inside_a_mask():
    heat = torch.zeros(4, 4)
    heat[:2, :2] = 3.0
    heat[3, 3] = 4.0
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 32))
    assert abs(inside(heat, mask) - 12 / 16) < 1e-6
    assert abs(inside(torch.ones(4, 4), mask) - 0.25) < 1e-6  # an even map has the mask's area

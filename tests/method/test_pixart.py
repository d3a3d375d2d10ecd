"""A transformer denoiser through the same projections.py: PixArt-Sigma's cross-attentions, biases and caption projection."""

import torch
from helpers import pixart

from perfusion.method.edit import augment
from perfusion.method.layers import WidenedLinear, cross_attentions, lock_o_star_k, widen


def targets(model, J, seed=0):
    g = torch.Generator().manual_seed(seed)
    o = lambda: {n: torch.randn(J, a.to_v.out_features, generator=g) for n, a in cross_attentions(model).items()}
    return torch.randn(J, 32, generator=g), o(), o()


def run(model, encodings):
    x = torch.randn(len(encodings), 4, 8, 8, generator=torch.Generator().manual_seed(5))
    mask = torch.ones(encodings.shape[:2])
    mask[:, -2:] = 0  # padding, which T5's encodings are masked by
    return model(x, encodings, torch.full((len(x),), 10), encoder_attention_mask=mask).sample


def test_only_the_cross_attentions_are_found():
    assert list(cross_attentions(pixart())) == ["transformer_blocks.0.attn2", "transformer_blocks.1.attn2"]


@torch.no_grad()
def test_layer_is_the_literal_formula():
    model = pixart()
    i_star, o_star, _ = targets(model, 2)
    name, attention = next(iter(cross_attentions(model).items()))
    e, gates, coefs = torch.randn(3, 5, 32), torch.rand(3, 5, 2), torch.rand(3, 5, 2)
    layer = WidenedLinear(attention.to_v, i_star, o_star[name], "v")
    W, b = attention.to_v.weight, attention.to_v.bias
    expected = (e - coefs @ i_star) @ W.T + b + gates @ o_star[name]
    torch.testing.assert_close(layer(torch.cat([e, gates, -coefs], -1)), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_whole_model_is_the_literal_formula():
    """Against Eq. 4 written out by hooks on the stock model's to_k and to_v."""
    model = pixart()
    i_star, o_star_v, o_star_k = targets(model, 2)
    t5 = torch.randn(2, 6, 40)
    e = model.caption_projection(t5)
    beta, tau = torch.full((1, 2), 0.2), torch.full((1, 2), 0.3)
    wide = augment(e, i_star, i_star, beta, tau)
    gates, coefs = wide[..., 32:34], -wide[..., 34:]
    handles = []
    for name, attention in cross_attentions(model).items():
        for layer, o_star in ((attention.to_k, o_star_k[name]), (attention.to_v, o_star_v[name])):
            edit = lambda m, args, out, o=o_star: out - coefs @ (i_star @ m.weight.T) + gates @ o
            handles.append(layer.register_forward_hook(edit))
    expected = run(model, t5)
    for handle in handles:
        handle.remove()
    assert not torch.allclose(run(model, t5), expected, atol=1e-3)
    widened = widen(model, i_star, o_star_v, o_star_k)
    torch.testing.assert_close(widened.project_captions(t5), e)
    torch.testing.assert_close(run(model, torch.cat([wide, wide], -1)), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_columns_of_zero_are_the_base_model_and_restore_is_exact():
    model, t5 = pixart(), torch.randn(2, 6, 40)
    before, state = run(model, t5), {k: v.clone() for k, v in model.state_dict().items()}
    layers = [m for a in cross_attentions(model).values() for m in (a.to_k, a.to_v)]
    widened = widen(model, *targets(model, 3))
    e = widened.project_captions(t5)
    assert torch.equal(run(model, torch.nn.functional.pad(e, (0, 6))), before)
    assert not torch.allclose(run(model, torch.cat([e, torch.rand(2, 6, 6)], -1)), before, atol=1e-3)
    with widened.paused():
        assert torch.equal(run(model, t5), before)
    widened.restore()
    assert torch.equal(run(model, t5), before)
    restored = [m for a in cross_attentions(model).values() for m in (a.to_k, a.to_v)]
    assert all(a is b for a, b in zip(layers, restored, strict=True))
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@torch.no_grad()
def test_keys_are_locked_and_outputs_are_kept():
    model, e = pixart(), torch.randn(2, 32)
    for name, o in lock_o_star_k(model, e).items():
        to_k = cross_attentions(model)[name].to_k
        torch.testing.assert_close(o, to_k(e) - to_k.bias)  # the bias is the layer's and not the concept's
    layer = widen(model, *targets(model, 1)).layers[0][1]
    x = torch.randn(1, 6, 34)
    assert layer(x) is layer(x)


def test_training_moves_o_star_alone():
    model = pixart().requires_grad_(False)
    i_star, o_star_v, _ = targets(model, 1)
    o_star_v = {name: torch.nn.Parameter(o) for name, o in o_star_v.items()}
    widen(model, i_star, o_star_v, lock_o_star_k(model, i_star))
    e = torch.randn(2, 6, 32, requires_grad=True)
    run(model, augment(e, i_star, i_star, torch.tensor(0.0), torch.tensor(1.0))).square().mean().backward()
    assert e.grad.abs().sum() > 0 and all(o.grad.abs().sum() > 0 for o in o_star_v.values())

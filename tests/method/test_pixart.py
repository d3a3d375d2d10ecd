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
    columns = augment(e, i_star, i_star, beta, tau)[..., 32:]
    gates, coefs, wide = columns[..., :2], -columns[..., 2:], torch.cat([t5, columns], -1)
    handles = []
    for name, attention in cross_attentions(model).items():
        for layer, o_star in ((attention.to_k, o_star_k[name]), (attention.to_v, o_star_v[name])):
            edit = lambda m, args, out, o=o_star: out - coefs @ (i_star @ m.weight.T) + gates @ o
            handles.append(layer.register_forward_hook(edit))
    expected = run(model, t5)
    for handle in handles:
        handle.remove()
    assert not torch.allclose(run(model, t5), expected, atol=1e-3)
    widen(model, i_star, o_star_v, o_star_k)
    torch.testing.assert_close(run(model, torch.cat([wide, wide], -1)), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_columns_of_zero_are_the_base_model_and_restore_is_exact():
    model, t5 = pixart(), torch.randn(2, 6, 40)
    before, state = run(model, t5), {k: v.clone() for k, v in model.state_dict().items()}
    layers = [m for a in cross_attentions(model).values() for m in (a.to_k, a.to_v)]
    widened = widen(model, *targets(model, 3))
    assert model.state_dict().keys() - state.keys() == set()
    assert torch.equal(run(model, torch.nn.functional.pad(t5, (0, 6))), before)
    assert not torch.allclose(run(model, torch.cat([t5, torch.rand(2, 6, 6)], -1)), before, atol=1e-3)
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
    layers, x = widen(model, *targets(model, 1)).layers, torch.randn(2, 6, 2 * 42)
    run(model, x)
    kept = [layer._kept[2] for _, layer in layers]
    run(model, x)
    assert all(a is layer._kept[2] for a, (_, layer) in zip(kept, layers, strict=True))
    run(model, x.clone())
    assert not any(a is layer._kept[2] for a, (_, layer) in zip(kept, layers, strict=True))


@torch.no_grad()
def test_keys_read_the_second_part_through_the_same_projection():
    model, t5, columns = pixart(), torch.randn(2, 6, 80), torch.rand(2, 6, 4)
    given = targets(model, 1)
    one = torch.cat([t5[..., :40], columns[..., :2]], -1)
    two = torch.cat([t5[..., 40:], columns[..., 2:]], -1)
    seen = {}
    for name, x in {"one": one, "two": two, "both": torch.cat([one, two], -1)}.items():
        widened = widen(model, *given)
        run(model, x)
        seen[name] = {(n, layer.part): layer._kept[2] for n, layer in widened.layers}
        widened.restore()
    for (layer, part), output in seen["both"].items():
        assert torch.equal(output, seen["one" if part == "v" else "two"][layer, part])


def test_training_moves_o_star_alone():
    model = pixart().requires_grad_(False)
    own = model.caption_projection
    i_star, o_star_v, _ = targets(model, 1)
    o_star_v = {name: torch.nn.Parameter(o) for name, o in o_star_v.items()}
    widen(model, i_star, o_star_v, lock_o_star_k(model, i_star))
    e = torch.randn(2, 6, 40, requires_grad=True)
    columns = augment(own(e), i_star, i_star, torch.tensor(0.0), torch.tensor(1.0))[..., 32:]
    run(model, torch.cat([e, columns], -1)).square().mean().backward()
    assert e.grad.abs().sum() > 0 and all(o.grad.abs().sum() > 0 for o in o_star_v.values())

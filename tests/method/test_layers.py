"""Widened layers: the literal formula, restoring, caching, training."""

import pytest
import torch
import torch.nn.functional as F
from helpers import sd15_unet

from perfusion.errors import UserError
from perfusion.method.edit import augment
from perfusion.method.layers import WidenedLinear, cross_attentions, lock_o_star_k, widen


def targets(model, J=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    o = lambda: {n: torch.randn(J, a.to_v.out_features, generator=g) for n, a in cross_attentions(model).items()}
    return torch.randn(J, 32, generator=g), o(), o()


def run(unet, encodings):
    x = torch.randn(len(encodings), 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return unet(x, torch.tensor(10), encodings).sample


def test_trainable_numbers_of_sd15():
    attentions = cross_attentions(sd15_unet())
    assert len(attentions) == 16
    assert sum(a.to_v.out_features for a in attentions.values()) + 768 == 13_248


def test_only_cross_attentions_are_found(pipe):
    assert all("attn2" in name for name in cross_attentions(pipe.unet))
    with pytest.raises(UserError, match="no cross-attention"):
        cross_attentions(pipe.vae)


@torch.no_grad()
def test_layer_is_the_literal_formula(pipe):
    i_star, o_star, _ = targets(pipe.unet, 2)
    name, attention = next(iter(cross_attentions(pipe.unet).items()))
    e, gates, coefs = torch.randn(3, 5, 32), torch.rand(3, 5, 2), torch.rand(3, 5, 2)
    layer = WidenedLinear(attention.to_v, i_star, o_star[name], "v")
    expected = (e - coefs @ i_star) @ attention.to_v.weight.T + gates @ o_star[name]
    torch.testing.assert_close(layer(torch.cat([e, gates, -coefs], -1)), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_columns_of_zero_are_the_base_model_and_restore_is_exact(pipe):
    e = torch.randn(2, 16, 32)
    before, state = run(pipe.unet, e), {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    layers = [m for a in cross_attentions(pipe.unet).values() for m in (a.to_k, a.to_v)]
    widened = widen(pipe.unet, *targets(pipe.unet, 3))
    assert pipe.unet.state_dict().keys() == state.keys()
    assert torch.equal(run(pipe.unet, F.pad(e, (0, 6))), before)
    assert not torch.allclose(run(pipe.unet, torch.cat([e, torch.rand(2, 16, 6)], -1)), before, atol=1e-3)
    with pytest.raises(UserError, match="32 wide"):
        run(pipe.unet, e)
    widened.restore()
    assert torch.equal(run(pipe.unet, e), before)
    assert all(
        a is b for a, b in zip(layers, [m for a in cross_attentions(pipe.unet).values() for m in (a.to_k, a.to_v)])
    )
    assert all(torch.equal(v, state[k]) for k, v in pipe.unet.state_dict().items())


@torch.no_grad()
def test_keys_and_values_can_have_different_encodings(pipe):
    widen(pipe.unet, *targets(pipe.unet))
    v, k = torch.randn(2, 1, 16, 34)
    attention = next(iter(cross_attentions(pipe.unet).values()))
    both = torch.cat([v, k], -1)
    assert torch.equal(attention.to_v(both), attention.to_v(v)) and torch.equal(attention.to_k(both), attention.to_k(k))


@torch.no_grad()
def test_outputs_are_kept_until_anything_changes(pipe):
    widened = widen(pipe.unet, *targets(pipe.unet))
    _, layer = widened.layers[0]
    x = torch.randn(1, 16, 34)
    first = layer(x)
    assert layer(x) is first  # the next denoising step
    assert layer(x.clone()) is not first
    for change in (
        lambda: x.mul_(2),
        lambda: layer.o_star.add_(1),
        lambda: widened.set_i_star(torch.ones(1, 32)),
        lambda: layer.weight.mul_(2),
    ):
        before = layer(x)
        change()
        assert not torch.equal(layer(x), before)
        assert torch.equal(layer(x), layer.project(x))
    layer.to(torch.float16)
    assert layer(x.half()).dtype == torch.float16


def test_inference_mode_works_and_keeps_nothing(pipe):
    layer = widen(pipe.unet, *targets(pipe.unet)).layers[0][1]
    with torch.inference_mode():
        x = torch.randn(1, 16, 34)
        before = layer(x)
        assert not torch.equal(layer(x.mul_(2)), before)


@torch.no_grad()
def test_paused(pipe):
    e = torch.randn(2, 16, 34)
    before = run(pipe.unet, e[..., :32])
    widened = widen(pipe.unet, *targets(pipe.unet))
    wide = run(pipe.unet, e)
    with widened.paused():
        assert torch.equal(run(pipe.unet, e[..., :32]), before)
        widen(pipe.unet, *targets(pipe.unet, seed=1)).restore()  # room for the public pipeline
    assert torch.equal(run(pipe.unet, e), wide)


def test_training_moves_o_star_alone(pipe):
    pipe.unet.requires_grad_(False)
    i_star, o_star_v, _ = targets(pipe.unet)
    o_star_v = {name: torch.nn.Parameter(o) for name, o in o_star_v.items()}
    widened = widen(pipe.unet, i_star, o_star_v, lock_o_star_k(pipe.unet, i_star))
    assert {n for n, p in pipe.unet.named_parameters() if p.requires_grad} == {f"{n}.to_v.o_star" for n in o_star_v}
    assert all(widened.o_star_v[name] is o for name, o in o_star_v.items())
    e = torch.randn(2, 16, 32, requires_grad=True)
    wide = augment(e, i_star, i_star, torch.tensor(0.0), torch.tensor(1.0))
    run(pipe.unet, wide).square().mean().backward()
    assert e.grad.abs().sum() > 0 and all(o.grad.abs().sum() > 0 for o in o_star_v.values())
    assert all(p.grad is None for p in pipe.unet.parameters() if not p.requires_grad)


def test_local_lock_is_the_key_of_the_super_category(pipe):
    e = torch.randn(2, 32)
    for name, o in lock_o_star_k(pipe.unet, e).items():
        torch.testing.assert_close(o, cross_attentions(pipe.unet)[name].to_k(e))


def test_refused(pipe):
    i_star, o_star_v, o_star_k = targets(pipe.unet)
    with pytest.raises(UserError, match="o_star_v has shapes"):
        widen(pipe.unet, i_star, dict(list(o_star_v.items())[1:]), o_star_k)
    with pytest.raises(UserError, match="i_star is 5 wide"):
        widen(pipe.unet, i_star[:, :5], o_star_v, o_star_k)
    widen(pipe.unet, i_star, o_star_v, o_star_k)
    with pytest.raises(UserError, match="already"):
        widen(pipe.unet, i_star, o_star_v, o_star_k)

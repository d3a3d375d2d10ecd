"""The mathematics as properties, in float64, against literal Eq. 3, Appendix B and perfusion-pytorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion.errors import UserError
from perfusion.method.edit import augment, energy, gate, inverse_metric, target_key

D, OUT, T = 12, 7, 5
seeds = st.integers(0, 10_000)
settings.register_profile("fast", max_examples=25, deadline=None)
settings.load_profile("fast")


def problem(seed: int, J: int = 1, B: int = 1):
    """Random C, W, e, i*, o*, beta, tau in float64."""
    g = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    x = randn(4 * D, D) * (1 + torch.arange(D))
    beta = 0.4 + 0.4 * torch.rand(B, J, generator=g, dtype=torch.float64)
    tau = 0.05 + 0.2 * torch.rand(B, J, generator=g, dtype=torch.float64)
    return x.T @ x / len(x), randn(OUT, D), randn(B, T, D), randn(J, D), randn(J, OUT), beta, tau


def linear(wide, W, o_star, i_star):
    """The widened layer: [W, o*_1..J, W i*_1..J] on augmented encodings."""
    return wide @ torch.cat([W, o_star.T, W @ i_star.T], dim=1).T


def edited(C, W, e, i_star, o_star, beta, tau, on=None):
    """This package's road."""
    keys = target_key(torch.linalg.inv(C), i_star)
    return linear(augment(e, i_star, keys, beta, tau, on), W, o_star, i_star)


def eq3(C, W, e, i_star, o_star, beta, tau):
    """Eq. 3, literally, for one concept (i_star [d], o_star [out], beta and tau numbers)."""
    C_inv = torch.linalg.inv(C)
    r = (e @ C_inv @ i_star) / (i_star @ C_inv @ i_star)
    return (e - r[..., None] * i_star) @ W.T + torch.sigmoid((r - beta) / tau)[..., None] * o_star


def appendix_b(C, W, e, i_star, o_star, beta, tau):
    """Eq. 4 with the orthogonal term of Appendix B: Cholesky root of C^-1, QR of the targets in the root's space."""
    C_inv = torch.linalg.inv(C)
    L_T = torch.linalg.cholesky(C_inv).T  # <a, b> = (L^T a) . (L^T b)
    Q, _ = torch.linalg.qr(L_T @ i_star.T)
    e_tilde = e @ L_T.T
    e_perp = (e_tilde - e_tilde @ Q @ Q.T) @ torch.linalg.inv(L_T).T
    r = torch.stack([(e @ C_inv @ i) / (i @ C_inv @ i) for i in i_star], dim=-1)
    return e_perp @ W.T + torch.sigmoid((r - beta[:, None]) / tau[:, None]) @ o_star


@given(seeds)
def test_one_concept_is_eq_3(seed):
    C, W, e, i, o, beta, tau = problem(seed)
    torch.testing.assert_close(edited(C, W, e, i, o, beta, tau), eq3(C, W, e, i[0], o[0], beta[0, 0], tau[0, 0]))


@given(seeds, st.integers(1, 5))
def test_gram_is_cholesky_and_qr(seed, J):
    x = problem(seed, J, B=2)
    torch.testing.assert_close(edited(*x), appendix_b(*x), rtol=1e-9, atol=1e-9)


@given(seeds, st.integers(1, 3), st.floats(1e-4, 1e4))
def test_scale_of_C_cancels(seed, J, scale):
    C, *x = problem(seed, J)
    torch.testing.assert_close(edited(C * scale, *x), edited(C, *x), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(inverse_metric(C * scale, 1e-3), inverse_metric(C, 1e-3), rtol=1e-5, atol=1e-6)


@given(seeds, st.integers(2, 3), st.floats(1e-3, 1e3))
def test_scale_of_each_key_cancels(seed, J, scale):
    C, _, e, i, _, beta, tau = problem(seed, J)
    keys = target_key(torch.linalg.inv(C), i)
    scaled = keys * torch.tensor([scale] + [1.0] * (J - 1)).double()[:, None]
    torch.testing.assert_close(augment(e, i, scaled, beta, tau), augment(e, i, keys, beta, tau))


@given(seeds)
def test_at_the_target_the_output_is_gate_times_o_star(seed):
    C, W, _, i, o, beta, tau = problem(seed)
    expected = torch.sigmoid((1 - beta) / tau) * o
    torch.testing.assert_close(edited(C, W, i[None], i, o, beta, tau)[0], expected)


@given(seeds)
def test_far_away_only_the_component_along_i_star_is_lost(seed):
    C, W, e, i, o, beta, tau = problem(seed)
    C_inv = torch.linalg.inv(C)
    e = e - energy(e, i, target_key(C_inv, i)) * i  # C^-1-orthogonal to i*: r = 0
    far = edited(C, W, e, i, o, torch.full_like(beta, 5.0), torch.full_like(tau, 0.1))
    torch.testing.assert_close(far, e @ W.T)


def test_published_gates():
    one = torch.ones(1, 1, 1)
    values = [
        gate(one, torch.tensor([[b]]), torch.tensor([[t]])).item() for b, t in ((0.75, 0.1), (0.75, 0.15), (0.60, 0.15))
    ]
    assert [round(v, 2) for v in values] == [0.92, 0.84, 0.94]


@given(seeds, st.integers(1, 4))
def test_per_sample_settings_equal_one_by_one(seed, J):
    C, W, e, i, o, beta, tau = problem(seed, J, B=3)
    together = edited(C, W, e, i, o, beta, tau)
    for b in range(3):
        torch.testing.assert_close(
            together[b : b + 1], edited(C, W, e[b : b + 1], i, o, beta[b : b + 1], tau[b : b + 1])
        )


@given(seeds, st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=2))
def test_a_concept_that_is_off_is_not_there(seed, on):
    C, W, e, i, o, beta, tau = problem(seed, 3, B=2)
    on = torch.tensor(on)
    wide = augment(e, i, target_key(torch.linalg.inv(C), i), beta, tau, on)
    out = linear(wide, W, o, i)
    for b in range(2):
        k = on[b]
        assert (wide[b, :, D:].reshape(T, 2, 3)[:, :, ~k] == 0).all()
        alone = (
            edited(C, W, e[b : b + 1], i[k], o[k], beta[b : b + 1, k], tau[b : b + 1, k])
            if k.any()
            else e[b : b + 1] @ W.T
        )
        torch.testing.assert_close(out[b : b + 1], alone)


def test_half_precision_is_computed_in_float32_under_autocast():
    C, _, e, i, _, beta, tau = problem(0, 2)
    keys = target_key(torch.linalg.inv(C), i)
    half = e.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        wide = augment(half, i.float(), keys.float(), beta, tau)
    assert wide.dtype == torch.bfloat16
    torch.testing.assert_close(wide, augment(half.double(), i, keys, beta, tau).bfloat16(), rtol=1e-2, atol=1e-2)


def test_gradient_reaches_the_encoding_only_and_is_right():
    C, _, e, i, _, beta, tau = problem(1, 2)
    keys = target_key(torch.linalg.inv(C), i)
    assert torch.autograd.gradcheck(lambda x: augment(x, i, keys, beta, tau), e.requires_grad_())


def test_shrinkage_makes_a_singular_C_usable():
    C = torch.zeros(4, 4)
    C[0, 0] = 1.0
    with pytest.raises(UserError, match="shrinkage=0"):
        inverse_metric(C, 0.0)
    assert torch.isfinite(inverse_metric(C, 1e-3)).all()


@pytest.mark.parametrize("J", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_perfusion_pytorch(seed, J):
    """Its no-Cholesky forward subtracts r_j i*_j one by one, which is the joint projection where the i* are
    C^-1-orthogonal, and an approximation elsewhere: compared on such i*."""
    perfusion = pytest.importorskip("perfusion_pytorch.perfusion")
    C, W, e, i, o, _, _ = problem(seed, J)
    C_inv = torch.linalg.inv(C)
    if J == 2:
        i[1] -= (i[0] @ C_inv @ i[1]) / (i[0] @ C_inv @ i[0]) * i[0]
    projection = torch.nn.Linear(D, OUT, bias=False)
    projection.weight.data = W.float()
    modules = []
    for j in range(J):  # its constructor fails for more than one concept; merging is its own way to several
        module = perfusion.Rank1EditModule(projection, C=C.float(), text_seq_len=T).eval()
        module.ema_concept_text_encs.copy_(i[j : j + 1])
        module.concept_outputs.data.copy_(o[j : j + 1])
        module.initted.fill_(True)
        modules.append(module)
    module = perfusion.merge_rank1_edit_modules(*modules) if J > 1 else modules[0]
    theirs = module(e.float(), concept_id=0 if J == 1 else (0, 1))
    shape = (1, J)
    ours = edited(C, W, e, i, o, torch.full(shape, 0.70), torch.full(shape, 0.15))
    torch.testing.assert_close(theirs, ours.float(), rtol=1e-5, atol=1e-5 * ours.abs().max().item())

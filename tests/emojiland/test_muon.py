"""Muon: steps of near-equal singular values, on convolutions as on matrices; the rest is AdamW's to the bit."""

import copy

import torch
from torch import nn

from perfusion.emojiland.muon import MuonAdamW, optimizer_of, orthogonal


def test_newton_schulz_makes_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 16, 40), (3, 40, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)).float())
        assert values.shape[-1] == 16 and 0.5 < values.min() and values.max() < 1.3


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 5))


def test_what_is_no_matrix_takes_adamws_steps_and_the_loss_falls():
    x, y = torch.randn(16, 3, 4, 4), torch.randn(16, 5)
    losses, after = {}, {}
    for name in ("adamw", "muon"):
        net = model()
        optimizer = optimizer_of(net, name, lr=1e-2, weight_decay=0.0)
        losses[name] = []
        for _ in range(30):
            loss = (net(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not losses[name]:
                after[name] = {key: p.detach().clone() for key, p in net.named_parameters()}
            losses[name].append(loss.item())
    assert losses["muon"][-1] < 0.6 * losses["muon"][0]
    assert torch.equal(after["adamw"]["0.bias"], after["muon"]["0.bias"])
    assert not torch.equal(after["adamw"]["0.weight"], after["muon"]["0.weight"])
    step = after["muon"]["2.weight"] - model()[2].weight.detach()
    assert 0.1 < step.square().mean().sqrt() / (1e-2 * 0.2) < 1.5


def test_its_state_is_saved_and_goes_on():
    net, twin = model(), model()
    a, b = (optimizer_of(n, "muon", lr=1e-2, weight_decay=0.01) for n in (net, twin))
    x = torch.randn(4, 3, 4, 4)
    for _ in range(2):
        net(x).square().mean().backward()
        a.step()
        a.zero_grad()
    twin.load_state_dict(net.state_dict())
    b.load_state_dict(copy.deepcopy(a.state_dict()))  # loading shares the tensors
    for n, optimizer in ((net, a), (twin, b)):
        n(x).square().mean().backward()
        optimizer.step()
    assert isinstance(a, MuonAdamW)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters()))

"""Muon for matrices and AdamW for the rest, as one optimiser (Jordan et al. 2024; scaled as in Liu et al. 2025)."""

import torch
from torch import Tensor, nn

from perfusion.config import native_bfloat16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic
STEPS = 5
MOMENTUM = 0.95


def orthogonal(matrices: Tensor) -> Tensor:
    """Newton-Schulz: [N, m, n] to what has nearly the same singular vectors and singular values near 1; in bfloat16 where that is quick."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda or native_bfloat16() else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups marked `muon` take Muon's steps instead; a convolution is the matrix [out, in * height * width].

    Each step has the root mean square of AdamW's (0.2 sqrt(max(m, n))), so that both share one learning rate. Matrices of
    one shape are done at once.
    """

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if not group["muon"]:
                continue
            by_shape: dict[tuple, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault((len(p), p[0].numel()), []).append(p)
            for (m, n), parameters in by_shape.items():
                directions = []
                for p in parameters:
                    if not self.state[p]:  # Adam's loading looks for a step in every state
                        self.state[p] |= {"step": torch.tensor(0.0), "momentum": torch.zeros_like(p)}
                    momentum = self.state[p]["momentum"]
                    momentum.lerp_(p.grad, 1 - MOMENTUM)
                    directions.append(p.grad.lerp(momentum, MOMENTUM).reshape(m, n))
                    p.grad = None  # AdamW passes it by
                for p, direction in zip(parameters, orthogonal(torch.stack(directions))):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(direction.reshape(p.shape).to(p.dtype), alpha=-group["lr"] * 0.2 * max(m, n) ** 0.5)
        super().step()
        return loss


def optimizer_of(module: nn.Module, name: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """One optimiser, "adamw" or "muon", over all that is trained. With Muon, what is no matrix, or the first or last layer, is AdamW's."""
    how = {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.99)}
    named = [(key, p) for key, p in module.named_parameters() if p.requires_grad]
    if name == "adamw":
        return torch.optim.AdamW([p for _, p in named], **how)
    inner = {key for key, p in named if p.ndim >= 2 and "conv_in" not in key and "conv_out" not in key}
    groups = [{"params": [p for key, p in named if key in inner], "muon": True}]
    groups += [{"params": [p for key, p in named if key not in inner], "muon": False}]
    return MuonAdamW(groups, **how)

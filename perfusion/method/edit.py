"""The gated rank-1 edit, on tensors only (Perfusion, arXiv 2305.01644, Eq. 3, Eq. 4 and Appendix B).

    h = W e_perp + sum_j sigmoid((r_j - beta_j) / tau_j) o*_j,    e_perp = e - sum_j coef_j i*_j

r, the gates and the coefs depend on the encoding e and not on the layer. So they are computed once per prompt and
travel with e as 2J extra columns, [e, gate_1..J, -coef_1..J]; a layer is then the plain linear map [W, o*_1..J, W
i*_1..J].

Shapes: B samples, T tokens, J concepts, d the width of the text encoder. Everything is computed in float32 (or float64
where that comes in), autocast off, whatever the model's precision.
"""

import torch
from torch import Tensor

from perfusion.errors import UserError


def inverse_metric(C: Tensor, shrinkage: float) -> Tensor:
    """C^-1 [d, d] of the shrunk second moment C + shrinkage tr(C)/d I, computed in float64, returned in float32.

    C is first divided by tr(C)/d: the scale of C cancels everywhere in the method, and float32 should not have to
    bear it.

    Raises UserError where C + shrinkage ... is not positive definite.
    """
    C = C.double()
    d = C.shape[0]
    eye = torch.eye(d, dtype=C.dtype, device=C.device)
    L, failed = torch.linalg.cholesky_ex(C * (d / C.trace()) + shrinkage * eye)
    if failed or not torch.isfinite(L).all():
        raise UserError(
            f"shrinkage={shrinkage} leaves C ({d} x {d}) singular; allowed is any value that makes it "
            "positive definite: try 1e-3, or measure C over more captions."
        )
    return torch.cholesky_inverse(L).float()


def target_key(C_inv: Tensor, i_star: Tensor) -> Tensor:
    """C^-1 i* / (i*^T C^-1 i*), shape of i_star [..., d]: all that inference needs to know of C."""
    key = i_star @ C_inv
    return key / (key * i_star).sum(-1, keepdim=True)


def energy(e: Tensor, i_stars: Tensor, c_inv_i_stars: Tensor) -> Tensor:
    """r = (e . C^-1 i*) / (i* . C^-1 i*), the share of every i* in every token; 1 at e = i*. Eq. 3.

    e [B, T, d]; i_stars, c_inv_i_stars [J, d] (the latter at any positive scale); returns [B, T, J].
    """
    return e @ c_inv_i_stars.T / (c_inv_i_stars * i_stars).sum(-1)


def gate(r: Tensor, beta: Tensor, tau: Tensor) -> Tensor:
    """sigmoid((r - beta) / tau), Eq. 3. r [B, T, J]; beta, tau [B, J]; returns [B, T, J]."""
    return torch.sigmoid((r - beta[:, None]) / tau[:, None])


def overlap(i_stars: Tensor, c_inv_i_stars: Tensor) -> Tensor:
    """[J, J]: how much of i*_k is i*_j. The Gram matrix G_jk = i*_j . C^-1 i*_k, each row divided by G_jj."""
    return energy(i_stars, i_stars, c_inv_i_stars).T


def coefficients(r: Tensor, i_stars: Tensor, c_inv_i_stars: Tensor, on: Tensor) -> Tensor:
    """coef [B, T, J] that make e - sum_j coef_j i*_j C^-1-orthogonal to every concept that is on. Appendix B.

    The Gram solve G coef = b, b_j = i*_j . C^-1 e, with each row divided by G_jj: then the right side is r itself and
    the scale of each concept's C^-1 i* cancels. A concept that is off (on [B, J] bool) leaves that sample's system.
    """
    J = on.shape[1]
    G = torch.where(
        on[:, :, None] & on[:, None, :], overlap(i_stars, c_inv_i_stars), torch.eye(J, dtype=r.dtype, device=r.device)
    )
    return torch.linalg.solve(G, (r * on[:, None]).transpose(1, 2)).transpose(1, 2)


def augment(
    e: Tensor, i_stars: Tensor, c_inv_i_stars: Tensor, beta: Tensor, tau: Tensor, on: Tensor | None = None
) -> Tensor:
    """[e, gate_1..J, -coef_1..J], [B, T, d + 2J], in the dtype of e; differentiable in e.

    e [B, T, d]; i_stars, c_inv_i_stars [J, d]; beta, tau [B, J] or broadcastable to it; on [B, J] bool, all by default.
    Where a concept is off, both its columns are exactly 0.
    """
    dtype = torch.promote_types(e.dtype, torch.float32)
    shape = (e.shape[0], i_stars.shape[0])
    full = lambda x: torch.as_tensor(x, device=e.device).to(dtype)
    with torch.autocast(e.device.type, enabled=False):
        i_stars, c_inv_i_stars = full(i_stars), full(c_inv_i_stars)
        beta, tau = full(beta).expand(shape), full(tau).expand(shape)
        on = torch.ones(shape, dtype=torch.bool, device=e.device) if on is None else on.to(e.device)
        used = on.any(0)
        if not used.all():  # of many concepts a batch holds few: the others' columns are 0 without any arithmetic
            columns = e.new_zeros(*e.shape[:2], 2, len(used))
            if used.any():
                few = augment(e, i_stars[used], c_inv_i_stars[used], beta[:, used], tau[:, used], on[:, used])
                columns[..., used] = few[..., e.shape[-1] :].unflatten(-1, (2, -1))
            return torch.cat([e, columns.flatten(-2)], dim=-1)
        r = energy(full(e), i_stars, c_inv_i_stars)
        coef = coefficients(r, i_stars, c_inv_i_stars, on)
        gates = gate(r, beta, tau) * on[:, None]
        return torch.cat([e, gates.to(e.dtype), -coef.to(e.dtype)], dim=-1)

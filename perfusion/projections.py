"""Widen to_k and to_v of every cross-attention of a diffusers model, keep K and V per prompt, and undo it.

A widened layer is the linear map [W, o*_1..J, W i*_1..J] on encodings with 2J extra columns (edit.augment). It knows no
prompt, no gate and no concept: those are in the columns, so samples of one batch may differ in all of them.
"""

import weakref
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from perfusion.errors import UserError


def cross_attentions(model: nn.Module) -> dict[str, Attention]:
    """Every cross-attention of the model by its name, in the model's own order, which is that of a concept's o*.

    Raises UserError where there is none, or one whose keys and values are not a plain linear map of the encoding.
    """
    found = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, Attention) and m.is_cross_attention and m.to_k is not None
    }
    if not found:
        raise UserError(
            f"model={type(model).__name__} has no cross-attention; a text-conditioned diffusers model is needed."
        )
    for name, attention in found.items():
        if attention.norm_cross is not None or attention.fused_projections:
            raise UserError(
                f"{name} normalizes its encodings or has fused projections; the edit needs plain to_k and "
                "to_v: call unfuse_qkv_projections() first, or use another model."
            )
        for layer in (attention.to_k, attention.to_v):
            if not isinstance(layer, (nn.Linear, WidenedLinear)):
                raise UserError(
                    f"{name} has {type(layer).__name__} for to_k or to_v where torch.nn.Linear is needed; "
                    "fuse or unload other adapters first."
                )
    widths = {attention.to_k.in_features for attention in found.values()}
    if len(widths) > 1:
        raise UserError(f"cross-attentions take encodings of widths {sorted(widths)}; one common width is needed.")
    return found


class WidenedLinear(nn.Module):
    """W e + sum_j gate_j o*_j - sum_j coef_j W i*_j, as one linear map of [e, gate_1..J, -coef_1..J].

    base: the layer it stands in for; its Parameter is shared, so that moving or casting the model moves both.
    i_star [J, d]; o_star [J, out_features], a Parameter where it is trained; part "k" or "v".

    The input is [B, T, d + 2J], or twice as wide: one encoding for V followed by one for K (the global lock).
    """

    def __init__(self, base: nn.Linear, i_star: Tensor, o_star: Tensor, part: str):
        super().__init__()
        self.in_features, self.out_features, self.part = base.in_features, base.out_features, part
        self.weight, self.bias = base.weight, base.bias
        # Not persistent: a state_dict of the model stays the base model's own, o* in training apart.
        self.register_buffer("i_star", i_star.detach().clone().to(base.weight), persistent=False)
        if isinstance(o_star, nn.Parameter):
            self.o_star = o_star
        else:
            self.register_buffer("o_star", o_star.detach().clone().to(base.weight), persistent=False)
        self.forget()

    def forget(self) -> None:
        """Drop the stored output."""
        self._seen, self._key, self._output = lambda: None, None, None

    def project(self, x: Tensor) -> Tensor:
        """The linear map itself, on [..., d + 2J]."""
        e, columns = x[..., : self.in_features], x[..., self.in_features :]
        # Two sums and not one product with [W, o*, W i*]: no copy of W is kept, and columns of 0 add exactly 0, so that
        # a prompt with every concept off draws what the base model draws, to the last bit.
        rows = torch.cat([self.o_star.to(e.dtype), F.linear(self.i_star.to(e.dtype), self.weight)])
        return F.linear(e, self.weight, self.bias) + columns @ rows

    def forward(self, x: Tensor) -> Tensor:
        width = self.in_features + 2 * len(self.i_star)
        if x.shape[-1] not in (width, 2 * width):
            raise UserError(
                f"encodings are {x.shape[-1]} wide, but {len(self.i_star)} concept(s) are loaded, which need "
                f"{width} or {2 * width}; call load_concepts on the very pipeline that draws, or unload."
            )
        # An encoding's outputs are kept while that same tensor lives and neither it nor the layer is written to. Not
        # under grad, and not for inference-mode tensors, which do not count their writes.
        untracked = x.is_inference() or self.o_star.is_inference() or self.weight.is_inference()
        if torch.is_grad_enabled() or untracked or torch.compiler.is_compiling():
            return self.project(self.slice(x, width))
        key = (
            x._version,
            self.weight.data_ptr(),
            self.weight._version,
            self.o_star.data_ptr(),
            self.o_star._version,
            self.i_star.data_ptr(),
            self.i_star._version,
            torch.is_autocast_enabled(x.device.type),
        )
        if self._seen() is not x or self._key != key:
            self._output = self.project(self.slice(x, width))
            self._seen, self._key = weakref.ref(x), key
        return self._output

    def slice(self, x: Tensor, width: int) -> Tensor:
        """The layer's part of the input: V reads the first encoding, K the last (they may be the same)."""
        return x[..., :width] if self.part == "v" else x[..., -width:]


def lock_o_star_k(model: nn.Module, super_encodings: Tensor) -> dict[str, Tensor]:
    """The local lock: o*_K = W_K . (encoding of the super-category's token). [J, d] to {layer: [J, d_l]}, float32."""
    weights = {name: attention.to_k.weight.detach().float() for name, attention in cross_attentions(model).items()}
    return {name: F.linear(super_encodings.to(W), W) for name, W in weights.items()}


class Widened:
    """What `widen` did to a model: the layers in place, and the way back.

    o_star_k, o_star_v: {layer name: [J, d_l]}, the very tensors or Parameters in use.
    """

    def __init__(self, model: nn.Module, i_star: Tensor, o_star_v: dict[str, Tensor], o_star_k: dict[str, Tensor]):
        attentions = cross_attentions(model)
        for part, o_star in (("v", o_star_v), ("k", o_star_k)):
            shapes = {name: tuple(o.shape) for name, o in o_star.items()}
            wanted = {name: (len(i_star), getattr(a, f"to_{part}").out_features) for name, a in attentions.items()}
            if shapes != wanted:
                raise UserError(
                    f"o_star_{part} has shapes {shapes}, the model's cross-attentions need {wanted}; "
                    "use the model the concept was learned on."
                )
        d = attentions[next(iter(attentions))].to_k.in_features
        if i_star.shape[-1] != d:
            raise UserError(f"i_star is {i_star.shape[-1]} wide, the model's encodings {d}; use its own text encoder.")
        if any(isinstance(a.to_k, WidenedLinear) for a in attentions.values()):
            raise UserError("the model is widened already; restore it (unload_concepts) first.")
        self.originals, self.layers = [], []
        for name, attention in attentions.items():
            for part, o_star in (("k", o_star_k), ("v", o_star_v)):
                base = getattr(attention, f"to_{part}")
                layer = WidenedLinear(base, i_star, o_star[name], part).to(base.weight.device)
                setattr(attention, f"to_{part}", layer)
                self.originals.append((attention, f"to_{part}", base))
                self.layers.append((name, layer))

    @property
    def o_star_v(self) -> dict[str, Tensor]:
        return {name: layer.o_star for name, layer in self.layers if layer.part == "v"}

    @property
    def o_star_k(self) -> dict[str, Tensor]:
        return {name: layer.o_star for name, layer in self.layers if layer.part == "k"}

    @torch.no_grad()
    def set_i_star(self, i_star: Tensor) -> None:
        """Write a new i* [J, d] into every layer (training moves it once per optimiser step)."""
        for _, layer in self.layers:
            layer.i_star.copy_(i_star)

    @contextmanager
    def i_star_as(self, i_star: Tensor):
        """Every layer reads this i* [J, d], gradients and all, for a with-block (module.i_star_gradient)."""
        before = [layer.i_star for _, layer in self.layers]
        for _, layer in self.layers:
            layer.i_star = i_star.to(layer.i_star)
        try:
            yield
        finally:
            for (_, layer), own in zip(self.layers, before):
                layer.i_star = own

    @contextmanager
    def paused(self):
        """The model's own layers for a with-block, e.g. to draw through the public pipeline amid training."""
        for attention, part, base in self.originals:
            setattr(attention, part, base)
        try:
            yield
        finally:
            for (attention, part, _), (_, layer) in zip(self.originals, self.layers):
                setattr(attention, part, layer)

    def restore(self) -> None:
        """Put the model's own layers back for good, the same objects with the same weights."""
        for attention, part, base in self.originals:
            setattr(attention, part, base)
        self.originals, self.layers = [], []


def widen(model: nn.Module, i_star: Tensor, o_star_v: dict[str, Tensor], o_star_k: dict[str, Tensor]) -> Widened:
    """Replace to_k and to_v of every cross-attention by their widened maps; `.restore()` of the result undoes it.

    i_star [J, d]; o_star_v, o_star_k: {layer name: [J, d_l]}; Parameters among them are trained in place.
    Raises UserError, before anything is changed, where names or shapes differ from the model's.
    """
    return Widened(model, i_star, o_star_v, o_star_k)

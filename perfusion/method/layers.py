"""Widen to_k and to_v of every cross-attention of a diffusers model, keep K and V per prompt, and undo it.

A widened layer is the linear map [W, o*_1..J, W i*_1..J] on encodings with 2J extra columns (edit.augment). It knows no
prompt, no gate and no concept: those are in the columns, so samples of one batch may differ in all of them. Any diffusers
denoiser whose cross-attentions are `Attention` modules will do: the UNets, and transformers such as PixArt's and Sana's.
"""

import weakref
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from perfusion.errors import UserError
from perfusion.method.caption_projection import WidenedCaptions, caption_projection


def plain(model: nn.Module) -> nn.Module:
    """The model itself, or what torch.compile(model) wraps: the names of its layers are a concept's."""
    return getattr(model, "_orig_mod", model)


def is_lora(layer: nn.Module) -> bool:
    """Whether it is peft's adapter around a torch.nn.Linear; peft need not be installed."""
    return isinstance(getattr(layer, "base_layer", None), nn.Linear)


def is_fused(attention: Attention) -> bool:
    """Whether it computes its keys and values by one product of its own. By the processor: Attention.fused_projections stays
    true once they are unfused."""
    return type(attention.processor).__name__.startswith("Fused")


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """W x, without the bias; W includes the adapters that are active on the layer."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, layer.weight)
    y = layer(x)
    return y if layer.bias is None else y - layer.bias


def _attentions(module: nn.Module, prefix: str) -> list[tuple[str, Attention]]:
    """Every Attention below a module, none of whose own parts are walked: named_modules was a third of load_concepts."""
    found = []
    for name, child in module._modules.items():
        if isinstance(child, Attention):
            found.append((prefix + name, child))
        elif child is not None:
            found += _attentions(child, f"{prefix}{name}.")
    return found


def cross_attentions(model: nn.Module) -> dict[str, Attention]:
    """Every cross-attention of the model by its name, in the model's own order, which is that of a concept's o*.

    Raises UserError where there is none, or one whose keys and values are not a plain linear map of the encoding.
    """
    attentions = {name: m for name, m in _attentions(plain(model), "") if m.is_cross_attention and m.to_k is not None}
    if not attentions:
        raise UserError(
            f"model={type(model).__name__} has no cross-attention; a diffusers model that reads its text through one is needed "
            "(Stable Diffusion 1, 2 and XL, PixArt, Sana; Stable Diffusion 3 and Flux attend to text and picture jointly)."
        )
    for name, attention in attentions.items():
        if attention.norm_cross is not None or is_fused(attention):
            raise UserError(
                f"{name} normalizes its encodings or has fused projections; the edit needs plain to_k and "
                "to_v: call unfuse_qkv_projections() first, or use another model."
            )
        for layer in (attention.to_k, attention.to_v):
            if not isinstance(layer, (nn.Linear, WidenedLinear)) and not is_lora(layer):
                raise UserError(
                    f"{name} has {type(layer).__name__} for to_k or to_v where torch.nn.Linear, or a LoRA on one, is "
                    "needed; fuse or unload other adapters first."
                )
    widths = {attention.to_k.in_features for attention in attentions.values()}
    if len(widths) > 1:
        raise UserError(f"cross-attentions take encodings of widths {sorted(widths)}; one common width is needed.")
    return attentions


class WidenedLinear(nn.Module):
    """W e + sum_j gate_j o*_j - sum_j coef_j W i*_j, as one linear map of [e, gate_1..J, -coef_1..J].

    base: the layer it stands in for; its Parameter is shared, so that moving or casting the model moves both. A base with
    a LoRA on it is kept whole, and W is what it computes.
    i_star [J, d]; o_star [J, out_features], a Parameter where it is trained; part "k" or "v".

    The input is [B, T, d + 2J], or twice as wide: one encoding for V followed by one for K (the global lock). Behind a
    caption projection it is [B, T, d], and `captions` has the rest.
    """

    def __init__(
        self, base: nn.Linear, i_star: Tensor, o_star: Tensor, part: str, captions: WidenedCaptions | None = None
    ):
        super().__init__()
        self.captions = (captions,)  # in a tuple, as it is the model's own and not this layer's
        self.in_features, self.out_features, self.part = base.in_features, base.out_features, part
        if isinstance(base, nn.Linear):
            self.weight, self.bias, self.base = base.weight, base.bias, None
        else:
            self.base = base
        # Not persistent: a state_dict of the model stays the base model's own, o* in training apart.
        self.register_buffer("i_star", i_star.to(base.weight), persistent=False)
        if isinstance(o_star, nn.Parameter):
            self.o_star = o_star
            o_star.data = o_star.data.to(base.weight.device)  # the very Parameter, where the layer is
        else:
            self.register_buffer("o_star", o_star.detach().clone().to(base.weight), persistent=False)
        self.forget()

    def forget(self) -> None:
        """Drop the stored output."""
        self._kept: tuple | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_kept": None}  # of a copy, or in a file: it belongs to a tensor of this process

    def project(self, x: Tensor) -> Tensor:
        """The linear map itself, on [..., d + 2J]."""
        e, columns = x[..., : self.in_features], x[..., self.in_features :]
        # Two sums and not one product with [W, o*, W i*]: no copy of W is kept, and columns of 0 add exactly 0, so that
        # a prompt with every concept off draws what the base model draws, to the last bit.
        i_star, o_star = self.i_star.to(e.dtype), self.o_star.to(e.dtype)
        if self.base is None:
            return F.linear(e, self.weight, self.bias) + columns @ torch.cat([o_star, F.linear(i_star, self.weight)])
        return self.base(e) + columns @ torch.cat([o_star, _linear(self.base, i_star).to(e.dtype)])

    def forward(self, x: Tensor) -> Tensor:
        width = self.in_features + 2 * len(self.i_star)
        source = x  # what tells one prompt from another
        if (captions := self.captions[0]) is not None:
            source, x = captions.read(x, self.part)
        if x.shape[-1] not in (width, 2 * width):
            raise UserError(
                f"encodings are {x.shape[-1]} wide, but {len(self.i_star)} concept(s) are loaded, which need "
                f"{width} or {2 * width}; call load_concepts on the very pipeline that draws, or unload."
            )
        # An encoding's outputs are kept while that same tensor lives and neither it nor the layer is written to. Not
        # under grad, and not for inference-mode tensors, which do not count their writes.
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return self.project(self.slice(x, width))
        tensors = [*self.parameters(), *self.buffers()]
        if any(t.is_inference() for t in (source, *tensors)):
            return self.project(self.slice(x, width))
        key: list = [(t.data_ptr(), t._version) for t in tensors] + [
            source._version,
            torch.is_autocast_enabled(x.device.type),
        ]
        if self.base is not None and is_lora(self.base):
            lora = self.base
            key += [lora.disable_adapters, *lora.active_adapters, *lora.merged_adapters, *lora.scaling.items()]
        kept = self._kept  # read and written at once, as several threads may draw
        if kept is None or kept[0]() is not source or kept[1] != key:
            self._kept = kept = weakref.ref(source), key, self.project(self.slice(x, width))
        return kept[2]

    def slice(self, x: Tensor, width: int) -> Tensor:
        """The layer's part of the input: V reads the first encoding, K the last (they may be the same)."""
        return x[..., :width] if self.part == "v" else x[..., -width:]


def lock_o_star_k(model: nn.Module, super_encodings: Tensor) -> dict[str, Tensor]:
    """The local lock: o*_K = W_K . (encoding of the super-category's token). [J, d] to {layer: [J, d_l]}, float32."""
    return locked(model, "to_k", super_encodings)


@torch.no_grad()
def locked(model: nn.Module, part: str, encodings: Tensor) -> dict[str, Tensor]:
    """W . encodings of every cross-attention's to_k or to_v. [J, d] to {layer: [J, d_l]}, float32, on the layer's device."""
    targets = {}
    for name, attention in cross_attentions(model).items():
        layer = getattr(attention, part)
        W = layer.weight
        if isinstance(layer, nn.Linear):
            targets[name] = F.linear(encodings.to(W.device, torch.float32), W.float())
        else:
            targets[name] = _linear(layer, encodings.to(W)).float()
    return targets


@dataclass
class Swap:
    """A part of a model and what stands in for it while installed."""

    owner: nn.Module
    name: str
    own: nn.Module
    substitute: nn.Module

    def install(self) -> None:
        setattr(self.owner, self.name, self.substitute)

    def remove(self) -> None:
        own = getattr(self.substitute, "base", None)  # a LoRA around it may be gone by now
        setattr(self.owner, self.name, self.own if own is None else own)


class Widened:
    """What `widen` did to a model: the layers in place, and the way back.

    o_star_k, o_star_v: {layer name: [J, d_l]}, the very tensors or Parameters in use.
    """

    def __init__(
        self,
        model: nn.Module,
        i_star: Tensor,
        o_star_v: dict[str, Tensor],
        o_star_k: dict[str, Tensor],
        attentions: dict[str, Attention],
    ):
        model = plain(model)
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
            raise UserError("the model is widened already; restore it (handle.unload()) first.")
        self.swaps, self.layers = [], []
        i_star = i_star.detach().clone().to(attentions[next(iter(attentions))].to_k.weight)  # one for all layers
        captions = None
        if parts := caption_projection(model):
            captions = WidenedCaptions(parts, len(i_star))
            self.swaps.append(Swap(model, "caption_projection", parts[0], captions))
        for name, attention in attentions.items():
            for part, o_star in (("k", o_star_k), ("v", o_star_v)):
                base = getattr(attention, f"to_{part}")
                layer = WidenedLinear(base, i_star, o_star[name], part, captions)
                self.swaps.append(Swap(attention, f"to_{part}", base, layer))
                self.layers.append((name, layer))
        self._install()

    def _install(self) -> None:
        for swap in self.swaps:
            swap.install()

    def _remove(self) -> None:
        for swap in self.swaps:
            swap.remove()

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
        self._remove()
        try:
            yield
        finally:
            self._install()

    def restore(self) -> None:
        """Put the model's own layers back for good, the same objects with the same weights."""
        self._remove()
        self.swaps, self.layers = [], []


def widen(
    model: nn.Module,
    i_star: Tensor,
    o_star_v: dict[str, Tensor],
    o_star_k: dict[str, Tensor],
    attentions: dict[str, Attention] | None = None,
) -> Widened:
    """Replace to_k and to_v of every cross-attention by their widened maps; `.restore()` of the result undoes it.

    i_star [J, d]; o_star_v, o_star_k: {layer name: [J, d_l]}; Parameters among them are trained in place. attentions: the
    model's `cross_attentions`, where they are at hand.
    Raises UserError, before anything is changed, where names or shapes differ from the model's.
    """
    return Widened(model, i_star, o_star_v, o_star_k, attentions or cross_attentions(model))

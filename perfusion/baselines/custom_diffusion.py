"""Custom Diffusion (Kumari et al. 2023): every W_K and W_V of cross-attention, and a modifier token before the class's word.

Settings after diffusers' examples/custom_diffusion, with regularisation pictures that the base model draws. The file holds
{LAYER.to_k.weight, LAYER.to_v.weight, the token's embedding}; the strength interpolates from the base's values to those.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perfusion.baselines.baseline import Baseline
from perfusion.baselines.learned import Learned, WordHandle
from perfusion.method.denoiser import denoiser_of
from perfusion.method.layers import Swap, cross_attentions
from perfusion.method.text import add_placeholders, towers

PARTS = ("to_k", "to_v")
START, WORD = "embedding_start", "embedding"


def linear(weight: Tensor, like: nn.Linear) -> nn.Linear:
    """A layer with this very weight and another's bias."""
    layer = nn.Linear(like.in_features, like.out_features, bias=False, device="meta")
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
    layer.bias = like.bias
    return layer


def projections(unet) -> dict[str, tuple[nn.Module, str]]:
    """{LAYER.to_k: (the cross-attention, "to_k")} and to_v alike."""
    return {f"{name}.{part}": (a, part) for name, a in cross_attentions(unet).items() for part in PARTS}


class CustomDiffusionHandle(WordHandle):
    def __init__(self, learned: Learned, pipe):
        self.swaps: dict[str, Swap] = {}
        for name, (attention, part) in projections(denoiser_of(pipe)).items():
            own = getattr(attention, part)
            self.swaps[name] = Swap(attention, part, own, linear(own.weight.detach().clone(), own))
        super().__init__(learned, pipe)
        for swap in self.swaps.values():
            swap.install()

    def embedding(self, strength: float) -> Tensor:
        return torch.lerp(self.learned.tensors[START][0], self.learned.tensors[WORD][0], strength)

    @torch.no_grad()
    def set(self, strength: float) -> None:
        super().set(strength)
        for name, swap in self.swaps.items():
            base = swap.own.weight
            learned = self.learned.tensors[f"{name}.weight"].to(base.device)
            swap.substitute.weight.copy_(base + strength * (learned - base.float()) if strength else base)

    def unload(self) -> None:
        super().unload()
        for swap in self.swaps.values():
            swap.remove()


@dataclass
class CustomDiffusion(Learned):
    handle = CustomDiffusionHandle


class CustomDiffusionModule(Baseline):
    """Trains W_K, W_V [d_l, d] of every cross-attention and the embedding [d_tok]. method: also initializer, the rare word
    whose first token the embedding starts from."""

    leaves = CustomDiffusion

    @property
    def word(self) -> str:
        return f"{self.trigger} {self.super_category}"

    def prepare(self) -> None:
        self.tokenizer, ids = add_placeholders(self.pipe.tokenizer, [self.trigger])
        self.token_id = ids[self.trigger]
        rare = self.pipe.tokenizer(self.method["initializer"], add_special_tokens=False).input_ids[0]
        start = [tower.get_input_embeddings().weight[rare].detach().float() for tower in towers(self.encoder_of())]
        self.register_buffer("start", torch.cat(start), persistent=False)
        self.embedding = nn.Parameter(self.start.clone())
        self.names, self.swaps, weights = [], [], []
        for name, (attention, part) in projections(denoiser_of(self.pipe)).items():
            own = getattr(attention, part)
            weights.append(nn.Parameter(own.weight.detach().float().clone()))
            self.swaps.append(Swap(attention, part, own, linear(weights[-1], own)))
            self.names.append(name)
        self.weights = nn.ParameterList(weights)

    def rows(self) -> dict[int, Tensor]:
        return {self.token_id: self.embedding}

    def attach(self) -> None:
        for swap in self.swaps:
            swap.install()

    def detach(self) -> None:
        for swap in self.swaps:
            swap.remove()

    def tensors(self) -> dict[str, Tensor]:
        weights = {f"{name}.weight": w for name, w in zip(self.names, self.weights)}
        return weights | {WORD: self.embedding[None], START: self.start[None]}

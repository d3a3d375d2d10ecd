"""DreamBooth (Ruiz et al. 2023) by a LoRA on the UNet's attentions, through peft. Settings after diffusers' examples/dreambooth.

The file is what `pipe.load_lora_weights` of diffusers reads; the strength is the LoRA's scale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perfusion.baselines.baseline import Baseline
from perfusion.baselines.learned import Handle, Learned
from perfusion.errors import UserError, install
from perfusion.method.denoiser import denoiser_of
from perfusion.method.layers import Swap

ADAPTER = "concept"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class LoRAHandle(Handle):
    def __init__(self, learned: Learned, pipe):
        self.pipe = pipe
        # Not pipe.load_lora_weights, which warns that a text encoder has none.
        denoiser_of(pipe).load_lora_adapter(dict(learned.tensors), prefix="unet", adapter_name=ADAPTER)

    def set(self, strength: float) -> None:
        self.pipe.set_adapters(ADAPTER, strength)

    def unload(self) -> None:
        self.pipe.unload_lora_weights()


@dataclass
class DreamBoothLoRA(Learned):
    handle = LoRAHandle


class DreamBoothLoRAModule(Baseline):
    """Trains A and B of every attention's to_q, to_k, to_v and to_out. method: also rank and identifier, the rare word."""

    leaves = DreamBoothLoRA

    @property
    def word(self) -> str:
        return f"{self.method['identifier']} {self.super_category}"

    def prepare(self) -> None:
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise UserError(f"method=dreambooth_lora needs peft; install it with {install('baselines')}.") from error
        unet, rank = denoiser_of(self.pipe), self.method["rank"]
        torch.manual_seed(self.seed)
        unet.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS), ADAPTER
        )
        trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        for p in trained.values():
            p.data = p.data.float()  # whatever the model's precision
        self.lora = nn.ParameterList(trained.values())
        self.config = unet.peft_config
        layers = {name: m for name, m in unet.named_modules() if hasattr(m, "lora_A")}
        owner = lambda name: unet.get_submodule(name.rpartition(".")[0])
        self.swaps = [Swap(owner(name), name.rpartition(".")[2], m.base_layer, m) for name, m in layers.items()]

    def attach(self) -> None:
        for swap in self.swaps:
            swap.install()
        denoiser_of(self.pipe).peft_config, denoiser_of(self.pipe)._hf_peft_config_loaded = self.config, True

    def detach(self) -> None:
        """The unet's own layers, and nothing that says it ever had an adapter."""
        for swap in self.swaps:
            swap.remove()
        del denoiser_of(self.pipe).peft_config
        denoiser_of(self.pipe)._hf_peft_config_loaded = False

    def tensors(self) -> dict[str, Tensor]:
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        weights = convert_state_dict_to_diffusers(
            get_peft_model_state_dict(denoiser_of(self.pipe), adapter_name=ADAPTER)
        )
        return {f"unet.{name}": t for name, t in weights.items()}

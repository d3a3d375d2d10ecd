"""One file of the original (CompVis) layout, as most checkpoints on the web are: the same model as the folder's."""

import hydra
import pytest
import torch
from random_sd15 import random_pipeline
from safetensors.torch import save_file

from perfusion.config import CONF
from perfusion.learning.models import load_pipeline, load_tokenizer
from perfusion.method.fingerprint import base_hash

UNET = {
    "time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2.", "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.", "conv_out.": "out.2.", "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.", "mid_block.resnets.1.": "middle_block.2.",
}  # fmt: skip
RESNET = {
    "norm1.": "in_layers.0.", "conv1.": "in_layers.2.", "norm2.": "out_layers.0.", "conv2.": "out_layers.3.",
    "time_emb_proj.": "emb_layers.1.", "conv_shortcut.": "skip_connection.",
}  # fmt: skip
VAE = {"conv_norm_out.": "norm_out.", "mid_block.attentions.0.": "mid.attn_1.", "conv_shortcut.": "nin_shortcut."}
VAE_ATTENTION = {"group_norm.": "norm.", "to_q.": "q.", "to_k.": "k.", "to_v.": "v.", "to_out.0.": "proj_out."}
for b in range(4):
    for n in range(2):
        UNET[f"down_blocks.{b}.resnets.{n}."] = f"input_blocks.{3 * b + n + 1}.0."
        UNET[f"down_blocks.{b}.attentions.{n}."] = f"input_blocks.{3 * b + n + 1}.1."
        VAE[f"mid_block.resnets.{n}."] = f"mid.block_{n + 1}."
    for n in range(3):
        UNET[f"up_blocks.{b}.resnets.{n}."] = f"output_blocks.{3 * b + n}.0."
        UNET[f"up_blocks.{b}.attentions.{n}."] = f"output_blocks.{3 * b + n}.1."
        VAE[f"down_blocks.{b}.resnets.{n}."] = f"down.{b}.block.{n}."
        VAE[f"up_blocks.{b}.resnets.{n}."] = f"up.{3 - b}.block.{n}."
    UNET[f"down_blocks.{b}.downsamplers.0.conv."] = f"input_blocks.{3 * b + 3}.0.op."
    UNET[f"up_blocks.{b}.upsamplers.0."] = f"output_blocks.{3 * b + 2}.{1 if b == 0 else 2}."
    VAE[f"down_blocks.{b}.downsamplers.0."] = f"down.{b}.downsample."
    VAE[f"up_blocks.{b}.upsamplers.0."] = f"up.{3 - b}.upsample."


def renamed(name: str, *maps: dict[str, str]) -> str:
    for names in maps:
        for diffusers, original in names.items():
            name = name.replace(diffusers, original)
    return name


def original(pipe) -> dict[str, torch.Tensor]:
    """The pipeline's weights under the names of the original release."""
    weights = {}
    for name, w in pipe.unet.state_dict().items():
        weights["model.diffusion_model." + renamed(name, *([RESNET] if "resnets" in name else []), UNET)] = w
    for name, w in pipe.vae.state_dict().items():
        attention = "attentions" in name
        w = w[..., None, None] if attention and w.ndim == 2 else w  # 1 x 1 convolutions there
        weights["first_stage_model." + renamed(name, VAE, *([VAE_ATTENTION] if attention else []))] = w
    for name, w in pipe.text_encoder.state_dict().items():
        weights["cond_stage_model.transformer.text_model." + name.removeprefix("text_model.")] = w
    return {name: w.contiguous() for name, w in weights.items()}


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_it_is_the_model_of_the_folder(tmp_path, suffix):
    pipe = random_pipeline(tiny=True)
    pipe.save_pretrained(tmp_path / "folder")
    weights, file = original(pipe), tmp_path / f"model.{suffix}"
    save_file(weights, file) if suffix == "safetensors" else torch.save({"state_dict": weights}, file)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        given = ["model=sd15", f"model.path={file}", f"model.config={tmp_path / 'folder'}"]
        model = hydra.compose("train", given).model
    loaded = load_pipeline(model)
    assert type(loaded) is type(pipe) and len(load_tokenizer(model)) == 49408
    for part in ("unet", "vae", "text_encoder"):
        expected, read = (getattr(p, part).state_dict() for p in (pipe, loaded))
        assert expected.keys() == read.keys() and all(torch.equal(w, read[name]) for name, w in expected.items()), part
    assert base_hash(loaded.text_encoder, loaded.unet) == base_hash(pipe.text_encoder, pipe.unet)

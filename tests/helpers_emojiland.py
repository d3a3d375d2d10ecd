"""A whole small Emojiland built in seconds: the shipped VAE, tokenizer and text encoder, all else tiny and random."""

import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pretrain_judge
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from helpers import louder
from hydra import compose, initialize_config_dir
from open_clip import CLIP
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPTextModel

import perfusion.config
from perfusion.commands.cli import main
from perfusion.emojiland.reader import Reader

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "perfusion/assets/emojiland/pipeline"
QUICK = (
    "masks=null", "model.steps=2", "covariance.captions=300", "batch_size=2", "max_steps=2", "selection.every=2",
    'selection.prompts=["a {} at night"]', "+trainer.enable_progress_bar=false", "picture=false", "attention=false",
)  # fmt: skip
DRAWN = ("picture=true", "attention=true")  # and the page of the run: half of a training's time
SMALL = ("scenes=96", "steps=3", "batch=4")  # of a pretraining
SCORE = ("evaluation.seeds=1", "evaluation.beta=[0.6,0.9]", "evaluation.drift=false")


def build(assets: Path) -> Path:
    """Write every model that conf/model/emojiland.yaml names under `assets`/emojiland."""
    torch.manual_seed(0)
    folder = assets / "emojiland"
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(SHIPPED / "text_encoder", dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(SHIPPED / "vae", torch_dtype=torch.float32)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=vae.config.latent_channels, out_channels=vae.config.latent_channels,
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_encoder.config.hidden_size,
    )  # fmt: skip
    louder(unet, by=8)
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "pipeline")  # fmt: skip
    config = pretrain_judge.model_config(tokenizer, 64)
    judge = CLIP(config["embed_dim"], config["vision_cfg"], dict(config["text_cfg"]))
    pretrain_judge.save(judge, config, tokenizer, folder / "open_clip")
    Reader(width=4).save(folder / "reader")
    return assets


def timm_folder(folder: Path) -> Path:
    """A ViT of two tiny blocks as timm saves it."""
    import timm

    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", **sizes, num_classes=0)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    pretrained = {"input_size": [3, 32, 32], "num_classes": 0, "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": sizes, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pictures(count: int, side: int = 64) -> list[Image.Image]:
    g = torch.Generator().manual_seed(5)
    return [
        Image.fromarray(torch.randint(0, 255, (side, side, 3), generator=g, dtype=torch.uint8).numpy())
        for _ in range(count)
    ]


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "perfusion", *overrides]


def command_line(patch: pytest.MonkeyPatch, assets: Path, cache: Path, folder: Path):
    """command_line(...)("train", ...) runs in this process, in a folder, without the seconds that a new one takes to start."""
    patch.setattr(perfusion.config, "ASSETS", Path(assets))
    for name, value in {"ASSETS": assets, "CACHE": cache}.items():
        patch.setenv(f"PERFUSION_{name}", str(value))
    patch.setattr(sys, "argv", sys.argv)
    patch.chdir(folder)
    return lambda *overrides: main(list(overrides))


def elsewhere(assets: Path) -> dict[str, str]:
    """The environment in which `command` finds `assets` and this checkout from any folder."""
    mine = {"PERFUSION_ASSETS": assets, "PERFUSION_CACHE": assets / "cache", "PYTHONPATH": ROOT}
    return os.environ | {name: str(value) for name, value in mine.items()}


def environment(folder: Path) -> dict[str, str]:
    """In which commands find what `pretrain` left in a folder."""
    return {
        "PERFUSION_CACHE": str(folder / "cache"),
        "PERFUSION_ASSETS": str(folder / "assets"),
        "CUDA_VISIBLE_DEVICES": "",
    }


def pretrain(folder: Path, *overrides: str, only: str = "") -> None:
    """Every command of make emojiland, or one, three steps each."""
    env = environment(folder)
    extra = {"unet": ["channels=[16,32]", "cross=[true,true]", "heads=[2,2]", "codes=3"], "reader": ["fresh=100"]}
    make = ["make", "-n", "emojiland"]
    listed = subprocess.run(make, cwd=ROOT, env=os.environ | env, check=True, capture_output=True, text=True).stdout
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        patch.syspath_prepend(ROOT / "scripts")
        for line in listed.splitlines():
            if f"scripts/pretrain_{only}" not in line:
                continue
            _, script, *given = shlex.split(line)
            name = Path(script).stem
            kind = name.removeprefix("pretrain_")
            with initialize_config_dir(str(ROOT / "conf/pretrain"), version_base="1.3"):
                cfg = compose(kind, [*given, *SMALL, *overrides, *extra.get(kind, [])])
            importlib.import_module(name).main(cfg)

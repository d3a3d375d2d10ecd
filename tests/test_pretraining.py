"""make emojiland, a few steps of each of its commands: from the sprites to models that the stock classes load and draw with."""

import importlib
import os
import shlex
import subprocess

import numpy as np
import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hydra import compose, initialize_config_dir
from transformers import CLIPSegForImageSegmentation

from perfusion.config import CONF, ROOT
from perfusion.emojiland.reader import Reader
from perfusion.emojiland.vocabulary import CLASSES

SMALL = ["scenes=96", "steps=3", "batch=8", "warmup=1", "precision=32-true"]
UNET = ["channels=[16,32,32]", "heads=[1,2,2]"]


def commands(assets) -> list[list[str]]:
    """The scripts of make emojiland with their overrides, as make itself lists them."""
    make = ["make", "-n", "emojiland"]
    listed = subprocess.run(
        make, cwd=ROOT, env=os.environ | {"PERFUSION_ASSETS": str(assets)}, check=True, capture_output=True, text=True
    )
    lines = [shlex.split(line) for line in listed.stdout.splitlines() if "scripts/pretrain_" in line]
    return [line[1:] for line in lines]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    assets = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERFUSION_ASSETS", str(assets))
        patch.setenv("PERFUSION_CACHE", str(assets / "cache"))
        patch.syspath_prepend(ROOT / "scripts")
        patch.chdir(ROOT)
        for script, *overrides in commands(assets):
            name = os.path.basename(script).removesuffix(".py")
            kind = name.removeprefix("pretrain_")
            with initialize_config_dir(str(CONF / "pretrain"), version_base="1.3"):
                cfg = compose(kind, [*overrides, *SMALL, *(UNET if kind == "unet" else [])])
            importlib.import_module(name).main(cfg)
    return assets / "emojiland"


def test_the_stock_pipeline_draws(world):
    pipe = StableDiffusionPipeline.from_pretrained(world / "pipeline", torch_dtype=torch.float32)
    [image] = pipe("a teddy on a beach", num_inference_steps=2, height=64, width=64).images
    assert image.size == (64, 64) and np.asarray(image).std() > 0


def test_every_sitting_trained(world):
    sittings = sorted(p.name for p in (world.parent / "cache/emojiland/checkpoints").iterdir())
    assert sittings == ["judge", "reader", "segmenter", "text", "unet", "unet_2", "unet_3", "vae"]


def test_judges_and_segmenter_load(world):
    judge, _, _ = open_clip.create_model_and_transforms(f"local-dir:{world / 'open_clip'}")
    assert judge.visual is not None
    assert CLIPSegForImageSegmentation.from_pretrained(world / "clipseg").config.vision_config.image_size == 64
    assert Reader.load(world / "reader").heads["object"].out_features == len(CLASSES)

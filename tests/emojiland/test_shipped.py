"""What ships: a stock pipeline draws with the models, the demo runs, committed experiments are whole."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_inputs import composed
from PIL import Image

from perfusion.emojiland.measure import prompts_of
from perfusion.emojiland.pretraining import pixels
from perfusion.emojiland.reader import Reader, read
from perfusion.emojiland.scenes import scene
from perfusion.experiments.sweep import SEEDS, TUNING
from perfusion.learning.masks import segment
from perfusion.learning.models import covariance, load_pipeline
from perfusion.method.concept import Concept
from perfusion.method.fingerprint import hash_of
from perfusion.results import read_result

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "perfusion/assets/emojiland"
STOCK = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
prompts, folder = sys.argv[3:], sys.argv[2]
generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
images = pipe(prompts, generator=generators, num_inference_steps=10, guidance_scale=3.5).images
for i, image in enumerate(images):
    image.save(f"{folder}/{i}.png")
assert not any(name.startswith("perfusion") for name in sys.modules)
"""


def test_they_are_small_enough_to_be_cloned():
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*") if p.is_file()) <= 48e6


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    asked = prompts_of(4242, 12)
    command = [sys.executable, "-c", STOCK, SHIPPED / "pipeline", folder, *(caption for _, caption in asked)]
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [facts for facts, _ in asked], [Image.open(folder / f"{i}.png") for i in range(len(asked))]


@pytest.mark.slow
def test_a_stock_pipeline_draws_what_it_is_asked(drawn):
    facts, images = drawn
    readings = read(Reader.load(SHIPPED / "reader"), pixels(np.stack([np.asarray(i) for i in images])), facts)
    assert np.mean([r.place for r in readings]) >= 0.75 and np.mean([r.object for r in readings]) >= 0.6


def test_the_default_covariance_ships(tmp_path, monkeypatch):
    """It is found by what it is of: neither made nor measured when somebody trains."""
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr("perfusion.learning.captions._made", None)
    cfg = composed("train")
    C = covariance(load_pipeline(cfg.model), cfg.model, **cfg.covariance)
    assert C.count > 1_000_000 and list(tmp_path.rglob("*")) == []


@pytest.mark.slow
def test_the_demo_on_a_small_budget(tmp_path):
    small = ["max_steps=4", "selection.every=2", "model.steps=4", "covariance.captions=2000"]
    prompts = 'selection.prompts=["a photo of a {}", "a {} on a beach"]'
    command = [sys.executable, "-m", "perfusion", "train", "concept=teddy", "concept_file=teddy.safetensors"]
    done = subprocess.run(
        [*command, *small, prompts, f"hydra.run.dir={tmp_path}/run"],
        check=False, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PERFUSION_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    concept, result = (
        Concept.load(tmp_path / "teddy.safetensors"),
        json.loads((tmp_path / "run/result.json").read_text()),
    )
    assert concept.trigger == "teddy*" and concept.base_id == "emojiland" and concept.steps == result["kept_step"] > 0
    assert len(result["selection"]) == 2 and all(0 < s["image"] < 1 for s in result["selection"])
    assert Image.open(tmp_path / "run/picture.png").width > 500


def test_the_segmenter_finds_the_object_that_is_asked_for():
    """Of two objects in a picture each is marked by its own word, and not by the other's."""
    seen = (scene(5, index) for index in itertools.count())
    pairs = list(itertools.islice((s for s in seen if s.facts.second and not s.facts.art), 12))
    for mine, asked in (("mask", "object"), ("second", "second")):
        words = [getattr(s.facts, asked) for s in pairs]
        found = np.stack(segment([s.image for s in pairs], words, str(SHIPPED / "clipseg"))) > 127
        own = np.stack([np.asarray(getattr(s, mine)) for s in pairs]) > 127
        overlap = (found & own).sum((1, 2)) / (found | own).sum((1, 2))
        assert overlap.mean() > 0.6, (asked, overlap)  # both marked, whatever is asked, would be 0.5


@pytest.fixture(scope="module")
def shipped_hash():
    return hash_of(load_pipeline(composed("train").model))


@pytest.mark.parametrize("path", sorted((ROOT / "results/ablations").glob("*.json")), ids=lambda p: p.stem)
def test_committed_experiments_are_whole_and_of_the_models_that_ship(path, shipped_hash):
    result = read_result(path)
    assert result["trained"]["base_hash"] == shipped_hash
    if path.stem.endswith("quick"):
        assert (len(result["concepts"]), result["seeds"]) == (4, [0]) and result["seconds"] < 3600
        return
    assert len(result["concepts"]) >= (2 if path.stem in TUNING else 12)
    assert result["seeds"] == [int(seed) for seed in SEEDS.get(path.stem, "0").split(",")]
    assert not any(arm["left_out"] for arm in result["arms"].values())

"""The scripts that measure costs at true shapes run, at both shapes' tiny layouts, and say what was timed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import check_true_shapes
import measure_loading
import measure_step_cost
import pytest
import random_sd15
from random_denoisers import TINY
from shapes import NAMES, results_of

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=list(NAMES))
def options(request, tmp_path):
    results = tmp_path / "cost.json"
    return SimpleNamespace(shape=request.param, tiny=True, rounds=1, threads=1, concepts=3, results=results)


def test_a_step_with_concepts_beside_the_stock_pipelines(options):
    measure_step_cost.main(options)
    told = json.loads(options.results.read_text())
    assert NAMES[options.shape] in told["what"] and "tiny" in told["what"]
    assert told["ratio_1"] > 0 and told["ratio_16"] > 0


def test_loading(options):
    measure_loading.main(options)
    told = json.loads(options.results.read_text())
    assert NAMES[options.shape] in told["what"] and told["concepts"] == 3 and told["load_ms"] < told["load_ms_first"]


BOTH = """
import runpy, sys
script, folder, *shapes = sys.argv[1:]
for shape in shapes:
    sys.argv = [script, *"--tiny --rounds 1 --threads 1 --shape".split(), shape, "--results", f"{folder}/{shape}.json"]
    runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.slow
def test_a_training_step_beside_textual_inversions(tmp_path):
    """In a process of their own, which forks a worker for each arm."""
    asked = [sys.executable, "-c", BOTH, ROOT / "scripts/measure_train_step_cost.py", tmp_path, *NAMES]
    path = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
    done = subprocess.run(asked, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    for shape, width in {"sd15": 32, "sdxl": 24 + 32}.items():  # of every text encoder's table, with one word more
        told = json.loads((tmp_path / f"{shape}.json").read_text())
        assert told["trained"]["textual_inversion"] == width * (len(random_sd15.clip_tokenizer()) + 1)
        assert ("dreambooth_lora" in told["trained"]) == (shape == "sd15")


def test_each_shape_has_its_own_results_and_a_tiny_model_none_of_theirs():
    name = lambda **given: str(results_of("loading", SimpleNamespace(results=None, **given)))
    assert name(shape="sd15", tiny=False) == "results/loading.json"
    assert name(shape="sdxl", tiny=False) == "results/loading_sdxl.json"
    assert name(shape="sdxl", tiny=True) == "results/loading_sdxl_tiny.json"


@pytest.mark.parametrize("name", TINY)
def test_a_concept_of_every_denoiser_is_trained_saved_loaded_and_unloaded(name):
    assert check_true_shapes.check(TINY[name](), 32)["load_changes_the_step_by"] > 0

"""The main job, end to end through the real scripts and commands, on a world pretrained for a few steps."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers_emojiland import DRAWN, command_line, pretrain

from perfusion.method.concept import Concept

QUICK = [
    "selection.every=2", "model.steps=2", "covariance.captions=300", "batch_size=2", "max_steps=4", "picture=false", "attention=false",
]  # fmt: skip


def test_make_emojiland_trains_every_model(world):
    trained = {p.name for p in Path(world["PERFUSION_CACHE"], "emojiland/checkpoints").iterdir()}
    assert trained == {"vae", "text", "unet", "segmenter", "judge", "reader"}


def test_pretraining_goes_on_from_its_checkpoint(world, tmp_path, capsys):
    shutil.copytree(world["PERFUSION_CACHE"], tmp_path / "cache")
    shutil.copytree(world["PERFUSION_ASSETS"], tmp_path / "assets")
    pretrain(tmp_path, "steps=5", only="reader")
    assert "reader: step 5 of 5" in capsys.readouterr().out


class Run(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(world, perfusion_on, monkeypatch, capfd):
    """A command on the pretrained world, in this process, in the folder `run`: here(*overrides) after "train"."""
    main = perfusion_on(world["PERFUSION_ASSETS"], world["PERFUSION_CACHE"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", world["CUDA_VISIBLE_DEVICES"])

    def run(*overrides: str, app: str = "train", folder: str = "run") -> Run:
        code = 0
        capfd.readouterr()
        try:
            main(app, f"hydra.run.dir={folder}", *(QUICK if app == "train" else []), *overrides)
        except SystemExit as stop:
            code = stop.code
        return Run(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """The folder of a training with everything that is drawn."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", world["CUDA_VISIBLE_DEVICES"])
        run = command_line(patch, world["PERFUSION_ASSETS"], world["PERFUSION_CACHE"], folder)
        run("train", f"hydra.run.dir={folder}", *QUICK, *DRAWN)
    return folder


def test_early_steps_are_drawn_but_not_kept(here):
    done = here("selection.every=1", "selection.start=3", "selection.patience=1")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(Path("run/result.json").read_text())
    assert [s["step"] for s in result["selection"]] == [1, 2, 3, 4] and result["kept_step"] in (3, 4)
    assert not Path("run/picture.png").exists()


def test_run_leaves_everything(trained):
    result = json.loads((trained / "result.json").read_text())
    assert [s["step"] for s in result["selection"]] == [2, 4] and result["kept_step"] in (2, 4)
    concept = Concept.load(trained / "concept.safetensors")
    assert result["trainable"] == concept.embedding.numel() + sum(o.numel() for o in concept.o_star_v.values())
    assert {p.name for p in trained.iterdir()} >= {
        "concept.safetensors",
        "result.json",
        "config.yaml",
        "masks.png",
        "picture.png",
        "last.ckpt",
    }


def test_resumed_equals_uninterrupted(here, trained):
    for folder, more in {"half": ("max_steps=2",), "rest": ("resume=half/last.ckpt",)}.items():
        done = here(*more, folder=folder)
        assert done.returncode == 0, done.stderr[-3000:]
    whole, resumed = (torch.load(f / "last.ckpt", weights_only=True) for f in (trained, Path("rest")))
    assert whole["global_step"] == resumed["global_step"] == 4
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


def test_trained_keys_are_saved(here):
    done = here("lock=trained", "max_steps=2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert Concept.load("run/concept.safetensors").o_star_k.keys()


def test_generate_draws_with_a_concept(here, trained):
    concepts, prompts = (
        f"concepts={{teddy*: {trained / 'concept.safetensors'}}}",
        'prompts=["a teddy* on a beach","a cat"]',
    )
    done = here(concepts, "model.steps=2", prompts, "images=2", app="generate")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "holds none of" in done.stderr  # the second prompt has no trigger word: a warning
    assert Path("run/001-01.png").exists() and Path("run/picture.png").exists()


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["model=sd99"], "model=sd99 is unknown; allowed are: emojiland"),
        (["concept=unicorn"], "concept=unicorn is unknown; allowed are: backpack"),
        (["max_stepz=3"], "max_stepz is no key of perfusion train (did you mean max_steps?)"),
        (["concept.images=/nowhere"], "is not a folder"),
        (["concept.super_category=teddy bear"], "nearest single-token words are: "),
        (["concept=custom"], "concept.images is not given"),
        (["masks=hand"], "masks=hand is unknown"),
        (["lock=none"], "lock=none is unknown"),
        (["model.path=/nowhere"], "has no model_index.json"),
        (["resume=gone.ckpt"], "resume=gone.ckpt does not exist"),
    ],
)
def test_mistakes_are_one_sentence(here, overrides, sentence):
    done = here(*overrides)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert not Path("run/concept.safetensors").exists()


def test_pictures_are_checked(here):
    from PIL import Image

    photos = Path("photos")
    photos.mkdir()
    mine = ["concept=custom", f"concept.images={photos}", "concept.super_category=teddy"]
    assert "has no pictures" in here(*mine).stderr
    (photos / "broken.png").write_bytes(b"not a picture")
    done = here(*mine)
    assert done.returncode == 2 and "broken.png" in done.stderr
    Image.new("RGB", (64, 64)).save(photos / "broken.png")
    assert "one colour throughout (black)" in here(*mine).stderr
    Image.linear_gradient("L").resize((64, 64)).save(photos / "broken.png")
    Image.new("L", (32, 64), 255).save(photos / "broken.mask.png")
    assert "32 x 64" in here(*mine).stderr
    Image.new("L", (64, 64)).save(photos / "broken.mask.png")
    done = here(*mine)
    assert done.returncode == 2 and "all zero" in done.stderr


def test_measure_writes_its_numbers(here):
    done = here("prompts=20", "scenes=100", "model.steps=2", "results=out.json", "sheet=sheet.png", app="measure")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(Path("out.json").read_text())
    assert 0 <= result["drawn"]["place"] <= 1 and result["attention_in_mask_lift"] > 0 and Path("sheet.png").exists()

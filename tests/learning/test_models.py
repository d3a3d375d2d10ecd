"""Models by hub id, folder or single file; presets; and the main job on tiny models of the true layouts."""

import json
import os
import shutil
import subprocess
import sys

import hydra
import numpy as np
import pytest
import torch
from helpers import open_clip_folder, sd21, sdxl, tokenizers, without_weights
from helpers_denoisers import pixart, sana
from omegaconf import OmegaConf
from PIL import Image

from perfusion.commands.generate import generate
from perfusion.config import CONF, preset, trainer_for
from perfusion.errors import UserError
from perfusion.learning.models import check_model, encodings_width, load_pipeline, load_tokenizer
from perfusion.learning.train import train
from perfusion.learning.trainer import trainer_of
from perfusion.method.concept import Concept
from perfusion.method.fingerprint import base_hash
from perfusion.method.pipeline import load_concepts


def compose(app="train", *overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(app, list(overrides))


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "pixart", "sana"])
def test_defaults_of_the_paper(name):
    model = compose("train", f"model={name}").model
    if name in ("pixart", "sana"):  # their own steps, and rates relative to their own numbers
        assert model.learning_rate.relative and (model.steps, model.guidance) == (20, 4.5)
    else:
        assert model.learning_rate == {"o_star": 0.03, "embedding": 0.006, "relative": False}
        assert (model.steps, model.guidance) == (50, 6.0)
    assert model.shrinkage == 0
    own = {"flip", "rates", "batch_size", "max_steps", "mean"}  # Emojiland's
    assert OmegaConf.to_container(model, resolve=True).keys() == compose("train").model.keys() - own | {
        "config",
        "dino",
    }


@pytest.mark.parametrize("name, dtype", [("gpu_8gb", "float16"), ("gpu_24gb", "bfloat16"), ("ddp", "bfloat16")])
def test_presets_set_the_model_too_and_yield_to_the_command_line(name, dtype):
    cfg = compose("train", "model=sd15", f"trainer={name}")
    assert cfg.model.dtype == dtype and cfg.model.gradient_checkpointing
    assert name == "ddp" or cfg.batch_size * cfg.trainer.accumulate_grad_batches == 16
    assert compose("train", "model=sd15", f"trainer={name}", "batch_size=3", "model.dtype=float32").batch_size == 3
    assert compose("train").batch_size == compose("train").model.batch_size == 8
    assert (
        compose("train", "model=sd15", "trainer=cpu").batch_size == 16 and compose("train").trainer.accelerator == "cpu"
    )


def test_the_trainer_is_the_machines_own_where_none_is_named():
    assert [preset(gib) for gib in (None, 7.6, 11.9, 23.6)] == ["cpu", "gpu_8gb", "gpu_8gb", "gpu_24gb"]
    assert trainer_for("emojiland", "emojiland") == "cpu"
    here = OmegaConf.to_container(compose("train", "model=sd15").trainer)
    named = compose("train", "model=sd15", f"trainer={trainer_for('sd15', 'emojiland')}").trainer
    assert here == OmegaConf.to_container(named)


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["model=sd15"], "model.path=stable-diffusion-v1-5/stable-diffusion-v1-5 is no folder here and not in the"),
        (["model=sdxl", "model.path=sdxl.safetensors"], "model.path=sdxl.safetensors does not exist"),
        (["model=sd15", "model.path=no/such/thing"], "model.path=no/such/thing is no folder here"),
        (
            ["model.scheduler=DPM"],
            "model.scheduler=DPM is unknown; allowed are null, for the pipeline's own, and: DDIMSche",
        ),
    ],
)
def test_what_is_not_there_is_one_sentence(monkeypatch, overrides, sentence):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as error:
        check_model(compose("train", *overrides).model, ("path",))
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_the_scheduler_is_the_configured_one_and_keeps_the_noise_of_training():
    names = ("DDIMScheduler", "DPMSolverMultistepScheduler")
    models = [compose("train", f"model.scheduler={name}").model for name in ("null", names[1])]
    own, other = (load_pipeline(model).scheduler for model in models)
    assert (type(own).__name__, type(other).__name__) == names
    kept = ("beta_schedule", "beta_start", "beta_end", "prediction_type", "num_train_timesteps")
    assert [own.config[k] for k in kept] == [other.config[k] for k in kept]


def test_what_sana_does_not_take_is_one_sentence(tmp_path):
    sana().save_pretrained(tmp_path / "pipeline")
    given = ["model=sana", f"model.path={tmp_path / 'pipeline'}"]
    for override, sentence in [
        ("model.resolution=72", "72 does not work for Sana; a multiple of 32"),
        (
            "model.scheduler=EulerDiscreteScheduler",
            "cannot draw with a flow-matching model.*DPMSolverMultistepScheduler",
        ),
    ]:
        with pytest.raises(UserError, match=sentence):
            check_model(compose("train", *given, override).model, ("path",))
    check_model(compose("train", *given, "model.scheduler=UniPCMultistepScheduler").model, ("path",))
    (tmp_path / "sana.safetensors").write_bytes(b"")
    given_file = [f"model.path={tmp_path / 'sana.safetensors'}", f"model.config={tmp_path / 'pipeline'}"]
    single = compose("train", "model=sana", *given_file).model
    with pytest.raises(UserError, match="a single file of SanaPipeline; single files of Stable Diffusion"):
        load_pipeline(single)
    assert encodings_width(compose("train", *given).model) == 32


def test_single_files_need_a_configuration_and_scorers_a_known_tag(tmp_path):
    (tmp_path / "some.safetensors").write_bytes(b"")
    model = compose("train", "model=sd15", f"model.path={tmp_path / 'some.safetensors'}", "model.config=null").model
    with pytest.raises(UserError, match="give a folder or hub id of the same kind"):
        check_model(model, ("path",))
    model.scorer = "ViT-B-32/nobody"
    with pytest.raises(UserError, match="ViT-B-32/nobody is no NAME/TAG of open_clip"):
        check_model(model, ("scorer",))


def test_a_damaged_single_file(folder, tmp_path):
    (tmp_path / "some.safetensors").write_bytes(b"no weights")
    model = compose(
        "train", "model=sd15", f"model.path={tmp_path / 'some.safetensors'}", f"model.config={folder}"
    ).model
    assert len(load_tokenizer(model)) > 0
    with pytest.raises(UserError, match="some.safetensors cannot be loaded"):
        load_pipeline(model)


@pytest.mark.parametrize(
    "file, content",
    [
        ("model_index.json", "{"),
        ("model_index.json", "[]"),
        ("model_index.json", "{}"),
        ("model_index.json", '{"_class_name": 5}'),
        ("scheduler/scheduler_config.json", '{"beta_start": 0.'),
        ("scheduler/scheduler_config.json", "[]"),
        ("tokenizer/tokenizer.json", '{"foreign": 1}'),
        ("tokenizer/tokenizer.json", "{"),
        ("text_encoder/config.json", "[]"),
        ("text_encoder/config.json", "{"),
        ("text_encoder/model.safetensors", "cut"),
        ("unet/diffusion_pytorch_model.safetensors", "cut"),
    ],
)
@pytest.mark.parametrize("scheduler", ["null", "DDIMScheduler"])
def test_a_damaged_folder_is_one_sentence(folder, tmp_path, file, content, scheduler):
    shutil.copytree(folder, tmp_path / "cut")
    assert (tmp_path / "cut" / file).is_file()
    (tmp_path / "cut" / file).write_text(content)
    model = compose("train", f"model.path={tmp_path / 'cut'}", f"model.scheduler={scheduler}").model
    with pytest.raises(UserError, match=r"cannot (be loaded|draw).*; give") as error:
        load_pipeline(model)
    assert "\n" not in str(error.value)
    asked = {"tokenizer": load_tokenizer, "text_encoder": encodings_width, "model_index.json": encodings_width}
    if (ask := asked.get(file.split("/")[0])) and not file.endswith(".safetensors"):
        with pytest.raises(UserError, match=f"{tmp_path / 'cut'} .*; give a whole pipeline"):
            ask(model)


@pytest.mark.slow
def test_the_command_says_it_in_one_sentence(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "perfusion", "train", "model=sd15", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "download it once where there is a network" in done.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.glob("*.safetensors"))


def test_generate_draws_at_the_models_resolution_and_refuses_before_weights_load(folder, make_concept, pipe, tmp_path):
    make_concept(pipe).save(tmp_path / "teddy.safetensors")
    given = [f"model.path={folder}", "model.resolution=24", "model.steps=1", "images=1", "prompts=[a teddy*]"]
    concepts, given = f"concepts={{teddy*: {tmp_path / 'teddy.safetensors'}}}", [*given, "device=cpu"]
    with Image.open(generate(compose("generate", *given, concepts), tmp_path)[0]) as drawn:
        assert drawn.size == (24, 24)  # the folder's own is 16
    given.append(f"model.path={without_weights(folder, tmp_path / 'bare')}")
    wrong = [
        ("lock=nowhere", "lock=nowhere is unknown"),
        ("tau=0", "tau=0 does not work"),
        ("beta=high", "beta=high does not work"),
        ("images=0", "images=0 does not work"),
        ("device=cuda:99", "device=cuda:99 cannot be used here"),
        ("concepts=teddy.safetensors", "a trigger word and a file"),
        (f"concepts={{teddy: {tmp_path / 'teddy.safetensors'}}}", "already a word"),
    ]
    for override, sentence in wrong:
        with pytest.raises(UserError, match=sentence):
            own = [] if override.startswith("concepts") else [concepts]
            generate(compose("generate", *given, *own, override), tmp_path)


def test_bfloat16_is_bound_to_the_same_base(folder, make_concept):
    """Weights in bfloat16 hash to something else; the pipeline remembers the hash of what was loaded."""
    model = compose("train", f"model.path={folder}", "model.dtype=bfloat16").model
    pipe = load_pipeline(model)
    plain = load_pipeline(compose("train", f"model.path={folder}").model)
    assert pipe.unet.dtype == torch.bfloat16
    assert pipe._perfusion_base_hash == base_hash(plain.text_encoder, plain.unet)
    load_concepts(pipe, {"teddy*": make_concept(plain)})
    assert np.isfinite(pipe("a teddy*", num_inference_steps=2, height=16, width=16, output_type="np").images).all()


@pytest.fixture
def main_job(tmp_path):
    """Overrides of `perfusion train` on a tiny pipeline, its pictures and its scorer."""

    def overrides(pipe) -> list[str]:
        pipe.save_pretrained(tmp_path / "pipeline")
        photos = tmp_path / "photos"
        photos.mkdir()
        side = 32 if "Sana" in type(pipe).__name__ else 16
        for i in range(2):
            noise = np.random.default_rng(i).integers(0, 255, (side, side, 3), np.uint8)
            Image.fromarray(noise).save(photos / f"{i}.png")
        return [
            f"model.path={tmp_path / 'pipeline'}", f"model.resolution={side}", "model.steps=2", "model.draw_batch=2",
            f"model.scorer={open_clip_folder(tokenizers()[1], tmp_path / 'open_clip')}",
            "model.captions=perfusion.emojiland.captions", "covariance.captions=8", "model.shrinkage=0.01",
            "concept=custom", f"concept.images={photos}", "concept.super_category=teddy", "masks=null",
            "batch_size=2", "max_steps=2", "selection.every=1",
            'selection.prompts=["a photo of a {}","a {} at night"]',
        ]  # fmt: skip

    return overrides


@pytest.mark.parametrize("name, layout, dtype, precision", [
    ("sdxl", sdxl, "float32", "32-true"),
    ("sd21", sd21, "bfloat16", "bf16-mixed"),
    ("pixart", pixart, "float32", "32-true"),
    ("sana", sana, "bfloat16", "bf16-mixed"),
])  # fmt: skip
def test_the_main_job(main_job, monkeypatch, tmp_path, name, layout, dtype, precision):
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    own = () if layout in (pixart, sana) else tokenizers() if layout is sdxl else tokenizers()[1:]
    pipe = layout(*own)
    cfg = compose("train", f"model={name}", *main_job(pipe), f"model.dtype={dtype}", f"trainer.precision={precision}",
                  "model.gradient_checkpointing=true", "trainer.accumulate_grad_batches=2")  # fmt: skip
    result = train(cfg, tmp_path / "run")
    assert [s["step"] for s in result["selection"]] == [1, 2]
    concept = Concept.load(tmp_path / "run/concept.safetensors")
    widths = sum(o.numel() for o in concept.o_star_v.values())
    assert result["trainable"] == concept.embedding.numel() + widths and (tmp_path / "run/picture.png").exists()
    kept = torch.load(tmp_path / "run/last.ckpt", weights_only=True)["state_dict"]
    assert {v.dtype for v in kept.values()} == {torch.float32}  # what is learned, whatever the model's precision
    load_concepts(pipe, {"teddy*": concept})  # the stock pipeline in float32


def test_a_trainer_that_this_machine_has_not(main_job, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cfg = compose("train", "model=sd21", *main_job(sd21(tokenizers()[1])), "trainer.accelerator=tpu")
    with pytest.raises(UserError, match="cannot run here.*allowed are: cpu, ddp, gpu_24gb, gpu_8gb"):
        train(cfg, tmp_path / "run")
    assert not (tmp_path / "run/concept.safetensors").exists()


@pytest.mark.parametrize("override, said", [
    ("+trainer.max_time=abc", "trainer.max_time=abc does not work (`Timer(duration='abc')` is not a valid duration"),
    ("+trainer.limit_train_batches=-1", "trainer.limit_train_batches=-1 does not work (You have passed invalid value -1"),
    ("+trainer.barebones=true", "trainer.barebones=true does not work"),
])  # fmt: skip
def test_what_lightning_itself_refuses_is_named(override, said, tmp_path):
    with pytest.raises(UserError) as caught:
        trainer_of(compose("train", override), tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_ddp_on_two_processes(main_job, tmp_path):
    """Two CPU processes through the command, of which one draws and writes, and which stop early together."""
    command = [
        sys.executable, "-m", "perfusion", "train", "model=sd21", *main_job(sd21(tokenizers()[1])), "trainer=ddp",
        "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true", "model.dtype=float32", "batch_size=2",
        "max_steps=6", "selection.patience=1", "i_star_decay=1", "model.learning_rate.o_star=0", "model.learning_rate.embedding=0",
        "-v", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    environment = os.environ | {"PERFUSION_CACHE": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(CONF.parent)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert "MEMBER: 2/2" in said and said.count("kept: ") == 1, said[-3000:]
    # No step is better than the first, where nothing is learned.
    assert [s["step"] for s in json.loads((tmp_path / "run/result.json").read_text())["selection"]] == [1, 2]

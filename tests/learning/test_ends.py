"""Whatever ends a training, what was learned is kept, and a run goes on as if it had never stopped."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from helpers import open_clip_folder
from helpers_emojiland import QUICK
from omegaconf import OmegaConf
from PIL import Image

from perfusion.config import CONF
from perfusion.errors import Stopped, UserError
from perfusion.learning import selection as selection_module
from perfusion.learning import train as train_module
from perfusion.learning.module import PerfusionModule
from perfusion.learning.resume import PICTURES
from perfusion.learning.train import train
from perfusion.method.concept import Concept


@pytest.fixture(scope="module")
def base(folder, tmp_path_factory):
    """The configuration of a training on the tiny pipeline, with two noisy photos."""
    home = tmp_path_factory.mktemp("ends")
    (home / "photos").mkdir()
    for i in range(2):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)).save(home / f"photos/{i}.png")
    from transformers import AutoTokenizer

    scorer = open_clip_folder(AutoTokenizer.from_pretrained(folder / "tokenizer"), home / "open_clip")
    given = [
        f"model.path={folder}", "model.resolution=16", "model.steps=1", "model.draw_batch=2", f"model.scorer={scorer}",
        "model.captions=perfusion.emojiland.captions", "covariance.captions=50", "model.covariances=null", "model.shrinkage=0.01",
        "concept=custom", f"concept.images={home / 'photos'}", "concept.super_category=teddy", "masks=null", "batch_size=2",
        "max_steps=4", "selection.every=2", "selection.start=0", 'selection.prompts=["a {} at night"]', "picture=false",
        "attention=false", "trainer.precision=32-true", "+trainer.enable_progress_bar=false",
    ]  # fmt: skip
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", given)


@pytest.fixture
def learn(base, tmp_path, tmp_path_factory, monkeypatch):
    """learn(key=value, ..., run="name") trains in tmp_path/name; dots in keys are written __."""
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(run="run", **changes):
        cfg = OmegaConf.merge(base, {})
        for key, value in changes.items():
            OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
        return train(cfg, tmp_path / run)

    return run


def at_batch(monkeypatch, index: int, do) -> None:
    """Have `do` happen while that micro-batch is computed."""
    step = PerfusionModule.training_step

    def also(self, batch, batch_index):
        if batch_index == index:
            do()
        return step(self, batch, batch_index)

    monkeypatch.setattr(PerfusionModule, "training_step", also)


def state_of(path: Path) -> dict:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("changes, steps", [
    ({"max_steps": 1, "selection__every": 25}, [1]),
    ({"max_steps": 3}, [2, 3]),
    ({"max_steps": 3, "selection__every": None}, [3]),
    ({"max_steps": 2, "selection__every": 25, "selection__start": 50}, [2]),
    ({"trainer__max_time": {"microseconds": 1}, "selection__every": 25}, [1]),
    ({"trainer__max_time": {"microseconds": 1}, "trainer__accumulate_grad_batches": 2}, [1]),
    ({"trainer__max_epochs": 1, "trainer__limit_train_batches": 3, "selection__every": 25}, [3]),
    ({"trainer__max_time": "00:00:00:00"}, []),
    ({"selection__every": 1, "selection__patience": 1, "model__learning_rate__o_star": 0, "model__learning_rate__embedding": 0,
      "i_star_decay": 1}, [1, 2]),
])  # fmt: skip
def test_the_last_state_is_scored_and_saved(learn, tmp_path, changes, steps):
    result = learn(**changes)
    assert [s["step"] for s in result["selection"]] == steps and result["kept_step"] in (steps or [0])
    assert Concept.load(tmp_path / "run/concept.safetensors").steps == result["kept_step"]
    if steps:
        assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == steps[-1]
    assert (tmp_path / "run/config.yaml").exists() and (tmp_path / "run/result.json").exists()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.slow
def test_a_signal_saves_and_a_run_goes_on_as_if_nothing_was(learn, tmp_path, monkeypatch, capsys, number, code):
    learn(run="whole", trainer__accumulate_grad_batches=2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored,
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup's with this one
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(s) for s in signals]
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stop:
        at_batch(patch, 4, lambda: os.kill(os.getpid(), number))  # the first of two micro-batches of step 3
        learn(run="half", trainer__accumulate_grad_batches=2, picture=True)
    said = capsys.readouterr()
    assert (
        stop.value.code == code and f"resume={tmp_path / 'half'}" in said.out and "stopped at step 3 of 4" in said.out
    )
    assert (
        Concept.load(tmp_path / "half/concept.safetensors").steps in (2, 3)
        and not (tmp_path / "half/picture.png").exists()
    )
    assert [signal.getsignal(s) for s in signals] == handlers
    result = learn(run="rest", resume=str(tmp_path / "half"), trainer__accumulate_grad_batches=2)
    whole, rest = (state_of(tmp_path / name / "last.ckpt") for name in ("whole", "rest"))
    assert all(torch.equal(whole[name], rest[name]) for name in whole) and [s["step"] for s in result["selection"]] == [
        2,
        3,
        4,
    ]


def test_asked_twice_it_stops_at_once(learn, tmp_path, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGTERM), os.kill(os.getpid(), signal.SIGTERM)

    at_batch(monkeypatch, 1, twice)
    with pytest.raises(SystemExit) as stop:
        learn()
    assert stop.value.code == 143 and Concept.load(tmp_path / "run/concept.safetensors").steps == 1


def test_an_error_inside_selection_is_the_one_that_is_told(learn, tmp_path, monkeypatch):
    modules = []
    init = PerfusionModule.__init__
    monkeypatch.setattr(
        PerfusionModule, "__init__", lambda self, *a, **k: (modules.append(self), init(self, *a, **k))[1]
    )

    def fails(*arguments):
        raise RuntimeError("the drawing failed")

    monkeypatch.setattr(selection_module, "draw", fails)
    with pytest.raises(RuntimeError, match="the drawing failed"):
        learn()
    assert Concept.load(tmp_path / "run/concept.safetensors").steps == 2  # what was learned until then
    modules[0].widened.restore()
    assert modules[0].pipe._perfusion is None and not [
        n for n, _ in modules[0].pipe.unet.named_parameters() if "o_star" in n
    ]


def test_a_loss_that_is_not_finite_says_what_is_kept(learn, monkeypatch):
    with pytest.raises(UserError, match="the loss is nan.*What was kept so far is in .*concept.safetensors"):
        at_batch(monkeypatch, 3, lambda: None)
        step = PerfusionModule.training_step

        def broken(self, batch, index):
            if index == 3:
                with torch.no_grad():
                    self.o_star_v[0].mul_(float("nan"))
            return step(self, batch, index)

        monkeypatch.setattr(PerfusionModule, "training_step", broken)
        learn()


def test_a_picture_that_fails_costs_nothing_else(learn, tmp_path, monkeypatch, capsys):
    def fails(*arguments):
        raise ValueError("no room for this picture")

    monkeypatch.setattr(train_module, "grid", fails)
    result = learn(picture=True, attention=True, concept_file="mine.safetensors")
    assert result["kept_step"] in (2, 4) and Concept.load("mine.safetensors").steps == result["kept_step"]
    assert capsys.readouterr().err.count("could not be drawn (ValueError: no room for this picture)") == 2


def test_text_in_figures_is_text(learn, tmp_path, recwarn):
    learn(concept__name="$t_^$\U0001f9f8*", picture=True, attention=True, selection__prompts=["a {} at $5_^$ 熊"])
    assert (tmp_path / "run/picture.png").stat().st_size > 5000 and (tmp_path / "run/attention.png").exists()
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_the_concept_files_place_is_checked_before(learn, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for place, words in [("folder", "is a folder"), ("/proc/nope/x.safetensors", "cannot be written"),
                         ("file/x.safetensors", "cannot be written"), (f"{'x' * 239}y.safetensors", "too long")]:  # fmt: skip
        with pytest.raises(UserError, match=words):
            learn(concept_file=place)
    assert not (tmp_path / "run/concept.safetensors").exists()


def test_a_place_that_goes_away_leaves_the_concept_in_the_run(learn, tmp_path, monkeypatch):
    def away():
        (tmp_path / "out").rmdir()
        (tmp_path / "out").touch()

    at_batch(monkeypatch, 1, away)
    with pytest.raises(UserError, match="could not be written .*; the concept is in .*run/concept.safetensors"):
        learn(concept_file="out/x.safetensors")
    assert Concept.load(tmp_path / "run/concept.safetensors") and (tmp_path / "run/result.json").exists()


def test_what_a_run_cannot_go_on_as_is_said(learn, tmp_path):
    learn(run="first", max_steps=2)
    last = tmp_path / "first/last.ckpt"
    (tmp_path / "zero.ckpt").touch()
    (tmp_path / "cut.ckpt").write_bytes(last.read_bytes()[:-200])
    torch.save([1, 2], tmp_path / "foreign.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    (tmp_path / "empty").mkdir()
    for resume, changes, words in [
        (last, {"concept__name": "bear*"}, "a run with concept.name=teddy*, this one has concept.name=bear*"),
        (last, {"concept__super_category": "cat", "concept__name": "teddy*"}, "a run with concept.super_category=teddy"),
        (last, {"lock": "trained"}, "a run with lock=local, this one has lock=trained"),
        (last, {"max_steps": 1}, "is at step 2 and max_steps=1 is passed already"),
        ("zero.ckpt", {}, "is not a whole checkpoint"),
        ("cut.ckpt", {}, "is not a whole checkpoint"),
        ("foreign.ckpt", {}, "is no checkpoint of this program"),
        ("other.ckpt", {}, "is no checkpoint of this program"),
        ("first/concept.safetensors", {}, "is no checkpoint of this program"),
        ("empty", {}, "resume=empty does not exist"),
        ("gone.ckpt", {}, "resume=gone.ckpt does not exist"),
    ]:  # fmt: skip
        with pytest.raises(UserError) as error:
            learn(resume=str(resume), **changes)
        assert words in str(error.value) and "\n" not in str(error.value), str(error.value)
    state = torch.load(last, weights_only=True)
    state["perfusion"]["model (hash of its weights)"] = "0" * 32
    torch.save(state, tmp_path / "elsewhere.ckpt")
    with pytest.raises(UserError, match=r"a run with model \(hash of its weights\)=0000"):
        learn(resume="elsewhere.ckpt")
    assert not (tmp_path / "run/concept.safetensors").exists()
    assert (
        learn(run="again", resume=str(tmp_path / "first"), max_steps=2)["kept_step"] == 2
    )  # nothing left but to finish


def test_a_checkpoint_of_another_layout_is_refused(learn, tmp_path):
    """Whole files, whose parts are missing or of another kind: of an older version, or made by hand."""
    learn(run="first", max_steps=2)
    for i, (path, value) in enumerate([
        ("callbacks", {}), ("callbacks.Selection.history", None), ("callbacks.Selection.best", "high"), ("callbacks.Selection.seconds", None),
        ("loops", {}), ("optimizer_states", []), ("optimizer_states", None), ("global_step", -5), ("state_dict", {"o_star": 5}),
    ]):  # fmt: skip
        checkpoint = part = torch.load(tmp_path / "first/last.ckpt", weights_only=True)
        *names, last = path.split(".")
        for name in names:
            part = part[name]
        part.pop(last)
        part.update({} if value is None else {last: value})
        torch.save(checkpoint, tmp_path / f"{i}.ckpt")
        with pytest.raises(
            UserError, match=rf"{i}.ckpt is no checkpoint of this program, or of an older .*\({path}"
        ) as error:
            learn(resume=f"{i}.ckpt")
        assert "\n" not in str(error.value)


def test_a_run_goes_on_with_its_own_pictures(learn, base, tmp_path):
    learn(run="first", max_steps=2)
    mine, others = tmp_path / "moved", tmp_path / "others"
    shutil.copytree(base.concept.images, mine)
    (mine / "0.png").rename(mine / "z.png")
    assert learn(run="rest", resume="first", concept__images=str(mine), max_steps=3)["kept_step"]
    shutil.copytree(mine, others)
    Image.new("RGB", (16, 16), "red").save(others / "1.png")
    with pytest.raises(UserError, match=r"a run with concept.images \(digest of the files\)="):
        learn(run="other", resume="first", concept__images=str(others))
    checkpoint = torch.load("first/last.ckpt", weights_only=True)
    del checkpoint["perfusion"][PICTURES]  # as older versions wrote it
    torch.save(checkpoint, "old.ckpt")
    assert learn(run="old", resume="old.ckpt", concept__images=str(mine), max_steps=3)["kept_step"]


READ = """
import re, sys
from pathlib import Path
from perfusion.learning.resume import read
peak = lambda: 1024 * int(re.search("VmHWM: *(\\d+)", Path("/proc/self/status").read_text().replace("\\t", " "))[1])
Path("/proc/self/clear_refs").write_text("5")
before = peak()
read(sys.argv[1])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says what a process took")
@pytest.mark.slow
def test_a_checkpoint_takes_less_memory_than_twice_its_size(tmp_path):
    last = tmp_path / "last.ckpt"
    selection = {"best": 0.0, "history": [], "file": None, "seconds": 0.0}
    parts = {"global_step": 1, "perfusion": {}, "callbacks": {"Selection": selection}, "loops": {"fit_loop": {}}}
    parts["optimizer_states"] = [{}]
    torch.save(parts | {"state_dict": {"o_star": torch.ones(2**24)}}, last)  # 64 MiB, and more than the process's own
    taken = subprocess.run([sys.executable, "-c", READ, last], check=True, capture_output=True, text=True).stdout
    assert int(taken) < 2 * last.stat().st_size


def test_one_picture_a_list_and_more_shots_than_there_are(learn, base):
    photos = Path(base.concept.images)
    assert learn(concept__images=str(photos / "0.png"), max_steps=1)["kept_step"] == 1
    assert learn(concept__images=[str(photos / "1.png"), str(photos / "0.png")], shots=2, max_steps=1)["kept_step"] == 1
    with pytest.raises(UserError, match="shots=99 is more than the 2 pictures"):
        learn(shots=99)


def test_the_command_exits_as_the_signal_asks(perfusion_here, monkeypatch, capsys):
    at_batch(monkeypatch, 0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        perfusion_here("train", *QUICK, "hydra.run.dir=run", "max_steps=50")
    assert stop.value.code == 143 and "stopped at step 1 of 50" in capsys.readouterr().out
    assert Concept.load("run/concept.safetensors").steps == 1

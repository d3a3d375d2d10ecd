"""Experiments through the real command: sharing, skipping, failing, collecting."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from helpers_emojiland import QUICK, SCORE, command, elsewhere
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from perfusion.config import CONF, check
from perfusion.experiments.sheets import kept_pictures
from perfusion.experiments.sweep import NOT_TRAINED, check_job, experiments, key, resolved
from perfusion.results import read_result

SWEEP = ("train", "-m", "+experiment=lock_type", "concept=cat,teddy", *QUICK, *SCORE)


def plain(text):
    """A result to be changed by hand: without its sum, which would tell."""
    return {k: v for k, v in json.loads(text).items() if k != "sum"} | {"format": 1}


def run(perfusion_here, *overrides):
    try:
        perfusion_here(*overrides)
        return 0
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "p.yaml").write_text('dev: [{text: "a {}"}, {text: "a {} at night", place: night}]')
    return f"evaluation.prompts={tmp_path / 'p.yaml'}"


def test_a_sweep_from_jobs_to_claims(perfusion_here, prompts, tmp_path, capsys):
    five = "+arms.global.evaluation.beta=[0.3,0.4,0.5,0.6,0.7]"  # an arm with points of its own
    sweep = (*SWEEP, prompts, "concept=glob([cat,fox,custom,teddy])", five)
    assert run(perfusion_here, *sweep) == 0
    said = capsys.readouterr().out
    assert (
        "left out" in said and "fox* seed 0: it is for the committed evaluation" in said and "names no pictures" in said
    )
    paths = sorted(Path("multirun/lock_type").glob("*/result.json"))
    jobs = [read_result(p)["job"] for p in paths]
    assert len(paths) == 6 and {(j["arm"], j["concept"]) for j in jobs} == {
        (a, c) for a in ("local", "global", "trained_k") for c in ("cat*", "teddy*")
    }
    # global and local share a training
    assert len(list(Path("multirun/trainings").glob("*/concept.safetensors"))) == 4
    rows = {(j["arm"], j["concept"]): read_result(p) for j, p in zip(jobs, paths)}
    assert rows["global", "cat*"]["training"] == rows["local", "cat*"]["training"]
    assert rows["global", "cat*"]["rows"]["text"] != rows["local", "cat*"]["rows"]["text"]
    assert rows["trained_k", "cat*"]["trained"]["lock"] == "trained"

    # again: nothing is done twice, within this experiment and for another that has the same arm
    before = {p: p.stat().st_mtime_ns for p in Path("multirun").glob("*/*/*.json")}
    assert run(perfusion_here, *sweep) == 0
    assert {p: p.stat().st_mtime_ns for p in Path("multirun").glob("*/*/*.json")} == before
    other = ("train", "-m", "+experiment=key_locking", "concept=cat,teddy", *QUICK, *SCORE, prompts, "arm=locked")
    assert run(perfusion_here, *other) == 0
    assert len(list(Path("multirun/key_locking").glob("*/result.json"))) == 2
    assert len(list(Path("multirun/trainings").glob("*/concept.safetensors"))) == 4

    # Two steps draw nothing that the reader takes for the drawing, so CLIP's measure decides.
    by_text = [f"comparisons.{number}.measure=matched_text" for number in range(2)]
    assert run(perfusion_here, "collect", "experiment=lock_type", five, "draws=200", *by_text) == 0
    said = capsys.readouterr().out
    assert "global > local" in said and "ordering holds: " in said
    assert Path("results/ablations/lock_type.pdf").read_bytes().startswith(b"%PDF")
    assert not list(Path("multirun").rglob("*.pdf"))  # seconds each, which nobody prints
    result = read_result("results/ablations/lock_type.json")
    assert result["config"]["max_steps"] == 2 and not [k for k in result["config"] if k.startswith(("concept", "lock"))]
    assert sum(result["commits"].values()) == 6 and result["arms"]["trained_k"]["settings"]["lock"] == "trained"
    assert result["arms"]["local"]["settings"] == {
        "lock": "local",
        "evaluation.lock": [None],
        "evaluation.beta": [0.6, 0.9],
    }
    assert [p["defined"] > 0 for p in result["paired"]] == [True, True]
    assert result["concepts"] == ["cat*", "teddy*"] and result["seeds"] == [0]
    assert result["ordering_holds"] in (True, False, "undecided") and len(result["paired"]) == 2
    means = (
        [s["text"] for s in rows["local", "cat*"]["summary"]],
        [s["text"] for s in rows["local", "teddy*"]["summary"]],
    )
    points = result["arms"]["local"]["points"]
    assert [p["text"] for p in points] == pytest.approx([(a + b) / 2 for a, b in zip(*means)], abs=2e-6)
    trained_k = result["arms"]["trained_k"]["points"]
    for row, p, other in zip(result["paired"][1]["at_equal_beta"], points, trained_k, strict=True):
        assert row["beta"] == p["beta"] and row["text"][0] == pytest.approx(p["text"] - other["text"], abs=2e-6)
        assert row["image"][1] <= row["image"][0] <= row["image"][2] and p["text_interval"][0] <= p["text"]
        assert p["read_object_interval"][0] <= p["read_object"] and p["read_place_interval"] == [
            None,
            None,
        ]  # 1 prompt of 2
    assert len(Path("results/ablations/lock_type.csv").read_text().splitlines()) == 1 + 2 * (2 + 5 + 2)
    assert Path("results/ablations/lock_type.png").stat().st_size > 10_000

    assert result["pictures"]["concept"] == "cat*" and result["pictures"]["arms"] == ["local", "global", "trained_k"]
    shown = kept_pictures(Path("results/ablations/lock_type.jpg"), result)
    assert {arm: len(of) for arm, of in shown.items()} == {"local": 2, "global": 5, "trained_k": 2}

    # pictures that were cleared away are no longer shown
    for path in Path("multirun/lock_type").glob("*/pictures.png"):
        path.unlink()
    assert run(perfusion_here, "collect", "experiment=lock_type", five, "draws=50") == 0
    assert read_result("results/ablations/lock_type.json")["pictures"] is None
    assert not Path("results/ablations/lock_type.jpg").exists()

    # a smaller sweep does not write over a larger one's result
    for job in [p for p, j in zip(paths, jobs) if j["concept"] == "cat*"]:
        job.rename(job.with_suffix(".aside"))
    assert run(perfusion_here, "collect", "experiment=lock_type", five) == 2
    assert "joins 2 concepts x seeds, these jobs are 1" in capsys.readouterr().err
    for job in Path("multirun/lock_type").glob("*/result.aside"):
        job.rename(job.with_suffix(".json"))

    # nor one of other prompts over any; an arm that was renamed since goes by its new name
    shutil.copytree("multirun/lock_type", "others/lock_type")
    for path in Path("others/lock_type").glob("*/result.json"):
        path.write_text(json.dumps(plain(path.read_text().replace('"a {}"', '"the {}"'))))
    assert run(perfusion_here, "collect", "experiment=lock_type", five, "multirun=others") == 2
    assert "is of other prompts than these jobs" in capsys.readouterr().err
    old = plain(paths[0].read_text())
    paths[0].write_text(json.dumps(old | {"job": old["job"] | {"arm": "before"}}))
    assert run(perfusion_here, *sweep) == 0 and read_result(paths[0])["job"] == old["job"]

    # what can go wrong with a folder of results
    some = paths[[(j["arm"], j["concept"]) for j in jobs].index(("local", "cat*"))]
    kept = some.read_text()
    result = plain(kept)
    result["config"]["evaluation"]["seed"] += 1
    some.write_text(json.dumps(result))
    assert run(perfusion_here, "collect", "experiment=lock_type", five) == 2
    assert "was made with other evaluation.seed than" in capsys.readouterr().err
    result["prompts"][0], result["config"]["evaluation"]["seed"] = (
        "the {}",
        plain(kept)["config"]["evaluation"]["seed"],
    )
    some.write_text(json.dumps(result))
    assert run(perfusion_here, "collect", "experiment=lock_type", five) == 2
    assert "was made with other prompts than" in capsys.readouterr().err
    result = plain(kept)
    for section, name, value in [("model", "scorer", "ViT-B-32/openai"), ("evaluation", "lock", ["global"])]:
        kept_value, result["config"][section][name] = result["config"][section][name], value
        some.write_text(json.dumps(result))
        assert run(perfusion_here, "collect", "experiment=lock_type", five) == 2  # and what an arm sets, within it
        assert f"was made with other {section}.{name} than" in capsys.readouterr().err
        result["config"][section][name] = kept_value
    result = plain(kept)
    result["points"] = result["points"][:1]
    some.write_text(json.dumps(result))
    assert run(perfusion_here, "collect", "experiment=lock_type", five) == 2
    assert "summary has 2 entries for 1 points" in capsys.readouterr().err
    some.write_text(kept.replace('"format": 2', '"format": 0', 1))
    assert run(perfusion_here, "collect", "experiment=lock_type", five) == 2
    assert "has result format 0, this program reads 1" in capsys.readouterr().err
    assert run(perfusion_here, *sweep) == 1  # the other jobs are still gone through
    said = capsys.readouterr()
    assert said.out.count("done before") == 5 and "1 failed" in said.err and "has result format 0" in said.err
    shutil.copytree(some.parent, some.parent.with_name("twice"))
    some.write_text(kept)
    (some.parent.with_name("twice") / "result.json").write_text(kept)
    assert run(perfusion_here, "collect", "experiment=lock_type", five) == 2
    assert "with different settings" in capsys.readouterr().err


def test_a_failed_job_does_not_stop_the_rest(perfusion_here, prompts, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "0.png").write_bytes(b"no picture")
    (broken / "concept.yaml").write_text("name: dog*\nsuper_category: dog\n")
    nameless = tmp_path / "nameless"
    nameless.mkdir()
    overrides = ("train", "-m", "+experiment=sigmoid_temperature", *QUICK, *SCORE, prompts)
    images = "concept.images=${root:data/concepts/teddy}," + str(broken)
    assert run(perfusion_here, *overrides, "arm=tau_0.10", images) == 1
    said = capsys.readouterr()
    assert "FAILED" in said.out and "0.png cannot be read" in said.err and "1 failed" in said.err
    assert len(list(Path("multirun/sigmoid_temperature").glob("*/result.json"))) == 1
    (error,) = Path("multirun/sigmoid_temperature").glob("*/error.txt")
    assert json.loads(error.read_text().splitlines()[0])["concept"] == "dog*"
    assert run(perfusion_here, "collect", "experiment=sigmoid_temperature", "comparisons=[]", "draws=50") == 0
    (left,) = read_result("results/ablations/sigmoid_temperature.json")["failed"]
    assert left["concept"] == "dog*" and left["arm"] == "tau_0.10"
    capsys.readouterr()

    # a later sweep lists its own failures alone, whatever it fails of
    trained = len(list(Path("multirun/trainings").glob("*")))
    for more, sentence in [
        (("arm=tau_0.10",), None),
        (("arm=tau_0.20,tau_0.10", "evaluation.beta=[0.7]"), "has 1 point"),
        (("arm=tau_0.10", "trainer.devices=2"), "trainer.devices=2 does not work in an experiment"),
        (("arm=tau_0.10", "concept=custom", f"concept.images={nameless}"), "concept.super_category is not given"),
        (("arm=tau_0.10", "concept.images=gone"), "concept.images=gone is not a folder"),
        (("arm=tau_0.10", "evaluation.dino=timm:vit_tiny"), "scorer timm:vit_tiny is no model of timm"),
    ]:
        assert run(perfusion_here, *overrides, *more) == (1 if sentence else 0)
        said = capsys.readouterr()
        assert sentence is None or (sentence in said.err and "broken" not in said.err and "Traceback" not in said.err)
        assert sentence is None or f"{more[0].count(',') + 1} failed" in said.err  # as many as arms
    assert len(list(Path("multirun/trainings").glob("*"))) == trained  # refused before they train

    for app, sentence in [
        (
            ("collect", "experiment=nothing"),
            f"experiment=nothing is unknown; allowed are: {', '.join(experiments())}.",
        ),
        (("collect",), "experiment is not given"),
        (("collect", "experiment=one_shot"), "has no result of a job"),
        (("train", *overrides[2:], "arm=tau_0.10", "concept.images=gone"), "concept.images=gone is not a folder"),
        (("train", "+experiment=key_locking"), "arm=None is not in experiment key_locking"),
    ]:
        assert run(perfusion_here, *app) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_killing_a_sweep_loses_the_running_job_alone(assets, prompts, tmp_path):
    sweep = command(
        "train", "-m", "+experiment=key_locking", "concept=cat,teddy", "arm=locked", *QUICK, *SCORE, prompts
    )
    how = {"cwd": tmp_path, "env": elsewhere(assets), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    results = lambda: {p: p.stat().st_mtime_ns for p in tmp_path.glob("multirun/key_locking/*/result.json")}
    killed = subprocess.Popen(sweep, **how)
    until = time.monotonic() + 300
    while len(results()) < 1 or not list(tmp_path.glob("multirun/trainings/*.part")):  # the second one trains
        assert time.monotonic() < until and killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    first = results()
    assert subprocess.run(sweep, **how, timeout=300, check=False).returncode == 0
    after = results()
    assert len(first) < 2 == len(after) and first.items() <= after.items()
    assert {read_result(path)["concept"] for path in after} == {"cat*", "teddy*"}
    assert not list(tmp_path.glob("multirun/**/*.part")) and len(list(tmp_path.glob("multirun/trainings/*/"))) == 2


def test_switches_of_the_ablations_train(perfusion_here, prompts, capsys):
    for name, arm in [("one_shot", "one"), ("masked_prior", "prior"), ("i_star_gradient", "straight_through")]:
        assert run(perfusion_here, "train", f"+experiment={name}", f"arm={arm}", *QUICK, *SCORE, prompts) == 0
        (path,) = Path(f"multirun/{name}").glob("*/result.json")
        config = read_result(path)["config"]
        assert (config["shots"] == 1) == (name == "one_shot") and config["masked_prior"] == (name == "masked_prior")
    files = [p.read_bytes() for p in Path("multirun/trainings").glob("*/concept.safetensors")]
    assert len(set(files)) == 3


@pytest.mark.parametrize("name", experiments())
def test_a_committed_experiment_can_run(name):
    """Every arm is one that a training takes, every claim is about two of them, and the command runs them all."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"+experiment={name}", "concept=cat"], return_hydra_config=True)
    assert set(cfg.hydra.sweeper.params.arm.replace(" ", "").split(",")) == set(cfg.arms)
    assert {c[side] for c in cfg.comparisons for side in ("better", "worse")} <= set(cfg.arms)
    for arm in cfg.arms:
        cfg.arm = arm
        check_job(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]))


def test_a_sweep_goes_on_on_another_machine_but_a_precision_that_is_given_counts(monkeypatch):
    def keys(*overrides):
        with initialize_config_dir(str(CONF), version_base=None):
            cfg = resolved(compose("train", ["+experiment=lock_type", "concept=cat", "arm=local", *overrides]))
        return {key(cfg, NOT_TRAINED), key(check("train", cfg), NOT_TRAINED)}

    told = {}
    for native in (True, False):
        monkeypatch.setattr("perfusion.config.native_bfloat16", lambda native=native: native)
        told[native] = [
            keys(),
            keys("trainer.precision=32-true"),
            keys("trainer.precision=bf16-mixed"),
            keys("model.draw_precision=bf16-mixed"),
        ]
    assert told[True] == told[False] and len(set.union(*told[True])) == 4

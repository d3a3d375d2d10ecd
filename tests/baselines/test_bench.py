"""The baselines through the commands: one sweep, its fronts, its costs, the score over seconds."""

import runpy
import shlex
import sys
from pathlib import Path

import figure_baselines
import numpy as np
import pytest
from helpers_emojiland import DRAWN, QUICK, ROOT, SCORE
from safetensors.torch import load_file, save_file

from perfusion.evaluation.fronts import hypervolume
from perfusion.results import read_result

METHODS = ("perfusion", "textual_inversion", "dreambooth_lora", "dreambooth_lora_prior", "custom_diffusion")


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "p.yaml").write_text('dev: [{text: "a {}"}, {text: "a {} at night", place: night}]')
    return f"evaluation.prompts={tmp_path / 'p.yaml'}"


def test_one_bench_for_every_method(perfusion_here, prompts, monkeypatch, capsys):
    arms = (
        "{perfusion: {}, textual_inversion: {method: textual_inversion}, dreambooth_lora: {method: dreambooth_lora}, "
    )
    arms += "dreambooth_lora_prior: {method: {name: dreambooth_lora, prior_pictures: 2}}, "
    arms += "custom_diffusion: {method: {name: custom_diffusion, prior_pictures: 2}}}"
    sweep = (
        "train",
        "-m",
        "+experiment=baselines",
        "concept=teddy",
        *QUICK,
        "selection.every=1",
        *SCORE,
        prompts,
        f"arms={arms}",
    )
    perfusion_here(*sweep)
    jobs = {
        read_result(p)["job"]["arm"]: (p.parent, read_result(p))
        for p in Path("multirun/baselines").glob("*/result.json")
    }
    assert set(jobs) == set(METHODS) and "FAILED" not in capsys.readouterr().out
    for name, (folder, result) in jobs.items():
        strengths = [point.get("strength", point.get("beta")) for point in result["points"]]
        assert strengths == {
            "perfusion": [0.6, 0.9], "textual_inversion": [0.125, 0.25, 0.5, 0.75, 1.0],
        }.get(name, [0.25, 0.5, 0.75, 1.0, 1.25])  # fmt: skip
        assert len(result["rows"]["text"]) == 2 * len(strengths) and (folder / "pictures.png").exists()
        assert [step["step"] for step in result["training"]["selection"]] == [1, 2]
        assert result["training"]["peak_mib"] > 100
    trainable = {name: result["training"]["trainable"] for name, (_, result) in jobs.items()}
    assert trainable["textual_inversion"] == 128 and trainable["dreambooth_lora"] == trainable["dreambooth_lora_prior"]

    perfusion_here("collect", "experiment=baselines", "draws=50", f"arms={arms}")
    monkeypatch.setattr(sys, "argv", ["figure_baselines.py"])
    runpy.run_path(str(ROOT / "scripts/figure_baselines.py"), run_name="__main__")
    result = read_result("results/baselines.json")
    assert set(result["methods"]) == set(METHODS) and result["concepts"] == ["teddy*"] and result["seeds"] == [0]
    assert all(about["file_bytes"] > 500 and len(about["interval"]) == 2 for about in result["methods"].values())
    assert {claim["worse"] for claim in result["paired"]} == set(METHODS[1:])
    assert set(result["time_to_quality"]["methods"]) == set(METHODS)
    for name in ("baselines.png", "baselines.svg", "baselines/teddy.png"):
        assert (Path("results/figures") / name).stat().st_size > 5000


@pytest.mark.parametrize("method", METHODS[1:3] + METHODS[4:])
def test_train_then_evaluate_a_baseline(perfusion_here, prompts, method, monkeypatch, capsys):
    monkeypatch.setattr(
        "perfusion.evaluation.evaluate.REFERENCE", (-1, -1)
    )  # below every cosine: two steps learn little
    fewer = ["method.prior_pictures=2"] if method == "custom_diffusion" else []
    perfusion_here(
        "train",
        f"method={method}",
        "concept=teddy",
        *QUICK,
        *DRAWN,
        *fewer,
        "hydra.run.dir=run",
        "concept_file=mine.safetensors",
    )
    assert Path("run/picture.png").stat().st_size > 5000 and Path("run/attention.png").stat().st_size > 5000
    said = capsys.readouterr().out  # whose next step is one that a baseline's file takes
    asked = ("evaluate", "model.steps=2", f"method={method}", "concept=teddy", *fewer, "concept_file=mine.safetensors")
    assert shlex.join(asked) in said
    for words in (
        ("info", "mine.safetensors"),
        ("generate", "concepts={teddy*: mine.safetensors}", "prompts=['a teddy*']"),
    ):
        with pytest.raises(SystemExit) as stop:
            perfusion_here(*words)
        assert stop.value.code == 2 and "perfusion evaluate alone, with its method=NAME" in capsys.readouterr().err
    score = ("model.steps=2", "evaluation.seeds=1", "evaluation.drift=true", prompts, "hydra.run.dir=scores")
    perfusion_here("evaluate", f"method={method}", "concept=teddy", "concept_file=mine.safetensors", *score)
    result = read_result("scores/result.json")
    assert result["points"][0].keys() == {"strength"}
    texts = [row["text"] for row in result["summary"]]
    assert len(set(texts)) > 1  # the strength acts on what is drawn; after two steps, not at every strength
    area = hypervolume(np.array([[row["text"], row["image"]] for row in result["summary"]]), (-1, -1))
    low, high = result["front"]["interval"]
    assert result["front"]["hypervolume"] == pytest.approx(area, abs=1e-5) and 0 < low <= area <= high + 1e-5 < 4
    drift = result["drift"]["without_word"]
    assert drift.keys() == {"loaded"} and (drift["loaded"]["mse"] == 0) == (method == "textual_inversion")
    assert "strength" in capsys.readouterr().out and Path("scores/front.png").exists()
    perfusion_here("report", "run=scores")
    if method == "textual_inversion":  # as another program writes it: what the prompt holds is another word
        save_file({"<toy>": load_file("mine.safetensors")["teddy*"]}, "theirs.safetensors")
        score = (*score[:-1], "evaluation.strength=[1]", "hydra.run.dir=theirs")
        perfusion_here("evaluate", f"method={method}", "concept=teddy", "concept_file=theirs.safetensors", *score)
        theirs = read_result("theirs/result.json")
        assert theirs["concept"] == "toy" and theirs["summary"][0]["text"] == pytest.approx(texts[-1], abs=1e-5)
    with pytest.raises(SystemExit) as stop:  # a file of one method given to another
        perfusion_here("evaluate", "concept=teddy", "concept_file=mine.safetensors", *score)
    assert stop.value.code == 2 and "Traceback" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        perfusion_here("train", f"method={method}", "method.learning_rate=0", *QUICK)
    assert stop.value.code == 2 and "method.learning_rate=0 does not work" in capsys.readouterr().err


def test_the_score_over_seconds_is_the_best_so_far():
    run = [{"seconds": 1, "score": 0.2}, {"seconds": 2, "score": 0.5}, {"seconds": 4, "score": 0.4}]
    scores = figure_baselines.curve([run, run], np.array([0.5, 1, 3, 9]))
    assert np.isnan(scores[0]) and scores[1:].tolist() == [0.2, 0.5, 0.5]
    told = figure_baselines.time_to_quality({"a": [run], "b": [run[:1]]})
    assert told["levels"] == [0.2, 0.275, 0.35, 0.425, 0.5]
    assert told["methods"]["a"]["seconds_to_levels"][0] == pytest.approx(1, abs=0.1)
    assert told["methods"]["a"]["seconds_to_levels"][-1] == pytest.approx(2, abs=0.1)
    assert told["methods"]["b"]["seconds_to_levels"][1:] == [None] * 4

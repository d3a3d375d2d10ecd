"""The figures' scripts, from scratch on a small Emojiland and again from what that left."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers_emojiland import QUICK, ROOT, SCORE
from omegaconf import OmegaConf
from PIL import Image

import perfusion.experiments.figures
import perfusion.experiments.sweep
from perfusion.config import CONF
from perfusion.results import read_result


def script(monkeypatch, name: str, *arguments: str) -> int:
    """Run scripts/NAME.py in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    try:
        runpy.run_path(str(ROOT / f"scripts/{name}.py"), run_name="__main__")
        return 0
    except SystemExit as stop:
        return stop.code


def check(name: str) -> None:
    with Image.open(f"results/figures/{name}.png") as picture:
        assert abs(picture.width - 85 / 25.4 * 300) < 2  # a column's 85 mm at 300 dots an inch
        assert len(set(picture.convert("L").tobytes())) > 20
    assert "<svg" in Path(f"results/figures/{name}.svg").read_text()


def test_pictures_from_scratch_then_from_files(perfusion_here, monkeypatch, capsys):
    for name in ("figure_7", "figure_teaser"):
        assert script(monkeypatch, name) == 2
        said = capsys.readouterr().err
        assert "does not exist; make it with python scripts/figure_" in said and "--from-scratch" in said
        assert script(monkeypatch, name, "--from-scratch", *QUICK) == 0
        made = {p: p.stat().st_mtime_ns for p in Path("multirun").rglob("*.*")}
        assert script(monkeypatch, name) == 0
        assert {p: p.stat().st_mtime_ns for p in Path("multirun").rglob("*.*")} == made  # nothing is trained or drawn
        check(name.removeprefix("figure_") if name == "figure_teaser" else name)
    assert script(monkeypatch, "figure_7", "--fast") == 2 and "--fast is unknown" in capsys.readouterr().err
    assert len(list(Path("multirun/trainings").glob("*/concept.safetensors"))) == 1  # trained once for both


def test_fronts_out_of_collected_results(perfusion_here, monkeypatch, tmp_path, capsys):
    (tmp_path / "p.yaml").write_text('dev: [{text: "a {}"}, {text: "a {} at night", place: night}]')
    assert script(monkeypatch, "figure_9") == 2
    assert "perfusion train -m +experiment=one_shot" in capsys.readouterr().err
    assert script(monkeypatch, "figure_9", "--quick") == 2
    assert (
        "make it with perfusion train -m +experiment=figure_9_quick evaluation.split=final and then"
        in capsys.readouterr().err
    )
    small = (*QUICK, *SCORE, f"evaluation.prompts={tmp_path / 'p.yaml'}", "concept=teapot")
    for experiment in ("key_locking", "lock_type"):  # two made here, which share their trainings,
        perfusion_here("train", "-m", f"+experiment={experiment}", *small)
        perfusion_here("collect", f"experiment={experiment}", "draws=50")
    for experiment in ("one_shot", "zero_shot_mask", "sigmoid_bias", "sigmoid_temperature", "figure_9_quick"):
        shutil.copy(ROOT / f"results/ablations/{experiment}.json", "results/ablations")  # the others as they ship
    assert script(monkeypatch, "figure_9") == 0
    check("figure_9")
    assert script(monkeypatch, "figure_9", "--quick") == 0
    check("figure_9_quick")
    monkeypatch.setattr(perfusion.experiments.sweep, "CONCEPTS", ("cat", "teapot"))
    assert script(monkeypatch, "figure_locks", "--from-scratch", *QUICK) == 0
    check("locks")
    result = read_result("results/figures/locks/result.json")
    means = {}
    for lock, numbers in result["numbers"].items():
        means[lock] = sum(v for one in numbers.values() for v in one["image"]) / 8  # 2 concepts x 4 prompts
        assert result["compared"][lock]["image"] == pytest.approx(means[lock], abs=1e-4)
    difference, low, high = result["compared"]["local > trained_k"]["image"]
    assert difference == pytest.approx(means["local"] - means["trained_k"], abs=1e-4) and low <= difference <= high


def test_figure_9_asks_for_arms_that_its_experiments_have():
    from figure_9 import PANELS

    arms = {p.stem: OmegaConf.load(p).get("arms", {}) for p in (CONF / "experiment").glob("*.yaml")}
    for name, (_, full, short) in PANELS.items():
        assert set(full) <= set(arms[name]) and set(short) <= set(arms["figure_9_quick"])


def test_variability_of_noises(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from figure_locks import compared, variability

    x, y = torch.eye(2)
    assert variability(torch.stack([torch.stack([x, x, x]), torch.stack([x, x, y])])) == [
        0,
        pytest.approx(2 / 3, abs=1e-6),
    ]
    of = lambda *values: {c: {"variability": [v] * 4, "image": [0.5] * 4} for c, v in zip("ab", values)}
    claims = compared({"global": of(0.4, 0.5), "local": of(0.3, 0.4), "trained_k": of(0.2, 0.6)})
    assert claims["global > local"]["variability"] == [0.1, 0.1, 0.1] and claims["global > local"]["holds"] is True
    assert claims["local > trained_k"]["variability"] == [-0.05, -0.2, 0.1]
    assert claims["local > trained_k"]["holds"] == "undecided"


def test_attention_figure(world, perfusion_on, monkeypatch, capsys):
    perfusion_on(world["PERFUSION_ASSETS"], world["PERFUSION_CACHE"])
    monkeypatch.setattr(perfusion.experiments.sweep, "CONCEPTS", ("cat", "teapot"))
    assert script(monkeypatch, "figure_attention", "--from-scratch", *QUICK) == 0
    check("attention")
    result = read_result("results/figures/attention/result.json")
    shares = result["shares"]
    assert set(shares) == {"local", "trained"} and len(shares["local"]["teapot*"]["rows"]) == 16
    rows = [row for of_concept in shares["local"].values() for row in of_concept["rows"]]
    assert all(0 < row["concept"] < 1 and 0 < row["area"] < 1 for row in rows)
    assert rows[-1]["words"]["teapot*"] == rows[-1]["concept"]
    ratios = [row["concept"] / row["area"] for row in rows]
    assert result["compared"]["local"]["ratio"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-3)

"""perfusion report on real small runs, opened in a real browser where there is one."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers_emojiland import QUICK, SCORE
from PIL import Image

from perfusion.errors import UserError
from perfusion.experiments.jobs import read_jobs
from perfusion.experiments.report import of_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "p.yaml").write_text('dev: [{text: "a {}"}, {text: "a {} at night", place: night}]')
    return f"evaluation.prompts={tmp_path / 'p.yaml'}"


def self_contained(path: Path) -> str:
    text = path.read_text()
    assert "<script" not in text and not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    return text


def opened(path: Path, folder: Path) -> np.ndarray:
    """What a real browser shows of a page, its first 2400 rows."""
    shot = folder / "shot.png"
    command = [CHROMIUM, *FLAGS, "--window-size=1000,2400", f"--user-data-dir={folder / 'profile'}",
               f"--screenshot={shot}", path.as_uri()]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    seen = np.asarray(Image.open(shot).convert("RGB"))
    assert seen.shape == (2400, 1000, 3)
    return seen


def test_pages(perfusion_here, prompts, tmp_path, capsys):
    perfusion_here("train", *QUICK, "max_steps=6", "hydra.run.dir=run")
    perfusion_here("report", "run=run")
    trained = self_contained(Path("run/report.html"))
    for title in ("Pictures", "Curves", "Attention", "Selection, step by step", "Numbers"):
        assert f"<h2>{title}</h2>" in trained, title
    assert "<svg" in trained and "gate at the concept" in trained
    assert "<summary>Configuration</summary>" in trained and "max_steps: 6" in trained

    sweep = ("train", "-m", "+experiment=key_locking", "concept=cat,teddy", *QUICK, *SCORE, prompts)
    perfusion_here(*sweep)
    perfusion_here("collect", "experiment=key_locking", "draws=50")
    perfusion_here("report", "experiment=key_locking")
    joined = self_contained(Path("results/ablations/key_locking.html"))
    assert "<h2>Claims</h2>" in joined and joined.count("data:image/png") == 7  # joined, four jobs', two selections
    assert "<h2>Curves: cat*, locked, seed 0</h2>" in joined and "<h2>Curves: cat*, trained_k, seed 0</h2>" in joined
    job = next(Path("multirun/key_locking").glob("*/result.json")).parent
    perfusion_here("report", f"run={job}", "output=one.html")
    one = self_contained(Path("one.html"))
    assert "<h2>Pareto front</h2>" in one and "<h2>Hypervolume</h2>" in one and "<h2>Curves: " in one

    for name, text in {"old": '{"format": 0}', "other": '{"format": 1, "sheet": [1, 1]}', "torn": "{"}.items():
        Path(name).mkdir()
        Path(name, "result.json").write_text(text)
    capsys.readouterr()
    for overrides, sentence in [
        ((), "give one of them"),
        (("run=gone",), "run=gone has no result.json"),
        (("run=old",), "old/result.json has result format 0, this program reads 1"),
        (("run=other",), "run=other holds the result of something else"),
        (("run=torn",), "torn/result.json is damaged"),
        (("experiment=one_shot",), "make it with perfusion train -m +experiment=one_shot"),
    ]:
        with pytest.raises(SystemExit) as stop:
            perfusion_here("report", *overrides)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and sentence in said and said.count("\n") == 1

    if not CHROMIUM:
        pytest.skip(
            "the pages are written and checked; no chromium is installed to open them (apt-get install chromium)"
        )
    for page in ("run/report.html", "results/ablations/key_locking.html"):
        seen = opened(tmp_path / page, tmp_path)
        text = seen[:1200].max(-1) < 90
        colors = len(np.unique(seen[:1200].reshape(-1, 3), axis=0))
        assert text.mean() > 0.005 and colors > 1000, page  # dark letters, and the pictures' many colours


TRAINED = '{"kept_step": 1, "concept": "cat*", "train_seconds": 1, "selection": []}'


@pytest.mark.parametrize(
    "files, sentence",
    [
        ({"result.json": "5"}, "run/result.json is damaged"),
        ({"result.json": "\udcff"}, "run/result.json is damaged"),
        (
            {"result.json": '{"kept_step": 1}', "config.yaml": "a: 1"},
            "run/result.json is damaged or was edited (KeyError",
        ),
        ({"result.json": '{"format": 1, "points": []}'}, "run/result.json is damaged"),
        ({"result.json": TRAINED}, "run/config.yaml is damaged"),
        ({"result.json": TRAINED, "config.yaml": "a: [1"}, "run/config.yaml is damaged"),
        ({"result.json": TRAINED, "config.yaml": "a: ${b}"}, None),
        ({"result.json": TRAINED, "config.yaml": "a: ${b"}, "run/config.yaml is damaged"),
        (
            {"result.json": TRAINED, "config.yaml": "a: 1", "metrics.csv": "step,loss\nx,1\n"},
            "run/metrics.csv is damaged",
        ),
        ({"result.json": TRAINED, "config.yaml": "a: 1", "metrics.csv": "loss\n1\n"}, "run/metrics.csv is damaged"),
    ],
)
def test_damaged_files_of_a_run(tmp_path, files, sentence):
    (tmp_path / "run").mkdir()
    for name, text in files.items():
        (tmp_path / "run" / name).write_text(text, errors="surrogateescape")
    if sentence is None:
        assert "<h2>Numbers</h2>" in of_run(tmp_path / "run")
        return
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        of_run(tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more", ["", ', "job": 5', ', "job": {"arm": "a", "concept": "c", "seed": 0}'])
def test_a_result_without_its_job_is_not_joined(tmp_path, more):
    (tmp_path / "0").mkdir()
    (tmp_path / "0/result.json").write_text(f'{{"format": 1{more}}}')
    with pytest.raises(UserError, match="0/result.json is damaged or was edited .*run the job again"):
        read_jobs(tmp_path)

"""perfusion report on real small runs, opened in a real browser where there is one."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_emojiland import DRAWN, QUICK, SCORE
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
    perfusion_here("train", *QUICK, *DRAWN, "max_steps=6", "hydra.run.dir=run")
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


def whole_job(folder: Path) -> dict:
    """An experiment's job as the campaign damages it, `format` 1: without a sum, as an edited one."""
    sys.path.append(str(Path(__file__).parents[2] / "scripts/campaign"))
    import kinds

    folder.mkdir()
    return json.loads(kinds.job(folder, 0))


def changed(result: dict, key: str, value) -> None:
    """Sets a dotted key; takes it away for a value of `...`."""
    *way, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    for part in way:
        result = result[part]
    if value is ...:
        del result[last]
    else:
        result[last] = value


@pytest.mark.parametrize("key, value, said", [
    ("rows.text.3", [0.1], "rows.text.3: "),
    ("rows.text.3", "0.1", "rows.text.3: "),
    ("rows.text.3", float("nan"), "rows.text.3: "),
    ("rows.image", [0.1], "rows.image has 1 entries, rows.text has 8"),
    ("rows.image", ..., "rows.image is not known for every picture"),
    ("rows.image.2", None, "rows.image is not known for every picture"),
    ("rows.text", ..., "rows.text has 0 entries for 2 prompts and 2 points"),
    ("rows.point.0", 1, "rows.point does not go through the prompts, noises and points in order"),
    ("rows", 5, "rows: "),
    ("prompts", ["a {}"], "rows.prompt does not go through"),
    ("points.1.beta", ..., "points.1: "),
    ("points.1.beta", 0.7, "summary has other points"),
    ("summary.0.image", ..., "summary.0.image: "),
    ("summary.0.facts", [1], "summary.0.facts"),
    ("job", 5, "job: "),
    ("job", ..., "job: "),
    ("job.seed", "0", "job.seed: "),
    ("trained.base_hash", None, "trained.base_hash: "),
    ("training.train_seconds", ..., "training.train_seconds: "),
    ("surroundings", {}, "surroundings.commit: "),
])  # fmt: skip
def test_rows_of_another_shape_are_not_joined(tmp_path, key, value, said):
    result = whole_job(tmp_path / "0")
    changed(result, key, value)
    (tmp_path / "0/result.json").write_text(json.dumps(result))
    with pytest.raises(UserError) as caught:
        read_jobs(tmp_path)
    assert f"0/result.json is damaged or was edited ({said}" in str(caught.value), caught.value
    assert "\n" not in str(caught.value) and "run the job again" in str(caught.value)


def test_a_whole_job_is_joined_and_has_a_page(tmp_path):
    (tmp_path / "x").mkdir()
    result = whole_job(tmp_path / "x/0")
    (tmp_path / "x/0/result.json").write_text(json.dumps(result))
    assert read_jobs(tmp_path / "x")["a"]["teddy*", 0][1] == result
    assert "<h2>Operating points</h2>" in of_run(tmp_path / "x/0")

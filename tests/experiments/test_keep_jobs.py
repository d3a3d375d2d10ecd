"""scripts/keep_jobs.sh: what jobs measured leaves multirun/ and comes back, their pictures do not."""

import shutil
import subprocess

import pytest
from helpers_emojiland import ROOT


@pytest.fixture
def keep(tmp_path):
    for name in ("a" * 16, "b" * 16):
        folder = tmp_path / "multirun/demo" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(f'{{"job": "{name}"}}')
        (folder / "pictures.png").write_bytes(b"large")
    script = ROOT / "scripts/keep_jobs.sh"
    return lambda *names: subprocess.run([script, *names], check=False, cwd=tmp_path, capture_output=True, text=True)


def test_results_of_jobs_come_back_alone(keep, tmp_path):
    assert keep("demo").returncode == 0
    archive = tmp_path / "results/jobs/demo.tar.xz"
    first = archive.read_bytes()
    shutil.rmtree(tmp_path / "multirun")
    subprocess.run(["tar", "xf", archive], cwd=tmp_path, check=True)
    back = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("multirun/*/*/*"))
    assert back == [f"multirun/demo/{name * 16}/result.json" for name in "ab"]
    assert (tmp_path / back[0]).read_text() == f'{{"job": "{"a" * 16}"}}'
    keep("demo")
    assert archive.read_bytes() == first  # the same results are the same file


def test_an_experiment_without_jobs_keeps_nothing(keep, tmp_path):
    assert keep("other").returncode != 0 and not list(tmp_path.glob("results/jobs/other*"))
    said = keep()
    assert said.returncode == 2 and "keep_jobs.sh NAME" in said.stdout

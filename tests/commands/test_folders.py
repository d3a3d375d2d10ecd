"""No two jobs of a sweep, and no two runs of other settings, write to one folder."""

from pathlib import Path

import pytest
from helpers_emojiland import QUICK

from perfusion.commands import apps

KEY_LOCKING, NUMBERED = "+experiment=key_locking", "hydra.sweep.subdir=${hydra.job.num}"
MANY = f"seed={','.join(map(str, range(12)))}"  # of which, with two concepts, some jobs are looked at where MOST is 20


def refused(capsys, *overrides: str, app: str = "train") -> str:
    with pytest.raises(SystemExit) as stop:
        apps._check(app, list(overrides))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("overrides", [
    ("hydra.sweep.subdir=a",),
    ("hydra.sweep.dir=b", "hydra.sweep.subdir=a"),
    ("hydra.sweep.subdir=.",),
    ("hydra.sweep.subdir=${seed}", "concept=teddy,cat"),
    ("hydra.sweep.subdir=${seed}", "concept=teddy,cat", MANY),
    (KEY_LOCKING, "hydra.sweep.subdir=${seed}"),
])  # fmt: skip
def test_two_jobs_in_one_folder_are_refused_before_the_first(overrides, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("perfusion.commands.sweeping.MOST", 20)
    said = refused(capsys, "-m", "seed=0,1", *overrides)
    assert "give two jobs the folder" in said and "'hydra.sweep.subdir=${hydra.job.num}'" in said, said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("overrides", [
    ("hydra.sweep.dir=b",),
    ("hydra.sweep.dir=b", NUMBERED),
    ("hydra.sweep.subdir=${concept.name}_${seed}", "concept.name=a,b"),
    ("hydra.sweep.subdir=${hydra.job.override_dirname}",),
    ("hydra.sweep.dir=b/${seed}", "hydra.sweep.subdir=a"),
    (KEY_LOCKING, "concept=teddy,cat"),
    (KEY_LOCKING, "picture=false,true"),  # one work under two names: its second job finds the first one's result
    (KEY_LOCKING, NUMBERED),
])  # fmt: skip
def test_jobs_with_folders_of_their_own_pass(overrides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    apps._check("train", ["-m", "seed=0,1", *overrides])


@pytest.mark.parametrize("overrides, words", [
    (("hydra.job.chdir=true",), "hydra.job.chdir=true does not work"),
    (("-m", "seed=0,1", "hydra.job.chdir=true"), "hydra.job.chdir=true does not work"),
    (("-m", KEY_LOCKING, "hydra.sweep.dir=b"), "give hydra.sweep.dir=b/key_locking, and multirun=b to perfusion collect"),
    ((KEY_LOCKING, "arm=locked", "hydra.sweep.dir=b"), "hydra.sweep.dir=b does not end in the experiment's name"),
    (("hydra.run.dir=file",), "hydra.run.dir=file is a file, or within one; give a folder."),
    (("hydra.run.dir=file/a/b",), "hydra.run.dir=file/a/b is a file, or within one"),
    (("-m", "seed=0,1", "hydra.sweep.dir=file"), "file/0 is a file, or within one"),
])  # fmt: skip
def test_a_folder_where_nothing_would_be_found_is_refused(overrides, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert words in refused(capsys, *overrides)
    apps._check("train", ["-m", KEY_LOCKING, "hydra.sweep.dir=b/key_locking"])


def test_a_run_is_not_written_over_by_another(perfusion_here, capsys):
    run = QUICK
    perfusion_here("train", *run, "hydra.run.dir=out/a")
    perfusion_here("train", "-m", *run, "hydra.sweep.dir=many", "seed=0,1", "max_steps=1")
    capsys.readouterr()
    files = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    for app, overrides, said in [
        ("train", (*run, "hydra.run.dir=out/a", "seed=1"), "hydra.run.dir=out/a holds"),
        ("train", (*run, "hydra.run.dir=out/a", "resume=many/0"), "go on from it with resume=out/a"),
        ("evaluate", ("concept_file=out/a/concept.safetensors", "hydra.run.dir=out/a"), "hydra.run.dir=out/a holds"),
        ("generate", ("prompts=a", "hydra.run.dir=${now:%Y}/../out/a"), "(concept.safetensors, last.ckpt, result.json)"),
        ("train", ("-m", *run, "hydra.sweep.dir=many", "seed=1,0", "max_steps=1"), "many/0 holds"),
        ("train", ("-m", *run, "hydra.sweep.dir=out", "hydra.sweep.subdir=a", "seed=1"), "out/a holds"),
        ("generate", ("-m", "prompts=a", "hydra.sweep.dir=many", "seed=0,1"), "many/0 holds"),
    ]:  # fmt: skip
        assert said in refused(capsys, *overrides, app=app)
    assert files == {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    for overrides in (
        (*run, "hydra.run.dir=out/a"),  # the same again
        (*run, "hydra.run.dir=out/a", "resume=out/a", "max_steps=3"),
        (*run, "hydra.run.dir=out/a", "resume=out/a/last.ckpt", "max_steps=3"),
        (*run, "hydra.run.dir=out/b", "seed=1"),
        ("-m", *run, "hydra.sweep.dir=many", "seed=0,1", "max_steps=1"),
    ):
        apps._check("train", list(overrides))

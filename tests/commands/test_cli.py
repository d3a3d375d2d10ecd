"""The one entry of every command: what becomes of its answer."""

import subprocess
from pathlib import Path

import pytest
from helpers_emojiland import command, elsewhere


@pytest.fixture
def concept_file(pipe, make_concept, tmp_path) -> Path:
    make_concept(pipe).save(tmp_path / "teddy.safetensors")
    return tmp_path / "teddy.safetensors"


@pytest.mark.parametrize("unbuffered", ["", "1"])  # an error at the end, and one within print
@pytest.mark.parametrize("words", [("info", "FILE"), ("--help",), ("train", "--cfg", "job")])
def test_a_reader_that_leaves_early_ends_it_quietly(concept_file, assets, words, unbuffered):
    """As in `perfusion info FILE | head -1`; the reader is gone before the first line, so that none races."""
    environment = elsewhere(assets) | {"PYTHONUNBUFFERED": unbuffered}
    words = [str(concept_file) if word == "FILE" else word for word in words]
    run = subprocess.Popen(
        command(*words), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=concept_file.parent
    )
    run.stdout.close()
    said = run.stderr.read().decode()
    assert (run.wait(timeout=120), said) == (141, "")


def test_an_answer_that_finds_no_room_is_told(concept_file, assets):
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            command("info", str(concept_file)), env=elsewhere(assets), stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert run.returncode == 2 and run.stderr.startswith(
        "perfusion: the answer or a file cannot be written (No space left"
    )
    assert len(run.stderr.splitlines()) == 1


def test_the_exit_codes_stay(concept_file, assets):
    run = lambda *words: subprocess.run(command(*words), env=elsewhere(assets), capture_output=True, check=False)
    assert run("info", str(concept_file)).returncode == run("--help").returncode == 0
    assert run("info", "nothing.safetensors").returncode == run("nothing").returncode == 2

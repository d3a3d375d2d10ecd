"""The one entry of every command: what becomes of its answer."""

import subprocess
from pathlib import Path

import pytest
from helpers_emojiland import command, elsewhere
from hydra.core.override_parser.overrides_parser import OverridesParser

from perfusion.commands.apps import value
from perfusion.commands.cli import main


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


@pytest.mark.parametrize("words, said", [
    (("train", "seed=1", "--cfg", "job", "max_steps=3"), None),  # flags among the values
    (("train", "max_steps=3", "-c", "job", "seed=1"), None),
    (("train", "seed=1", "--cfg", "some"), "argument --cfg/-c: invalid choice: 'some'"),
    (("train", "seed=1", "--nothing"), "unrecognized arguments: --nothing; perfusion train --help lists keys"),
    (("train", "--resolve"), "--resolve does not work (ValueError: The --resolve flag can only be used in conjunction"),
    (("generate", "--config-name=train"), "--config-name=train does not go with perfusion generate; leave it out"),
    (("train", "-m", "--cfg", "job"), "--cfg=job does not work (ValueError: Only one of"),
    (("collect", "experiment=nope"), "experiment=nope is unknown; allowed are: baselines, covariance_tokens"),
    (("info",), "the following arguments are required: file; give it as in perfusion info [-h] file."),
    (("web", "nothing=5"), "nothing is no key of perfusion train; allowed are: model"),
    (("web", "seed=1", "--port", "x"), "argument --port: invalid int value: 'x'; give it as in perfusion web"),
])  # fmt: skip
def test_words_of_any_order_are_taken_or_refused_in_a_sentence(words, said, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["perfusion"])
    code = 0
    try:
        main(list(words))
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr()
    if said is None:
        assert code == 0 and "\nseed: 1\n" in shown.out and "\nmax_steps: 3\n" in shown.out
    else:
        assert code == 2 and shown.err.startswith(f"perfusion: {said}") and shown.err.count("\n") == 1, shown.err


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


@pytest.mark.parametrize(
    "path", ["out/a.safetensors", "c (1), x=y.safetensors", 'q"u\\o.safetensors', "ü/{é}.safetensors", "a\\"]
)
def test_a_path_in_the_next_command_is_read_as_it_was_written(path):
    """By Hydra itself, beside the concept's word."""
    override = OverridesParser.create().parse_override(f"concepts={{teddy*: {value(path)}}}")
    assert override.value() == {"teddy*": path}

"""What a training shows: a few lines of its own, no library's; the log file has the rest."""

from pathlib import Path

from helpers_emojiland import DRAWN, QUICK

from perfusion.commands.terminal import VARIABLE, take_flags

BAR = [*(word for word in QUICK if "progress_bar" not in word), *DRAWN]
CHATTER = (
    "INFO",
    "Tip",
    "Epoch",
    "Loading",
    "LeafSpec",
    "is not empty",
    "log_every_n_steps",
    "open_clip",
    "GPU available",
)


def test_a_training_shows_ten_lines_and_quiet_its_answer(perfusion_here, monkeypatch, capfd):
    monkeypatch.setenv(VARIABLE, "0")
    perfusion_here("train", *BAR, "concept_file=mine.safetensors", "hydra.run.dir=run")
    said = capfd.readouterr()
    lines = [line for line in (said.err.replace("\r", "\n") + said.out).splitlines() if line.strip()]
    assert not [word for word in CHATTER if word in said.err + said.out], said
    assert [line.split(":")[0] for line in said.out.splitlines()] == ["kept", "concept", "picture", "report", "next"]
    assert "learning:  teddy* (a teddy) from 5 pictures" in lines[0] and len(lines) <= 12, lines
    assert any("step 2/2" in line and "loss " in line and "score" in line for line in lines), lines
    assert "concept:   mine.safetensors" in said.out and "concepts={teddy*: mine.safetensors}" in said.out
    assert Path("run/report.html").read_text().startswith("<!doctype html>")
    assert "Parsing model identifier" in Path("run/train.log").read_text()

    perfusion_here("-q", "train", *BAR, "hydra.run.dir=quiet")
    said = capfd.readouterr()
    assert said.out.startswith("kept: ") and not said.err.strip(), said.err


def test_flags_are_taken_wherever_they_stand(monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    assert take_flags(["train", "-q", "seed=1", "-m"]) == ["train", "seed=1", "-m"]
    assert take_flags(["-v", "train"]) == ["train"]

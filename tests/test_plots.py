"""Text in figures is text, and a picture that cannot be drawn costs nothing else."""

import warnings

import pytest
from PIL import Image

from perfusion.evaluation.figure import front_figure
from perfusion.plots import attempt, grid

WORDS = ["$x_^$", "$", "a_b^c \\frac", "\U0001f9f8 熊 ħ", "two\nlines", "x" * 300]


@pytest.mark.parametrize("word", WORDS)
def test_any_word_is_drawn_without_a_warning(tmp_path, word):
    picture = Image.new("RGB", (8, 8))
    points = [{"text": 0.1 * i, "image": 0.5 - 0.1 * i, "beta": i, "pareto": True} for i in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(constrained|[Tt]ight).*layout.*")  # a long word leaves no room
        grid([(word, [(word, picture)] * 2)], tmp_path / "grid.png")
        if len(word) < 100:
            front_figure({word: points}, {word: [(word, picture)]}, tmp_path / "front.png", word, word)
    assert (tmp_path / "grid.png").stat().st_size > 1000


def test_a_picture_that_fails_is_said(tmp_path, capsys):
    assert not attempt(grid, [], path=tmp_path / "none.png") and not (tmp_path / "none.png").exists()
    assert f"warning: {tmp_path / 'none.png'} could not be drawn (ValueError" in capsys.readouterr().err
    assert attempt(grid, [("", [("", Image.new("L", (4, 4)))])], path=tmp_path / "one.png")
    assert list(tmp_path.iterdir()) == [tmp_path / "one.png"]  # nothing half-written

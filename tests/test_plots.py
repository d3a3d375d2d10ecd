"""Text in figures is text, and a picture that cannot be drawn costs nothing else."""

import warnings

import numpy as np
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


@pytest.mark.parametrize("words", ["very " * 500, "x" * 5000, "https://" + "a/" * 500])
def test_a_long_text_leaves_its_picture_to_be_seen(tmp_path, words):
    rows = [("", [(text, Image.new("RGB", (8, 8), "red"))]) for text in ("short", words, words)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid(rows, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as drawn:
        assert drawn.width < 1000 and drawn.height < 1500
        red = (np.asarray(drawn.convert("RGB")) == (255, 0, 0)).all(-1).sum(1) > 100
    assert (np.diff(red.astype(int)) == 1).sum() == len(rows)  # whole pictures below one another


def test_a_picture_that_fails_is_said(tmp_path, capsys):
    assert not attempt(grid, [], path=tmp_path / "none.png") and not (tmp_path / "none.png").exists()
    assert f"warning: {tmp_path / 'none.png'} could not be drawn (ValueError" in capsys.readouterr().err
    assert attempt(grid, [("", [("", Image.new("L", (4, 4)))])], path=tmp_path / "one.png")
    assert list(tmp_path.iterdir()) == [tmp_path / "one.png"]  # nothing half-written

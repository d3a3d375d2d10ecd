"""A lesson: uploads checked, masks found and mended, learned to the end or to the best so far."""

import numpy as np
import pytest
from helpers_web import uploads
from PIL import Image

from perfusion.errors import UserError
from perfusion.learning.pictures import picture_paths
from perfusion.method.concept import Concept
from perfusion.web.lesson import MOST, Lesson
from perfusion.web.teach import VEIL, mask_of


def test_uploads_are_checked_and_their_names_become_no_paths(tmp_path):
    paths = uploads(tmp_path)
    lesson = Lesson(tmp_path / "lesson", paths)
    assert [p.name for p in picture_paths(tmp_path / "lesson")] == ["1.png", "2.png"]
    assert np.array_equal(np.asarray(Image.open(lesson.paths[0])), np.asarray(Image.open(paths[0])))
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (8000, 8000)).save(tmp_path / "vast.png")
    for n, (wrong, said) in enumerate(
        [
            ([], "there are 0 pictures"),
            (paths * MOST, "give 1 to 7"),
            ([tmp_path / "text.png"], "cannot be read"),
            ([tmp_path / "vast.png"], "8000 x 8000"),
        ]
    ):
        with pytest.raises(UserError, match=said):
            Lesson(tmp_path / f"wrong {n}", wrong)
        assert not (tmp_path / f"wrong {n}").exists()


def test_a_mended_mask_stays_when_the_word_changes(tmp_path, cfg):
    lesson = Lesson(tmp_path / "lesson", uploads(tmp_path))
    lesson.find_masks("teddy", cfg.model.segmenter)
    masks = [np.asarray(lesson.picture_and_mask(n)[1]) for n in (0, 1)]
    painted = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    painted.paste((255, 0, 200, VEIL), (64, 0, 128, 128))
    lesson.mend(0, mask_of({"layers": [painted]}))
    lesson.find_masks("cat", cfg.model.segmenter)
    mended, other = (np.asarray(lesson.picture_and_mask(n)[1]) for n in (0, 1))
    assert mended[:, :24].max() == 0 and mended[:, 40:].min() == 255 and not np.array_equal(mended, masks[0])
    assert other.shape == masks[1].shape and len(lesson.overlays()) == 2
    with pytest.raises(UserError, match="empty"):
        lesson.mend(0, Image.new("L", (64, 64)))


def test_learning_tells_of_its_steps_and_ends_with_a_file(tmp_path, cfg):
    lesson = Lesson(tmp_path / "lesson", uploads(tmp_path))
    told = [
        (p.step, len(p.losses), len(p.scores), len(p.drawn), p.file) for p in lesson.learn(cfg, "mine*", "teddy", 2)
    ]
    *_, (step, losses, scores, drawn, file) = told
    assert (step, losses, scores, drawn) == (2, 2, 1, 1) and Concept.load(file).trigger == "mine*"


def test_stopped_it_keeps_the_best_so_far(tmp_path, cfg):
    lesson = Lesson(tmp_path / "lesson", uploads(tmp_path))
    last = None
    for progress in lesson.learn(cfg, "mine*", "teddy", 500):
        if progress.step >= 1:
            lesson.stop.set()
        last = progress
    concept = Concept.load(last.file)
    assert 1 <= concept.steps <= last.step < 500
    with pytest.raises(UserError, match="exactly 1 is allowed"):
        list(lesson.learn(cfg, "mine*", "zzyzxq", 2))

"""The pictures behind an experiment's points: small at any number of points, of one concept and seed, none where none are."""

import numpy as np
import pytest
from PIL import Image

from perfusion.errors import UserError
from perfusion.experiments.sheets import LARGEST, behind, keep_pictures, kept_pictures
from perfusion.plots import contact_sheet

RNG = np.random.default_rng(0)


def noise(side: int) -> Image.Image:
    """What JPEG makes least smaller."""
    return Image.fromarray(RNG.integers(0, 256, (side, side, 3), dtype=np.uint8))


def job(folder, points: int, side: int, prompts: int = 5, draw=noise):
    folder.mkdir(parents=True)
    contact_sheet([[draw(side) for _ in range(points)] for _ in range(min(4, prompts))], folder / "pictures.png")
    return folder, {"prompts": [f"{n} {{}}" for n in range(prompts)], "points": [{"beta": n} for n in range(points)]}


def joined(jobs: dict, about: dict) -> dict:
    arms = {arm: {"points": next(iter(of.values()))[1]["points"]} for arm, of in jobs.items()}
    return {"arms": arms, "pictures": about}


@pytest.mark.parametrize(("arms", "points", "side"), [(2, 5, 64), (2, 5, 256), (10, 12, 64)])
def test_an_experiment_s_pictures_stay_small(tmp_path, arms, points, side):
    jobs = {f"arm{n}": {("teddy*", 0): job(tmp_path / f"{n}", points - n % 2, side)} for n in range(arms)}
    about = keep_pictures(jobs, tmp_path / "e.jpg")
    assert about == {"concept": "teddy*", "seed": 0, "prompts": ["0 {}", "1 {}", "2 {}", "3 {}"], "arms": list(jobs)}
    assert 1000 < (tmp_path / "e.jpg").stat().st_size <= LARGEST
    shown = kept_pictures(tmp_path / "e.jpg", joined(jobs, about))
    assert [len(shown[f"arm{n}"]) for n in range(arms)] == [points - n % 2 for n in range(arms)]
    for kept, original in zip(shown["arm1"], behind(*jobs["arm1"]["teddy*", 0])):  # each at its own place
        small = lambda picture: np.asarray(picture.resize((4, 4), Image.Resampling.BOX), float)
        assert np.abs(small(kept) - small(original)).max() < 40 * (64 / side + 0.3)
    assert about and (tmp_path / "e.jpg").read_bytes() and keep_pictures(jobs, tmp_path / "again.jpg") == about
    assert (tmp_path / "again.jpg").read_bytes() == (tmp_path / "e.jpg").read_bytes()


def test_the_concept_that_is_shown_has_pictures_in_the_most_arms(tmp_path, capsys):
    plain = lambda side: Image.new("RGB", (side, side), "red")
    jobs = {
        arm: {(c, 0): job(tmp_path / arm / c, 2, 8, prompts=1, draw=plain) for c in ("cat*", "teddy*", f"{arm}*")}
        for arm in "ab"
    }
    assert keep_pictures(jobs, tmp_path / "e.jpg")["concept"] == "cat*"
    (tmp_path / "a/cat*/pictures.png").unlink()
    about = keep_pictures(jobs, tmp_path / "e.jpg")
    assert about == {"concept": "teddy*", "seed": 0, "prompts": ["0 {}"], "arms": ["a", "b"]}
    (tmp_path / "a/teddy*/pictures.png").unlink()
    about = keep_pictures(jobs, tmp_path / "e.jpg")
    assert about["concept"] == "cat*" and about["arms"] == ["b"]
    shown = kept_pictures(tmp_path / "e.jpg", joined(jobs, about))
    assert [p.size for p in shown["b"]] == [(8, 8)] * 2 and "a" not in shown
    assert np.abs(np.asarray(shown["b"][0], int) - (255, 0, 0)).max() < 8

    (tmp_path / "e.jpg").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"e.jpg is damaged .*; restore it, or run perfusion collect again"):
        kept_pictures(tmp_path / "e.jpg", joined(jobs, about))
    (tmp_path / "b/cat*/pictures.png").write_bytes(b"cut")
    assert keep_pictures(jobs, tmp_path / "e.jpg") is None and "e.jpg could not be drawn" in capsys.readouterr().err
    assert not (tmp_path / "e.jpg").exists() and kept_pictures(tmp_path / "e.jpg", joined(jobs, about)) == {}
    assert kept_pictures(tmp_path / "e.jpg", {"arms": {}}) == {}  # of an older program

"""The world: deterministic, true to its captions, and blind to what is held out."""

from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from pretrain_unet import parted

from perfusion.emojiland import scenes
from perfusion.emojiland.cache import SceneCache, square, world
from perfusion.emojiland.captions import captions
from perfusion.emojiland.pretraining import Pretraining
from perfusion.emojiland.scenes import Facts, describe, draw, sample_facts, scene
from perfusion.emojiland.sprites import artists_of, drawings, other_drawings, parts, sprites, tinted
from perfusion.emojiland.vocabulary import (
    ACCESSORIES,
    ARTISTS,
    CLASSES,
    COLORS,
    FINAL,
    HELD_OUT,
    LEFT_OUT,
    MIRRORED,
    PLACES,
)


def test_size_of_the_world():
    assert len(CLASSES) == 32 and len(PLACES) >= 9 and len(ACCESSORIES) >= 3 and len(HELD_OUT) == 16 and len(FINAL) == 8
    assert all(4 <= len(artists_of(name, True)) <= 6 for name in CLASSES)
    assert not LEFT_OUT & set(sprites()) and MIRRORED <= set(sprites())
    assert all((name, artist) in sprites() for name, artist in HELD_OUT.items())
    assert all(len(artists_of(name, False)) == len(artists_of(name, True)) - 1 for name in HELD_OUT)


@pytest.mark.slow
def test_no_held_out_drawing_reaches_pretraining():
    held = set(HELD_OUT.items())
    for index in range(20_000):
        facts = sample_facts(np.random.default_rng([1, index]))
        assert (facts.object, facts.artist) not in held and (facts.second, facts.second_artist) not in held
    seen = {(f.object, f.artist) for f in (sample_facts(np.random.default_rng([1, i]), True) for i in range(20_000))}
    assert held <= seen == set(drawings())  # the judges do see them


def test_scene_is_a_function_of_its_seed():
    for index in range(20):
        a, b = scene(5, index), scene(5, index)
        assert a.caption == b.caption and a.facts == b.facts
        assert a.image.tobytes() == b.image.tobytes() and a.mask.tobytes() == b.mask.tobytes()
    assert scene(5, 0).image.tobytes() != scene(6, 0).image.tobytes()


def test_caption_says_the_facts():
    for index in range(500):
        s = scene(7, index)
        words = s.caption.split()
        assert s.facts.object in words
        assert (s.facts.place is None) == (not any(phrase in s.caption for phrase in PLACES.values()))
        for fact in (s.facts.color, s.facts.accessory, s.facts.second):
            assert fact is None or fact in words
        said = s.caption.replace("a black and white photo", "").split()
        assert set(said) & set(COLORS) == {s.facts.color} - {None}  # colours of parts are not said


def test_parts_of_a_drawing_take_their_own_colours():
    bear, whole = ("teddy", "twemoji"), np.asarray(sprites()["teddy", "twemoji"])
    of = parts(*bear)
    assert (of == 1).sum() > (of == 2).sum() > (of == 3).sum() > 0
    for part, colors in enumerate((("teal", None, None), (None, "teal", None), (None, None, "teal")), 1):
        picture = np.asarray(tinted(*bear, *colors)).astype(int)
        changed = (picture != whole).any(-1) & (whole[..., 3] > 0)
        assert (of[changed] == part).all() and changed.sum() > 0.9 * (of == part).sum()
        assert np.abs(np.median(picture[of == part][:, :3], 0) - COLORS["teal"]).max() < 4


def test_captions_name_the_artist_in_a_share_of_the_scenes():
    named = 0
    for index in range(500):
        facts = sample_facts(np.random.default_rng([8, index]))
        caption = describe(facts, np.random.default_rng(index), styled=1)
        assert f" in {ARTISTS[facts.artist]} style" in caption
        assert not facts.second or f"{facts.second} in {ARTISTS[facts.second_artist]} style" in caption
        assert "style" not in describe(facts, np.random.default_rng(index), styled=0)
        named += "style" in describe(facts, np.random.default_rng(index))
    assert 0.25 < named / 500 < 0.5


def test_one_orientation_a_drawing():
    """Scenes of one drawing differ in place, size and tint; the mirrored drawing is no closer fit than the drawing itself."""
    for index in range(5):
        _, mask, _ = draw(Facts("guitar", "noto"), np.random.default_rng(index))
        seen = np.asarray(mask.crop(mask.getbbox()).resize((32, 32)), float)
        drawn = np.asarray(sprites()["guitar", "noto"].getchannel("A").resize((32, 32)), float)
        assert np.abs(seen - drawn).mean() < 0.5 * np.abs(seen - drawn[:, ::-1]).mean()


def test_scenes_of_another_edition_are_not_taken(monkeypatch):
    before = world()
    monkeypatch.setattr(scenes.describe, "__defaults__", (0.9,))
    assert world() != before


def test_mask_is_where_the_object_is():
    """Only the mask's pixels change when nothing but the object's colour does."""
    for name in ("teddy", "car", "house"):
        red, mask, _ = draw(Facts(name, "twemoji", color="red"), np.random.default_rng(3))
        blue, *_ = draw(Facts(name, "twemoji", color="blue"), np.random.default_rng(3))
        changed = np.abs(np.asarray(red, int) - np.asarray(blue, int)).sum(-1) > 0
        assert changed.sum() > 100 and not (changed & (np.asarray(mask) == 0)).any()


def test_scenes_of_two_objects_are_drawn_more_often(tmp_path):
    cache = SceneCache(100, 1, held_out=False, folder=tmp_path)
    pool = Pretraining(OmegaConf.create({"twos": 3}), cache).pool
    assert list(np.bincount(pool)) == [3 if fact.second else 1 for fact in cache.facts]


def test_the_second_object_has_a_mask_of_its_own():
    """The two masks share no full pixel; without a second object the second is empty."""
    facts = Facts("teddy", "noto", second="car", second_artist="twemoji")
    for index in range(5):
        _, main, second = (np.asarray(part) for part in draw(facts, np.random.default_rng(index)))
        assert (main > 127).sum() > 100 and (second > 127).sum() > 100 and not ((main > 127) & (second > 127)).any()
        assert not np.asarray(draw(Facts("teddy", "noto"), np.random.default_rng(index))[2]).any()


def test_mutants_are_of_their_class_and_nobodys_drawing(monkeypatch):
    """At any share the other scenes are what they are at 0; a mutant keeps the caption, and takes nothing from a held-out drawing."""
    shown = [(scene(5, i), scene(5, i, mutants=0.5)) for i in range(40)]
    changed = [b.facts.mutant is not None for _, b in shown]
    assert 10 < sum(changed) < 30
    for (plain, other), mutated in zip(shown, changed):
        assert (plain.image.tobytes() == other.image.tobytes()) != mutated and plain.caption == other.caption
        assert replace(other.facts, mutant=None, second_mutant=None) == plain.facts
    asked = []
    monkeypatch.setattr("perfusion.emojiland.mutants.tinted", lambda *of: asked.append(of[:2]) or tinted(*of))
    for i in range(200):
        scene(6, i, mutants=1.0)
    assert len(asked) > 250 and not {*asked} & {*HELD_OUT.items()}


def test_scenes_of_other_drawings_keep_all_but_the_looks():
    for i in range(30):
        plain, other = scene(5, i), scene(5, i, strangers=1.0)
        assert other.facts.artist.isdigit() and parted(other.facts) and "style" not in other.caption
        assert np.asarray(other.mask).max() > 127 and plain.image.tobytes() != other.image.tobytes()
        looks = {name: getattr(plain.facts, name) for name in ("artist", "second_artist")}
        assert replace(other.facts, **looks) == plain.facts
        assert (other.facts.second is None) == (other.facts.second_artist is None)


@pytest.mark.slow
def test_no_other_drawing_is_nearly_a_held_out_one():
    small = lambda drawing: np.asarray(square(drawing), np.float32) / 255
    others = np.stack([small(drawing) for drawing in other_drawings()])
    assert len(others) > 5000
    for pair in HELD_OUT.items():  # a guitar and a plunger are the nearest, 0.081 apart
        assert np.abs(others - small(sprites()[pair])).mean((1, 2, 3)).min() > 0.07, pair


def test_captions_repeat():
    assert captions(50) == captions(60)[:50] and len(set(captions(200))) > 150


@pytest.mark.parametrize("name", HELD_OUT)
def test_committed_pictures_are_the_held_out_drawings(name):
    import pathlib

    folder = pathlib.Path(__file__).parents[2] / "data/concepts" / name
    pictures = [p for p in sorted(folder.glob("*.png")) if not p.name.endswith(".mask.png")]
    assert 5 <= len(pictures) <= 7 and all(Image.open(p).size == (64, 64) for p in pictures)
    split = "final" if name in FINAL else "dev"
    assert f"artist: {HELD_OUT[name]} " in (folder / "concept.yaml").read_text()
    assert f"split: {split} " in (folder / "concept.yaml").read_text()


def test_evaluation_prompts_say_their_facts():
    from omegaconf import OmegaConf

    from perfusion.config import ROOT
    from perfusion.emojiland.vocabulary import ARTS

    prompts = OmegaConf.load(ROOT / "data/prompts/emojiland.yaml")
    assert (len(prompts.dev), len(prompts.final)) == (16, 32) and not {p.text for p in prompts.dev} & {
        p.text for p in prompts.final
    }
    for prompt in [*prompts.dev, *prompts.final]:
        words = prompt.text.split()
        assert "{}" in words
        assert all(prompt[k] in words for k in ("color", "accessory", "second") if k in prompt)
        assert (
            (PLACES[prompt.place] in prompt.text)
            if "place" in prompt
            else not any(p in prompt.text for p in PLACES.values())
        )
        assert prompt.text.startswith(ARTS[prompt.art]) if "art" in prompt else True

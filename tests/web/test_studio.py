"""What the studio keeps changes no picture; a moved slider encodes no text; everyone gets their own concepts' picture."""

import threading
from contextlib import nullcontext
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest
from helpers_denoisers import TINY

from perfusion.errors import UserError
from perfusion.method.denoiser import denoiser_of
from perfusion.method.layers import WidenedLinear
from perfusion.method.pipeline import load_concepts
from perfusion.method.sampling import Sampling, draw
from perfusion.web.api import offer
from perfusion.web.command import configuration
from perfusion.web.library import Library
from perfusion.web.play import Play
from perfusion.web.studio import COARSE, SHIFTS, Broken, Knob, Studio, Wish

WISH = Wish("a teddy* on a beach", (Knob("teddy*", 0.6, 0.1),), None, 3, 5, 4.0)
same = lambda a, b: np.array_equal(np.asarray(a), np.asarray(b))


def by_hand(stock, files, wish, resolution=64):
    """The wish's picture by the road that a library's user takes."""
    stock.scheduler = type(stock.scheduler).from_config(stock.scheduler.config)
    handle = load_concepts(stock, {k.word: files[k.word] for k in wish.knobs})
    try:
        with handle.gate(
            beta={k.word: k.beta for k in wish.knobs}, tau={k.word: k.tau for k in wish.knobs}, lock=wish.lock
        ):
            return draw(stock, [wish.prompt], [wish.seed], Sampling(wish.steps, wish.guidance, resolution=resolution))[
                0
            ]
    finally:
        handle.unload()


@pytest.fixture
def alike(studio, stock):
    """The stock pipeline with the page's scheduler."""
    stock.scheduler = type(studio.pipe.scheduler).from_config(studio.pipe.scheduler.config)
    return stock


def test_pictures_are_those_of_the_pipeline_whatever_was_kept(studio, alike, files):
    both = replace(WISH, prompt="a teddy* and a cat*", knobs=(*WISH.knobs, Knob("cat*", 0.8, 0.2)))
    other = replace(WISH, knobs=(Knob("teddy*", 1.0, 0.1),))
    for wish in (WISH, other, replace(WISH, seed=4), both, replace(WISH, lock="global"), WISH):
        drawn, wanted = (np.asarray(p, int) for p in (studio.picture(wish), by_hand(alike, files, wish)))
        assert abs(drawn - wanted).max() <= 1, wish  # memory formats differ
    assert not same(studio.picture(WISH), studio.picture(other))
    coarse = studio.picture(WISH, coarse=True)
    assert same(coarse, studio.picture(replace(WISH, steps=COARSE))) and not same(coarse, studio.picture(WISH))


def test_the_base_model_s_picture_is_from_the_same_noise(studio, alike):
    prompt, picture = studio.base(WISH)
    assert prompt == "a teddy on a beach"
    wanted = draw(alike, [prompt], [WISH.seed], Sampling(WISH.steps, WISH.guidance, resolution=64))[0]
    assert abs(np.asarray(picture, int) - np.asarray(wanted, int)).max() <= 1


def test_the_strip_is_five_biases_of_one_batch(studio):
    strip = studio.strip(WISH)
    assert [shift for shift, _ in strip] == list(SHIFTS)
    for shift, picture in strip:
        alone = studio.picture(replace(WISH, knobs=(Knob("teddy*", round(0.6 + shift, 4), 0.1),)))
        assert abs(np.asarray(picture, int) - np.asarray(alone, int)).max() <= 2, shift


def test_a_moved_slider_encodes_no_text_and_the_full_picture_projects_nothing_anew(studio, monkeypatch):
    encoded, projected, project = [], [], WidenedLinear.project
    studio.pipe.text_encoder.register_forward_hook(lambda *_: encoded.append(1))
    monkeypatch.setattr(WidenedLinear, "project", lambda self, x: projected.append(1) or project(self, x))
    studio.picture(WISH, coarse=True)
    assert encoded and projected
    encoded.clear(), projected.clear()
    studio.picture(WISH)  # more steps
    studio.picture(replace(WISH, seed=9, guidance=2.0))
    assert not encoded and not projected
    studio.picture(
        replace(WISH, knobs=(Knob("teddy*", 0.9, 0.1),))
    )  # another bias: other keys and values, the same text
    assert not encoded and projected


def test_attention_has_the_words_that_are_offered(studio):
    looked = studio.looked(WISH)
    words, tokens = studio.words(WISH.prompt, ["teddy*"])
    assert words == list(looked.maps) == ["a", "teddy*", "on", "beach"] and tokens == 7
    assert (
        same(looked.picture, studio.picture(WISH))
        or np.abs(np.asarray(looked.picture, int) - np.asarray(studio.picture(WISH), int)).max() <= 1
    )


def test_a_stale_drawing_is_broken_off_and_not_kept(studio):
    whole, called = studio.picture(WISH), []

    def move_on(module, args):
        called.append(1)
        studio.break_off(slow)

    slow = replace(WISH, steps=50, seed=8)
    hook = studio.pipe.unet.register_forward_pre_hook(move_on)
    with pytest.raises(Broken):
        studio.picture(slow)
    hook.remove()
    assert len(called) == 1
    studio.break_off(slow)  # nothing is under way
    assert same(studio.picture(WISH), whole) and not same(studio.picture(slow), whole)


def test_a_slider_breaks_off_its_own_visitor_s_drawing_alone(studio, cfg, tmp_path):
    with gr.Blocks() as page:
        play = Play(studio)
        offer(studio, cfg, tmp_path)
    api = next(f.fn for f in page.fns.values() if f.api_name == "draw")
    a, b = (gr.Request(session_hash=name) for name in "ab")
    slid = lambda bias: (["teddy*"], WISH.prompt, None, WISH.seed, WISH.steps, WISH.guidance, *[bias] * 4, *[0.1] * 4)
    redraw = lambda: [pictures for pictures in play.redraw(a, *slid(0.6))]
    draw = lambda: api(a, WISH.prompt, {"teddy*": {"beta": 0.6, "tau": 0.1}}, "", WISH.seed, WISH.steps, WISH.guidance)
    strip = lambda: play.biases(a, *slid(0.6))
    attention = lambda: play.attention(a, "teddy*", *slid(0.6))
    assert play.wish_of(*slid(0.6)) == WISH

    def during(slider_of, drawn):
        """What is drawn while a visitor's slider is moved away from an equal wish at every step."""
        move = lambda *_: play.note(slider_of, *slid(0.6)) or play.note(slider_of, *slid(0.9))
        studio._pictures.clear()
        hook = studio.pipe.unet.register_forward_pre_hook(move)
        try:
            return drawn()
        finally:
            hook.remove()

    assert len(during(b, redraw)) == 3
    for drawn in (draw, strip, attention):
        assert during(b, drawn) is not None
        with pytest.raises(Broken) if drawn is not draw else nullcontext():
            during(a, drawn)


def test_two_people_at_once_get_their_own_concepts(studio):
    wishes = [
        replace(WISH, prompt=f"a {w} on a beach", knobs=(Knob(w, 0.6, 0.1),), seed=s)
        for s in (1, 2)
        for w in ("teddy*", "cat*")
    ]
    alone = [studio.picture(w) for w in wishes]
    studio._pictures.clear()
    drawn = {}
    threads = [threading.Thread(target=lambda w=w: drawn.setdefault(w, studio.picture(w))) for w in wishes]
    [t.start() for t in threads], [t.join() for t in threads]
    assert all(same(drawn[w], picture) for w, picture in zip(wishes, alone))


def test_wishes_that_cannot_be_drawn_are_refused(studio):
    for change, said in (
        ({"prompt": " "}, "letters"), ({"steps": 0}, "steps=0"), ({"steps": 10**6}, "1 to 100"), ({"seed": -1}, "seed=-1"),
        ({"guidance": float("nan")}, "guidance=nan"), ({"knobs": (Knob("dog*", 0.6, 0.1),)}, "no concept"),
        ({"knobs": (Knob("teddy*", 0.6, 0.0),)}, "positive"), ({"lock": "trained"}, "lock=trained"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            studio.picture(replace(WISH, **change))


@pytest.mark.parametrize("kind", ["pixart", "sana"])
def test_transformers_are_drawn_with_too(kind, make_concept, tmp_path, monkeypatch):
    """A slider that encodes and projects nothing anew, words, a stale drawing: as of a UNet."""
    pipe = TINY[kind]()
    pipe.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "concepts").mkdir()
    make_concept(pipe).save(tmp_path / "concepts/teddy.safetensors")
    small = [f"model.path={tmp_path / 'pipeline'}", "model.resolution=32", "model.steps=4"]
    cfg = configuration([f"model={kind}", *small])
    studio = Studio(cfg.model, Library(tmp_path / "concepts"), "cpu")
    assert studio.library.words() == ["teddy*"] and not studio.library.skipped

    encoded, projected, project = [], [], WidenedLinear.project
    studio.pipe.text_encoder.register_forward_hook(lambda *_: encoded.append(1))
    monkeypatch.setattr(WidenedLinear, "project", lambda self, x: projected.append(1) or project(self, x))
    coarse, whole = studio.picture(WISH, coarse=True), studio.picture(WISH)
    assert encoded and projected and not same(coarse, whole)
    encoded.clear(), projected.clear()
    studio.picture(replace(WISH, seed=9, guidance=2.0))
    assert not encoded and not projected
    other = replace(WISH, knobs=(Knob("teddy*", 1.2, 0.1),))
    assert not same(studio.picture(other), whole) and not encoded and projected
    prompt, base = studio.base(WISH)
    assert prompt == "a teddy on a beach" and same(
        base, draw(studio.pipe, [prompt], [WISH.seed], Sampling(WISH.steps, WISH.guidance, resolution=32))[0]
    )
    assert not same(base, whole) and len(studio.strip(WISH)) == len(SHIFTS)

    words, tokens = studio.words(WISH.prompt, ["teddy*"])
    assert words == list(studio.looked(WISH).maps) and "teddy*" in words and tokens < studio.limit == 300
    slow = replace(WISH, seed=8)
    hook = denoiser_of(studio.pipe).register_forward_pre_hook(lambda *_: studio.break_off(slow))
    with pytest.raises(Broken):
        studio.picture(slow)
    hook.remove()
    assert not same(studio.picture(slow), whole)

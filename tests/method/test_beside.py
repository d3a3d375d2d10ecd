"""What users do to a pipeline beside loading concepts, in both orders: the concept's picture, and all the ways back."""

import copy
import json
import threading
import warnings

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from helpers import PICTURE, differ, draw, quiet, saved_by_torch, sdxl, tokenizers, twin_of

from perfusion.errors import UserError
from perfusion.method.fingerprint import hash_of
from perfusion.method.pipeline import load_concepts

INVERTED = "a <dog> near a teddy* on a beach"


@pytest.fixture
def xl():
    return sdxl(*tokenizers())


def invert(pipe, word="<dog>", seed=3):
    """Load a textual inversion of one vector, into every text encoder."""
    g = torch.Generator().manual_seed(seed)
    for n in ("", "_2"):
        encoder = getattr(pipe, f"text_encoder{n}", None)
        if encoder is not None:
            vector = 20 * torch.randn(encoder.config.hidden_size, generator=g)
            parts = {"tokenizer": getattr(pipe, f"tokenizer{n}"), "text_encoder": encoder}
            pipe.load_textual_inversion({word: vector}, token=word, **parts)


def uninvert(pipe):
    for n in ("", "_2"):
        if getattr(pipe, f"text_encoder{n}", None) is not None:
            parts = {"tokenizer": getattr(pipe, f"tokenizer{n}"), "text_encoder": getattr(pipe, f"text_encoder{n}")}
            pipe.unload_textual_inversion(tokens="<dog>", **parts)


@pytest.mark.parametrize("kind", ["sd", "xl"])
@pytest.mark.slow
def test_textual_inversion(kind, pipe, xl, make_concept):
    """Before and after load_concepts, unloaded first and last: the same pictures."""
    pipe = xl if kind == "xl" else pipe
    concept, base, hash = make_concept(pipe), draw(pipe), hash_of(pipe)
    handle = load_concepts(pipe, {"teddy*": concept})
    alone = draw(pipe)
    handle.unload()
    invert(pipe)
    assert hash_of(pipe) == hash and np.array_equal(draw(pipe), base)
    inverted = draw(pipe, INVERTED)
    handle = load_concepts(pipe, {"teddy*": concept})  # the inversion first
    both = draw(pipe, INVERTED)
    assert differ(both, inverted) and np.array_equal(draw(pipe), alone)
    handle.unload()  # the concepts leave first
    assert np.array_equal(draw(pipe, INVERTED), inverted)
    handle = load_concepts(pipe, {"teddy*": concept})
    uninvert(pipe)  # the inversion leaves first
    assert np.array_equal(draw(pipe), alone)
    invert(pipe)  # the concepts first
    assert np.array_equal(draw(pipe, INVERTED), both) and np.array_equal(draw(pipe), alone)
    handle.unload()
    assert np.array_equal(draw(pipe, INVERTED), inverted)
    uninvert(pipe)
    assert np.array_equal(draw(pipe), base) and hash_of(pipe) == hash


def ip_adapter(unet, embedding=12) -> dict:
    """An IP-Adapter's weights for a denoiser: 4 tokens of a picture's embedding, keys and values of every layer."""
    g = torch.Generator().manual_seed(5)
    d = unet.config.cross_attention_dim
    weights = {"proj.weight": torch.randn(4 * d, embedding, generator=g), "proj.bias": torch.zeros(4 * d)}
    weights |= {"norm.weight": torch.ones(d), "norm.bias": torch.zeros(d)}
    attentions = [n for n in unet.attn_processors if n.endswith("attn2.processor")]
    layers = {}
    for i, name in enumerate(attentions):
        width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * i + 1}.{part}.weight"] = torch.randn(width, d, generator=g)
    return {"image_proj": weights, "ip_adapter": layers}


def test_ip_adapter(pipe, make_concept):
    concept, base = make_concept(pipe), draw(pipe)
    load = lambda: pipe.load_ip_adapter(
        [ip_adapter(pipe.unet)], subfolder=None, weight_name=None, image_encoder_folder=None
    )
    seen = {"ip_adapter_image_embeds": [torch.stack([torch.zeros(1, 12), torch.ones(1, 12)])]}
    handle = load_concepts(pipe, {"teddy*": concept})
    alone = draw(pipe)
    load()  # after
    both = draw(pipe, **seen)
    assert differ(both, alone)
    handle.unload()
    adapted = draw(pipe, **seen)
    assert differ(adapted, both) and differ(adapted, base)
    handle = load_concepts(pipe, {"teddy*": concept})  # before
    assert np.array_equal(draw(pipe, **seen), both)
    assert np.array_equal(draw(pipe, "a cat", **seen), (handle.unload(), draw(pipe, "a cat", **seen))[1])
    handle = load_concepts(pipe, {"teddy*": concept})
    pipe.unload_ip_adapter()
    assert np.allclose(draw(pipe), alone, rtol=1e-4, atol=1e-4)
    handle.unload()
    assert np.allclose(draw(pipe), base, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["sd", "xl"])
@pytest.mark.slow
def test_saving_while_concepts_are_loaded_saves_the_base_model(kind, pipe, xl, make_concept, tmp_path):
    pipe = xl if kind == "xl" else pipe
    base = draw(pipe)
    pipe.save_pretrained(tmp_path / "before")
    load_concepts(pipe, {"teddy*": make_concept(pipe)})
    loaded = draw(pipe)
    pipe.save_pretrained(tmp_path / "while")
    assert np.array_equal(draw(pipe), loaded)
    for file in (p.relative_to(tmp_path / "before") for p in (tmp_path / "before").rglob("*.*")):
        one, two = ((tmp_path / folder / file).read_bytes() for folder in ("before", "while"))
        if file.name == "tokenizer.json":  # it also holds how the tokenizer was last called
            one, two = (
                {k: v for k, v in json.loads(x).items() if k not in ("truncation", "padding")} for x in (one, two)
            )
        assert one == two, file
    again = quiet(type(pipe).from_pretrained(tmp_path / "while"))
    assert np.allclose(draw(again), base, rtol=1e-4, atol=1e-4)
    load_concepts(again, {"teddy*": make_concept(pipe)})
    assert np.allclose(draw(again), loaded, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "pickle the handle"])
def test_a_copy_is_a_pipeline_of_its_own(way, pipe, make_concept):
    base = draw(pipe)
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    loaded = draw(pipe)
    twin = twin_of(pipe, handle, way)
    assert np.array_equal(draw(twin), loaded) and twin._perfusion is not handle and twin._perfusion.pipe is twin
    twin._perfusion.set_gate(beta=-0.5)
    assert differ(draw(twin), loaded) and np.array_equal(draw(pipe), loaded)
    # Its own, and not one that takes the first pipeline's concepts off.
    assert twin.save_pretrained.func.__self__ is twin._perfusion
    twin._perfusion.unload()
    assert np.array_equal(draw(twin), base) and np.array_equal(draw(pipe), loaded)
    handle.unload()
    assert np.array_equal(draw(pipe), base)


def test_the_denoiser_is_saved_by_torch(pipe, make_concept, tmp_path):
    load_concepts(pipe, {"teddy*": make_concept(pipe)})
    loaded = draw(pipe)
    pipe.unet = saved_by_torch(pipe.unet)
    assert np.array_equal(draw(pipe), loaded)


def test_to_after_loading(pipe, make_concept):
    base = draw(pipe)
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    loaded = draw(pipe)
    for dtype in (torch.float64, torch.bfloat16):
        pipe.to(dtype)
        assert np.isfinite(draw(pipe)).all() and differ(draw(pipe), draw(pipe, "a teddy on a beach"))
    pipe.to(torch.float32)
    pipe.to("cpu")
    handle.unload()
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32} and differ(loaded, base)
    assert np.allclose(draw(pipe), base, rtol=0.2, atol=0.5)  # of weights that were bfloat16


@pytest.mark.parametrize("scheduler", [None, EulerDiscreteScheduler])
def test_threads_draw_what_one_draws(scheduler, pipe, make_concept):
    """DDIM keeps nothing between steps. Of a scheduler that does, each thread needs its own, as with stock diffusers."""
    if scheduler:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    concepts = {"teddy*": make_concept(pipe), "teapot*": make_concept(pipe, "teapot*", "teapot", 1)}
    load_concepts(pipe, concepts)
    prompts = ["a teddy* on a beach", "a teapot* in snow", "a cat", "a teddy* next to a teapot*"]
    alone = [draw(pipe, p) for p in prompts]
    drawn, barrier = {}, threading.Barrier(len(prompts))

    def work(i):
        mine = pipe
        if scheduler:
            mine = copy.copy(pipe)
            mine.scheduler = copy.deepcopy(pipe.scheduler)
        barrier.wait()
        drawn[i] = [draw(mine, prompts[i]) for _ in range(4)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for i, expected in enumerate(alone):
        assert len(drawn[i]) == 4 and all(np.array_equal(one, expected) for one in drawn[i]), prompts[i]


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_clip_skip(kind, pipe, xl, make_concept):
    pipe = xl if kind == "xl" else pipe
    try:
        plain = draw(pipe, clip_skip=1)
    except AttributeError as error:  # of diffusers 0.42, which asks for what transformers 5 has not
        assert kind == "sd" and "text_model" in str(error)
        return
    base = draw(pipe)
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    skipped = draw(pipe, clip_skip=1)
    assert differ(skipped, plain) and differ(skipped, draw(pipe))
    handle.unload()
    assert np.array_equal(draw(pipe, clip_skip=1), plain) and np.array_equal(draw(pipe), base)


def test_two_pipelines_that_share_a_unet(pipe, make_concept):
    """The second one is refused in a sentence while the first has concepts, and draws as ever afterwards."""
    concept = make_concept(pipe)
    other = quiet(StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False))
    given = {"image": PICTURE}
    base = draw(other, **given)
    handle = load_concepts(pipe, {"teddy*": concept})
    made_meanwhile = quiet(StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False))
    for second in (other, made_meanwhile):
        with pytest.raises(UserError, match="call load_concepts on the very pipeline that draws, or unload"):
            draw(second, **given)
        with pytest.raises(UserError, match="holds concepts already, which were loaded on another pipeline"):
            load_concepts(second, {"teddy*": concept})
    handle.unload()
    assert np.array_equal(draw(other, **given), base) and np.array_equal(draw(made_meanwhile, **given), base)
    load_concepts(other, {"teddy*": concept})
    assert differ(draw(other, **given), base)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "tokenizer", "fused"])
def test_a_part_that_is_exchanged_after_loading(part, pipe, make_concept, folder):
    base = draw(pipe)
    other = quiet(StableDiffusionPipeline.from_pretrained(folder, safety_checker=None))
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    if part == "fused":
        pipe.fuse_qkv_projections()
    else:
        setattr(pipe, part, getattr(other, part))
    named = {"unet": "UNet2DConditionModel", "fused": "UNet2DConditionModel"}.get(part, part)
    with pytest.raises(
        UserError, match=f"{named} of this StableDiffusionPipeline was exchanged, or its projections fused"
    ):
        draw(pipe)
    handle.unload()
    if part == "fused":
        pipe.unfuse_qkv_projections()
    assert np.array_equal(draw(pipe), base) and np.array_equal(draw(other), base)
    load_concepts(pipe, {"teddy*": make_concept(pipe)})
    assert differ(draw(pipe), base)


def test_a_shallow_copy_that_outlives_the_concepts(pipe, make_concept):
    base = draw(pipe)
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    twin = copy.copy(pipe)
    assert np.array_equal(draw(twin), draw(pipe))
    handle.unload()
    with pytest.raises(UserError, match="these concepts are not loaded any more"):
        draw(twin)
    assert np.array_equal(draw(copy.copy(pipe)), base)


@pytest.mark.parametrize("part", ["i_star", "embedding", "o_star_v"])
def test_a_concept_in_memory_with_numbers_that_are_not_finite(part, pipe, make_concept):
    base, concept = draw(pipe), make_concept(pipe)
    values = getattr(concept, part)
    (next(iter(values.values())) if isinstance(values, dict) else values)[3] = float("nan")
    with pytest.raises(UserError, match=f"concept teddy\\* has {part}.* with values that are not finite"):
        load_concepts(pipe, {"teddy*": concept})
    assert np.array_equal(draw(pipe), base)


def test_an_inversion_that_takes_a_concepts_word(pipe, make_concept):
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    with pytest.raises(
        UserError, match=r"after load_textual_inversion concepts \['teddy\*'\] are off and cannot be put back: trigger"
    ):
        pipe.load_textual_inversion({"teddy*": torch.randn(32)}, token="teddy*")
    assert np.isfinite(draw(pipe)).all()
    for late in (handle.unload, lambda: handle.set_gate(beta=0.5), lambda: handle.gate(tau=1).__enter__()):
        with pytest.raises(UserError, match="these concepts are not loaded any more"):
            late()


def test_a_concept_beyond_the_cut(pipe, make_concept):
    """The text encoder here takes 16 tokens: what is cut is named, and the picture is the base model's."""
    prompt = "a cat on a beach with the red hat and the blue car in the snow next to a teddy*"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = draw(pipe, prompt)
    load_concepts(pipe, {"teddy*": make_concept(pipe)})
    with pytest.warns(UserWarning, match=r"are ignored, teddy\* among them, without which it is drawn; shorten"):
        assert np.array_equal(draw(pipe, prompt), base)
    with pytest.warns(UserWarning, match="are ignored; shorten"):
        assert differ(draw(pipe, prompt.replace("a cat", "a teddy*")), base)


def test_long_prompt_embeds(pipe, make_concept):
    """Embeddings made elsewhere, of two chunks of a prompt: off with a warning, and on under always_on."""
    concept = make_concept(pipe)
    handle = load_concepts(pipe, {"teddy*": concept})

    def chunks(text):
        ids = pipe.tokenizer([text, "red and blue"], padding="max_length", max_length=16, return_tensors="pt").input_ids
        with torch.no_grad():
            return pipe.text_encoder(ids)[0].reshape(1, 32, -1)

    embeds = {"prompt_embeds": chunks("a teddy* on a beach"), "negative_prompt_embeds": chunks("")}
    with pytest.warns(UserWarning, match=r"drawn with every concept off.*always_on=True"):
        off = draw(pipe, None, **embeds)
    handle.unload()
    assert np.array_equal(draw(pipe, None, **embeds), off)
    handle = load_concepts(pipe, {"teddy*": concept}, always_on=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on = draw(pipe, None, **embeds)
        with handle.gate(beta=2.0):
            assert differ(draw(pipe, None, **embeds), on)
    assert differ(on, off)
    with handle.gate(lock="global"), pytest.raises(UserError, match='lock="global" needs the prompts'):
        draw(pipe, None, **embeds)


LOOK_ALIKES = ["a teddy*s", "a teddy＊", "a xteddy*", "a teddy *", "a teddy'*", "a _teddy*", "a teddy"]


@pytest.mark.parametrize("prompt", LOOK_ALIKES)
def test_words_that_only_look_like_it(prompt, pipe, make_concept):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = draw(pipe, prompt)
        handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
        assert np.array_equal(draw(pipe, prompt), base)
        with handle.gate(lock="global", beta=-1.0):
            assert np.array_equal(draw(pipe, prompt), base)


@pytest.mark.parametrize("prompt", ["a teddy*, red", "a TEDDY*", "teddy*", "a (teddy*)", "a teddy*'s hat", "a teddy**"])
def test_words_that_are_it(prompt, pipe, make_concept):
    base = draw(pipe, prompt)
    load_concepts(pipe, {"teddy*": make_concept(pipe)})
    assert differ(draw(pipe, prompt), base)
    assert isinstance(pipe, StableDiffusionPipeline)

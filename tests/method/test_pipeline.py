"""Concepts on a stock pipeline: what users do, and that unloading leaves nothing behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    UniPCMultistepScheduler,
)
from helpers import PROMPT, close, latents

from perfusion.errors import UserError
from perfusion.method.layers import WidenedLinear, cross_attentions
from perfusion.method.pipeline import load_concepts


@pytest.fixture
def loaded(pipe, make_concept):
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe), "teapot*": make_concept(pipe, "teapot*", "teapot", 1)})
    return pipe, handle


def test_loading_changes_the_picture_and_unloading_restores_it(pipe, make_concept, tmp_path):
    concept = make_concept(pipe)
    concept.save(tmp_path / "teddy.safetensors")
    image = latents(pipe)
    twin, tokenizer = latents(pipe, "a teddy on a beach"), pipe.tokenizer
    parts = {"text_encoder": pipe.text_encoder, "unet": pipe.unet}
    weights = {p: {k: v.clone() for k, v in m.state_dict().items()} for p, m in parts.items()}
    handle = load_concepts(pipe, {"teddy*": tmp_path / "teddy.safetensors"})
    changed = latents(pipe)
    assert not close(changed, image) and not close(changed, twin)
    handle.unload()
    assert np.array_equal(latents(pipe), image) and np.array_equal(latents(pipe, "a teddy on a beach"), twin)
    assert pipe.tokenizer is tokenizer and "encode_prompt" not in vars(pipe)
    for part, module in parts.items():
        assert weights[part].keys() == module.state_dict().keys()
        assert all(torch.equal(v, weights[part][k]) for k, v in module.state_dict().items())
    again = load_concepts(pipe, {"teddy*": concept})
    with pytest.raises(UserError, match="not loaded any more"):
        handle.unload()
    again.unload()
    assert np.array_equal(latents(pipe), image)


def test_prompts_without_the_word_draw_the_base_models_picture(pipe, make_concept):
    prompt = "a teddy in snow"
    before = latents(pipe, prompt, negative_prompt="red")
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    assert np.array_equal(latents(pipe, prompt, negative_prompt="red"), before)
    handle.unload()
    load_concepts(pipe, {"teddy*": make_concept(pipe)}, always_on=True)
    assert not close(latents(pipe, prompt, negative_prompt="red"), before)


def test_numbers_of_other_libraries(loaded):
    pipe, handle = loaded
    betas = [0.25, 0.5, 0.75]
    with handle.gate(beta=betas):
        expected = latents(pipe, [PROMPT] * 3)
    for given in (np.array(betas), torch.tensor(betas), np.float32(betas), tuple(np.float32(betas))):
        with handle.gate(beta=given):
            assert np.array_equal(latents(pipe, [PROMPT] * 3), expected)
    with handle.gate(beta={"teddy*": torch.tensor(0.5)}, tau=np.float32(0.125)):
        assert handle.settings | {"lock": None} == {"beta": {"teddy*": 0.5}, "tau": 0.125, "lock": None}


def test_batched_equals_single(loaded):
    pipe, handle = loaded
    prompts = [PROMPT, "a teapot* in snow", "a teddy* next to a teapot*", "a cat"]
    betas = [0.6, 0.7, {"teddy*": 0.2}, 0.5]
    negatives = ["red", "a teddy*", "", "night"]
    with handle.gate(beta=betas, tau=0.15, lock=["global", "local", None, "global"]):
        together = latents(pipe, prompts, negative_prompt=negatives)
    for i, prompt in enumerate(prompts):
        with handle.gate(beta=betas[i], tau=0.15, lock=["global", "local", None, "global"][i]):
            assert close(latents(pipe, prompt, negative_prompt=negatives[i])[0], together[i])


def test_images_per_prompt_and_gates_per_image(loaded):
    pipe, handle = loaded
    with handle.gate(beta=[0.1, 0.5, 0.9]):
        sweep = latents(pipe, n=3)
    for beta, image in zip((0.1, 0.5, 0.9), sweep):
        with handle.gate(beta=beta):
            assert close(latents(pipe)[0], image)
    assert not close(sweep[0], sweep[2])
    handle.set_gate(beta={"teddy*": 0.1})
    assert close(latents(pipe)[0], sweep[0])
    handle.set_gate(beta=[0.1, 0.9])  # one per prompt
    four = latents(pipe, [PROMPT, PROMPT], n=2)
    assert close(four[0], sweep[0]) and close(four[1], sweep[0]) and close(four[2], sweep[2])


def test_one_concept_is_not_changed_by_another_that_is_off(pipe, make_concept):
    concepts = {"teddy*": make_concept(pipe), "teapot*": make_concept(pipe, "teapot*", "teapot", 1)}
    handle = load_concepts(pipe, {"teddy*": concepts["teddy*"]})
    alone = latents(pipe)
    handle.unload()
    load_concepts(pipe, concepts)
    assert close(latents(pipe), alone)


def test_a_concept_can_be_called_by_another_word(pipe, make_concept):
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    image = latents(pipe)
    handle.unload()
    load_concepts(pipe, {"bruno": make_concept(pipe)})
    assert close(latents(pipe, "a bruno on a beach"), image)


@pytest.mark.parametrize("kwargs", [{"guidance_scale": 1.0}, {"negative_prompt": "red"}, {"guidance_scale": 6.0}])
def test_guidance(loaded, kwargs):
    pipe, handle = loaded
    image = latents(pipe, **kwargs)
    with handle.gate(beta=-0.5):
        assert not close(latents(pipe, **kwargs), image)


def test_locks_differ(pipe, make_concept):
    images = []
    for lock in ("local", "trained"):
        handle = load_concepts(pipe, {"teddy*": make_concept(pipe, lock=lock)})
        images.append(latents(pipe))
        with handle.gate(lock="global"):
            images.append(latents(pipe))
        handle.unload()
    local, local_global, trained, trained_global = images
    assert not close(local, local_global) and not close(local, trained)
    assert close(local_global, trained_global)  # plain keys of the twin prompt: o*_K plays no part
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)}, global_edit=True)
    with handle.gate(lock="global"):
        assert not close(latents(pipe), local_global)


@pytest.mark.parametrize(
    "scheduler",
    [
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_every_scheduler(loaded, scheduler):
    pipe, handle = loaded
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config | {"skip_prk_steps": True})
    image = latents(pipe)
    assert np.isfinite(image).all()
    with handle.gate(beta=-0.5):
        assert not close(latents(pipe), image)


def test_callbacks_see_and_change_what_is_drawn(loaded):
    pipe, _ = loaded

    def no_guidance_at_the_end(pipe, step, t, state):
        if step == 1:
            pipe._guidance_scale = 0.0
            return {"prompt_embeds": state["prompt_embeds"].chunk(2)[-1]}
        return {}

    changed = latents(
        pipe,
        callback_on_step_end=no_guidance_at_the_end,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    assert not close(changed, latents(pipe))


def test_embeds_given_by_the_user(loaded):
    pipe, handle = loaded
    image = latents(pipe, negative_prompt="red")
    e, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True, "red")
    again = latents(pipe, None, prompt_embeds=e, negative_prompt_embeds=negative)
    assert close(again, image)
    handle.unload()
    e, _ = pipe.encode_prompt("a cat", "cpu", 1, False)
    plain = latents(pipe, None, prompt_embeds=e)
    load_concepts(pipe, handle.concepts)
    with pytest.warns(UserWarning, match="every concept off"):
        assert close(latents(pipe, None, prompt_embeds=e), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(pipe, make_concept, dtype):
    """A concept learned in float32 loads on a float16 pipeline; a loaded pipeline can be cast to either."""
    concept = make_concept(pipe)
    handle = load_concepts(pipe, {"teddy*": concept})
    pipe.to(dtype)
    image = latents(pipe)
    assert np.isfinite(image).all()
    handle.unload()
    if dtype == torch.float16:
        load_concepts(pipe, {"teddy*": concept})
        assert np.abs(latents(pipe) - image).mean() < 0.02 * np.abs(image).mean()


def test_a_concept_held_in_half_precision(pipe, make_concept):
    concept = make_concept(pipe)
    load_concepts(pipe, {"teddy*": concept})
    image = latents(pipe)
    pipe._perfusion.unload()
    half = {part: getattr(concept, part).half() for part in ("i_star", "c_inv_i_star", "embedding")}
    half["o_star_v"] = {layer: o.half() for layer, o in concept.o_star_v.items()}
    load_concepts(pipe, {"teddy*": replace(concept, **half)})
    assert np.abs(latents(pipe) - image).mean() < 0.02 * np.abs(image).mean()


def test_keys_and_values_are_projected_once_a_call(loaded, monkeypatch):
    pipe, _ = loaded
    calls, project = [], WidenedLinear.project
    monkeypatch.setattr(WidenedLinear, "project", lambda self, x: calls.append(self) or project(self, x))
    latents(pipe, num_inference_steps=10)
    assert len(calls) == len(set(calls)) == 2 * len(cross_attentions(pipe.unet))


def test_other_pipelines_of_the_same_parts(pipe, make_concept):
    """Image to image takes concepts too; a pipeline that merely shares the denoiser fails loudly, not silently."""
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    start = torch.zeros(1, 3, 16, 16)
    image = lambda: (
        other(
            "a teddy* on",
            image=start,
            num_inference_steps=4,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images
    )
    before = image()
    handle = load_concepts(other, {"teddy*": make_concept(pipe)})
    assert not torch.allclose(image(), before, atol=1e-3)
    with pytest.raises(UserError, match="call load_concepts on the very pipeline that draws"):
        latents(pipe)
    handle.unload()
    assert torch.equal(image(), before)


def test_real_pictures_come_out(loaded):
    pipe, _ = loaded
    assert pipe(PROMPT, num_inference_steps=2, height=16, width=16).images[0].size == (16, 16)


def test_refused_before_anything_changes(pipe, make_concept):
    image, concept = latents(pipe), make_concept(pipe)
    other = make_concept(pipe)
    other.base_id, other.base_hash = "sd-1.5", "f" * 32
    short = make_concept(pipe)
    short.o_star_v = dict(list(short.o_star_v.items())[1:])
    wordless = make_concept(pipe)
    wordless.super_category = "teddies"
    for concepts, match in [
        ({"teddy*": other}, f"learned on base sd-1.5 .hash {'f' * 32}., this pipeline is .*hash {concept.base_hash}"),
        ({"teddy*": "nothing.safetensors"}, "does not exist"),
        ({"teddy*": concept, "TEDDY*": concept}, "collides"),
        ({"teddy": concept}, "already a word"),
        ({"teddy*": concept, "bear*": concept}, "cannot be told apart"),
        ({"teddy*": short}, "no o_star for layer"),
        ({"teddy*": wordless}, "exactly 1"),
        ({}, "empty"),
        (5, "concepts=5 is no concept; allowed are a file"),
        ([concept, None], r"concepts\[1\]=None is no concept"),
        ({"teddy*": None}, r"concepts\['teddy\*'\]=None is no concept"),
        ({"teddy*": 5}, r"=5 is no concept"),
        ({5: concept}, "the word 5; a word must be text"),
    ]:
        with pytest.raises(UserError, match=match):
            load_concepts(pipe, concepts)
        assert np.array_equal(latents(pipe), image)
    with pytest.raises(UserError, match="Stable Diffusion pipelines"):
        load_concepts(pipe.unet, {"teddy*": concept})


def test_more_concepts_than_the_encodings_are_wide(pipe, make_concept):
    """48 residents on encodings of 32: a prompt draws as with its own two concepts alone."""
    triggers = ["teddy*", "teapot*", *(f"w{i}*" for i in range(46))]
    made = {t: make_concept(pipe, t, "teapot" if t == "teapot*" else "teddy", seed) for seed, t in enumerate(triggers)}
    with load_concepts(pipe, {t: made[t] for t in triggers[:2]}).gate(beta=0.3) as handle:
        expected = latents(pipe, "a teddy* with a teapot*")
    handle.unload()
    with load_concepts(pipe, made).gate(beta=0.3) as handle:
        assert close(latents(pipe, "a teddy* with a teapot*"), expected)
        assert not close(latents(pipe, "a w7* with a teapot*"), expected)
    handle.unload()
    with pytest.raises(UserError, match="48 concepts act on every prompt"):
        load_concepts(pipe, made, always_on=True)


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"beta": {"dog*": 0.5}}, '"dog\\*", which is not loaded; loaded are: teddy\\*, teapot\\*'),
        ({"tau": 0}, "positive"),
        ({"beta": "high"}, "number"),
        ({"beta": float("nan")}, "beta=nan of teddy\\* must be a finite number"),
        ({"beta": [0.5, float("-inf")]}, "beta=-inf of"),
        ({"beta": {"teddy*": 10**400}}, "finite number"),
        ({"tau": float("nan")}, "tau=nan of teddy\\* must be a finite positive number"),
        ({"tau": float("inf")}, "finite positive number"),
        ({"lock": "trained"}, "allowed are None and"),
        ({"lock": {"teddy*": "global"}}, "allowed are None and"),
        ({"gamma": 1}, "allowed are: beta, tau"),
        ({"beta": [0.5, {"dog*": 1}]}, "not loaded"),
    ],
)
def test_bad_gates(loaded, settings, match):
    with pytest.raises(UserError, match=match):
        loaded[1].set_gate(**settings)


def test_lists_of_a_wrong_length_and_loading_twice(loaded):
    pipe, handle = loaded
    with handle.gate(beta=[0.1, 0.2, 0.3]), pytest.raises(UserError, match="list of 3 for 2 prompt"):
        latents(pipe, [PROMPT, PROMPT])
    assert handle.settings["beta"] is None
    with pytest.raises(UserError, match="loaded already"):
        load_concepts(pipe, handle.concepts)

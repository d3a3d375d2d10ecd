"""The table of docs/pipelines.md: concepts on every stock pipeline, and beside what users do to pipelines."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from helpers import PICTURE, check_model_cpu_offload, differ, draw, quiet, sd21, sdxl, tokenizers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from perfusion.errors import UserError
from perfusion.method.layers import WidenedLinear, cross_attentions
from perfusion.method.pipeline import load_concepts

SCHEDULERS = [
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    pytest.param(LMSDiscreteScheduler, marks=pytest.mark.skipif(find_spec("scipy") is None, reason="needs scipy")),
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
]
MASK = (torch.arange(16) < 8).float().expand(1, 1, 16, 16)


def controlnet(unet):
    torch.manual_seed(1)
    made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8))
    for block in (*made.controlnet_down_blocks, made.controlnet_mid_block):
        torch.nn.init.normal_(block.weight, std=0.5)  # it starts at zero, where it would have no say
    return made


def pipeline(kind: str, pipe, xl):
    """A pipeline of the kind and what it needs beside the prompt."""
    base = xl if kind.startswith("xl") else pipe
    parts = base.components
    if not kind.startswith("xl"):
        parts = parts | {"requires_safety_checker": False}
    control = lambda: {"controlnet": controlnet(base.unet)}
    if kind == "sd":
        return base, {}
    if kind == "img2img":
        return StableDiffusionImg2ImgPipeline(**parts), {"image": PICTURE}
    if kind == "inpaint":
        return StableDiffusionInpaintPipeline(**parts), {"image": PICTURE, "mask_image": MASK}
    if kind == "controlnet":
        return StableDiffusionControlNetPipeline(**parts, **control()), {"image": PICTURE}
    if kind == "sd21":
        return sd21(tokenizers()[1]), {}
    if kind == "xl":
        return base, {}
    if kind == "xl img2img":
        return StableDiffusionXLImg2ImgPipeline(**parts), {"image": PICTURE}
    if kind == "xl inpaint":
        return StableDiffusionXLInpaintPipeline(**parts), {"image": PICTURE, "mask_image": MASK}
    assert kind == "xl controlnet"
    return StableDiffusionXLControlNetPipeline(**parts, **control()), {"image": PICTURE}


@pytest.fixture
def xl():
    return sdxl(*tokenizers())


KINDS = ["sd", "img2img", "inpaint", "controlnet", "sd21", "xl", "xl img2img", "xl inpaint", "xl controlnet"]


@pytest.mark.parametrize("guidance", [1.0, 6.0])
@pytest.mark.parametrize("kind", KINDS)
def test_load_draw_unload(kind, guidance, pipe, xl, make_concept):
    """A changed picture, the base model's for prompts without the word, and the base model again to the last bit."""
    pipe, given = pipeline(kind, pipe, xl)
    quiet(pipe)
    given = given | {"guidance_scale": guidance}
    with_word, without = draw(pipe, **given), draw(pipe, "a cat", negative_prompt="red", **given)
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    assert differ(draw(pipe, **given), with_word)
    assert np.array_equal(draw(pipe, "a cat", negative_prompt="red", **given), without)
    with handle.gate(lock="global", beta=0.3):
        assert differ(draw(pipe, **given), with_word)
    handle.unload()
    assert np.array_equal(draw(pipe, **given), with_word)
    assert np.array_equal(draw(pipe, "a cat", negative_prompt="red", **given), without)
    control = getattr(pipe, "controlnet", None)
    assert control is None or not control._forward_pre_hooks


def test_a_controlnet_sees_the_encodings_of_the_prompt(pipe, make_concept):
    """The learned word's own encoding goes to the ControlNet, without the gates' columns."""
    pipe, given = pipeline("controlnet", pipe, None)
    quiet(pipe)
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    seen = []
    own = type(pipe.controlnet).forward

    def forward(*args, **kwargs):
        seen.append(kwargs["encoder_hidden_states"])
        return own(pipe.controlnet, *args, **kwargs)

    pipe.controlnet.forward = forward
    draw(pipe, guidance_scale=1.0, **given)
    wide, _ = pipe.encode_prompt("a teddy* on a beach", "cpu", 1, False)
    assert all(torch.equal(e, wide[..., :32]) for e in seen) and seen
    handle.unload()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_schedulers(kind, scheduler, pipe, xl, make_concept):
    pipe, _ = pipeline(kind, pipe, xl)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config | {"skip_prk_steps": True})
    before = draw(pipe, num_inference_steps=4)
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    assert differ(draw(pipe, num_inference_steps=4), before)
    handle.unload()
    assert np.array_equal(draw(pipe, num_inference_steps=4), before)


def test_attention_slicing(pipe, make_concept):
    before = draw(pipe)
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    whole = draw(pipe)
    pipe.enable_attention_slicing()
    assert np.allclose(draw(pipe), whole, rtol=1e-4, atol=1e-4)
    handle.unload()
    pipe.disable_attention_slicing()
    assert np.array_equal(draw(pipe), before)


@pytest.mark.parametrize("kind", ["sd", "xl"])
@pytest.mark.parametrize("offload_first", [True, False])
def test_model_cpu_offload(kind, offload_first, pipe, xl, make_concept):
    pipe, _ = pipeline(kind, pipe, xl)
    check_model_cpu_offload(pipe, make_concept(pipe), offload_first, draw)


def test_weights_offloaded_one_by_one_are_refused(pipe, make_concept):
    concept = make_concept(pipe)
    pipe.unet.to("meta")
    with pytest.raises(UserError, match="offloaded one by one"):
        load_concepts(pipe, {"teddy*": concept})


@pytest.mark.slow
def test_compiled_unet(pipe, make_concept):
    """Compiled before or after loading: the concepts act as in the plain pipeline, and leave it."""
    before, concept = draw(pipe), make_concept(pipe)
    handle = load_concepts(pipe, {"teddy*": concept})
    expected = draw(pipe)
    handle.unload()
    own = pipe.unet
    # "eager" traces and guards as the others do, and generates no code: seconds in place of minutes here.
    pipe.unet = torch.compile(own, backend="eager")
    compiled = draw(pipe)
    assert np.allclose(compiled, before, rtol=1e-4, atol=1e-4)
    handle = load_concepts(pipe, {"teddy*": concept})
    assert np.allclose(draw(pipe), expected, rtol=1e-4, atol=1e-4)
    with handle.gate(beta=-0.5):
        assert differ(draw(pipe), expected)
    handle.unload()
    assert np.array_equal(draw(pipe), compiled)
    torch._dynamo.reset()


def lora_of(pipe, seed=0) -> dict:
    """A random LoRA on the unet's attention projections, as a state dict that load_lora_weights reads."""
    torch.manual_seed(seed)
    pipe.unet.add_adapter(
        LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    )
    weights = {f"unet.{name}": w.clone() for name, w in get_peft_model_state_dict(pipe.unet).items()}
    pipe.unload_lora_weights()
    pipe.unet.__dict__.pop("peft_config", None)
    return weights


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_lora_at_the_same_time(kind, pipe, xl, make_concept):
    """A LoRA on to_k and to_v, loaded before or after the concepts: the same picture, and all the ways back."""
    pipe, _ = pipeline(kind, pipe, xl)
    concept, lora, base = make_concept(pipe), lora_of(pipe), draw(pipe)
    handle = load_concepts(pipe, {"teddy*": concept})
    concept_alone = draw(pipe)
    pipe.load_lora_weights(lora)  # after
    both = draw(pipe)
    assert differ(both, concept_alone)
    pipe.disable_lora()
    assert np.allclose(draw(pipe), concept_alone, rtol=1e-4, atol=1e-4)
    pipe.enable_lora()
    assert np.array_equal(draw(pipe), both)
    half = draw(pipe, cross_attention_kwargs={"scale": 0.5})
    assert differ(half, both)
    assert np.array_equal(draw(pipe), both)  # nothing kept from another scale
    handle.unload()
    lora_alone = draw(pipe)
    assert differ(lora_alone, base) and differ(lora_alone, both)
    handle = load_concepts(pipe, {"teddy*": concept})  # before
    assert np.array_equal(draw(pipe), both)
    pipe.unload_lora_weights()
    assert np.array_equal(draw(pipe), concept_alone)
    handle.unload()
    assert np.array_equal(draw(pipe), base)
    assert all(isinstance(a.to_k, torch.nn.Linear) for a in cross_attentions(pipe.unet).values())


def test_fused_lora(pipe, make_concept):
    """Fused while concepts are loaded, it acts on both; on weights that hold a fused one, a concept is refused."""
    concept, lora, base = make_concept(pipe), lora_of(pipe), draw(pipe)
    handle = load_concepts(pipe, {"teddy*": concept})
    pipe.load_lora_weights(lora)
    both = draw(pipe)
    pipe.fuse_lora()
    assert np.allclose(draw(pipe), both, rtol=1e-3, atol=1e-3)
    handle.unload()
    with pytest.raises(UserError, match="was learned on base"):
        load_concepts(pipe, {"teddy*": concept})
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert np.allclose(draw(pipe), base, rtol=1e-3, atol=1e-3)


def test_the_edit_of_a_layer_with_a_lora_is_the_literal_formula(pipe):
    """W is what the layer and its LoRA compute together."""
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_k", "to_v"], init_lora_weights=False))
    attention = next(iter(cross_attentions(pipe.unet).values()))
    i_star, o_star = torch.randn(2, 32), torch.randn(2, attention.to_v.out_features)
    e, gates, coefs = torch.randn(3, 5, 32), torch.rand(3, 5, 2), torch.rand(3, 5, 2)
    layer = WidenedLinear(attention.to_v, i_star, o_star, "v")
    W = attention.to_v.weight + attention.to_v.get_delta_weight("default")
    with torch.no_grad():
        expected = (e - coefs @ i_star) @ W.T + gates @ o_star
        torch.testing.assert_close(layer(torch.cat([e, gates, -coefs], -1)), expected, rtol=1e-4, atol=1e-4)
        assert layer(x := torch.cat([e, gates, -coefs], -1)) is layer(x)  # kept, as without a LoRA


@pytest.mark.parametrize("kind", ["sd", "xl"])
@pytest.mark.slow
def test_saving_after_unloading_saves_the_base_model(kind, pipe, xl, make_concept, tmp_path):
    pipe, _ = pipeline(kind, pipe, xl)
    draw(pipe)  # a tokenizer.json also holds how the tokenizer was last called
    pipe.save_pretrained(tmp_path / "before")
    handle = load_concepts(pipe, {"teddy*": make_concept(pipe)})
    draw(pipe)
    handle.unload()
    draw(pipe)
    pipe.save_pretrained(tmp_path / "after")
    files = sorted(p.relative_to(tmp_path / "before") for p in (tmp_path / "before").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "after") for p in (tmp_path / "after").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "before" / file).read_bytes() == (tmp_path / "after" / file).read_bytes(), file
    again = quiet(type(pipe).from_pretrained(tmp_path / "after"))
    assert np.allclose(draw(again), draw(pipe), rtol=1e-4, atol=1e-4)  # rounding follows where weights lie in memory


def test_a_step_with_concepts_projects_no_text(pipe, make_concept, monkeypatch):
    """Never slower than the stock step: with K and V kept, to_k and to_v do no product after the first step."""
    load_concepts(pipe, {"teddy*": make_concept(pipe)})
    attentions = cross_attentions(pipe.unet).values()
    text = {id(w) for a in attentions for w in (a.to_k.weight, a.to_v.weight)}
    products, linear = {}, torch.nn.functional.linear

    def counted(x, weight, *args):
        products[step[0]] = products.get(step[0], 0) + (id(weight) in text)
        return linear(x, weight, *args)

    step = [0]

    def next_step(pipe, i, t, state):
        step[0] = i + 1
        return {}

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    draw(pipe, num_inference_steps=4, callback_on_step_end=next_step)
    # Of each layer, W e and W i*.
    assert products == {0: 4 * len(attentions), 1: 0, 2: 0, 3: 0}

"""Pipelines and add-ons beside Stable Diffusion's own (docs/pipelines.md), each drawn with a concept. Tiny models of the true classes."""

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    MotionAdapter,
    StableDiffusionPanoramaPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from helpers import quiet, sdxl, tokenizers, unet

from perfusion.errors import UserError
from perfusion.method.layers import cross_attentions
from perfusion.method.pipeline import load_concepts

PROMPT = "a teddy* on a beach"
GUIDANCE = [1.0, 7.0]  # off and on


def draw(pipe, prompt=PROMPT, **kwargs):
    """The latents, from one seed."""
    options = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "latent"} | kwargs
    out = pipe(prompt, generator=torch.Generator().manual_seed(7), **options)
    return (out.images if hasattr(out, "images") else out.frames).float().numpy()


def check(pipe, concept, **given):
    """A changed picture, the base model's for prompts without the word, and the base model again to the last bit."""
    with_word, without = draw(pipe, **given), draw(pipe, "a cat", **given)
    handle = load_concepts(pipe, {"teddy*": concept})
    changed = draw(pipe, **given)
    assert np.isfinite(changed).all() and not np.allclose(changed, with_word, rtol=1e-3, atol=1e-3)
    assert np.array_equal(draw(pipe, "a cat", **given), without)
    handle.unload()
    assert np.array_equal(draw(pipe, **given), with_word)
    return changed


def ip_adapter(unet: UNet2DConditionModel) -> dict:
    """A random IP-Adapter in the layout of its files: 4 tokens of a picture, with keys and values of their own."""
    torch.manual_seed(3)
    d, image, attention = unet.config.cross_attention_dim, 12, {}
    for key, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            attention |= {f"{key}.to_{part}_ip.weight": torch.randn(width, d) / d**0.5 for part in "kv"}
    projection = {"proj.weight": torch.randn(4 * d, image), "proj.bias": torch.zeros(4 * d)}
    projection |= {"norm.weight": torch.ones(d), "norm.bias": torch.zeros(d)}
    return {"image_proj": projection, "ip_adapter": attention}


@pytest.mark.parametrize("first", [True, False], ids=["adapter first", "concept first"])
def test_ip_adapter(pipe, make_concept, first):
    """Its keys and values are beside W_K and W_V: a picture and a concept in one prompt, loaded in any order."""
    concept, weights = make_concept(pipe), ip_adapter(pipe.unet)
    given = {"ip_adapter_image_embeds": [torch.randn(2, 1, 12, generator=torch.Generator().manual_seed(1))]}
    alone = draw(pipe)
    handle = None if first else load_concepts(pipe, {"teddy*": concept})
    pipe.unet._load_ip_adapter_weights([weights])
    if handle:
        both = draw(pipe, **given)
        handle.unload()
    with_picture = check(pipe, concept, **given)
    assert first or np.array_equal(both, with_picture)
    assert not np.allclose(draw(pipe, **given), alone, atol=1e-3)  # the picture counts


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_animatediff(guidance, pipe, make_concept):
    """A concept of the image model on its video model: the UNet's own layers are among the motion UNet's, by the same names."""
    concept = make_concept(pipe)
    torch.manual_seed(2)
    shape = {"block_out_channels": (16, 32), "motion_layers_per_block": 1, "motion_norm_num_groups": 4}
    adapter = MotionAdapter(**shape, motion_num_attention_heads=2, use_motion_mid_block=False)
    moving = UNetMotionModel.from_unet2d(pipe.unet, adapter)
    assert list(cross_attentions(moving)) == list(cross_attentions(pipe.unet))
    video = quiet(AnimateDiffPipeline(pipe.vae, pipe.text_encoder, pipe.tokenizer, moving, adapter, pipe.scheduler))
    frames = check(video, concept, num_frames=3, guidance_scale=guidance)
    assert frames.shape[2] == 3


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_panorama(guidance, pipe, make_concept):
    """Windows of one wide picture, all with the same encodings."""
    torch.manual_seed(2)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    parts = pipe.components | {
        "vae": AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4, **blocks)
    }
    wide = quiet(StableDiffusionPanoramaPipeline(**parts, requires_safety_checker=False))
    assert len(wide.get_views(64, 576)) == 2
    drawn = check(wide, make_concept(pipe), height=64, width=576, guidance_scale=guidance)
    assert drawn.shape[-1] == 72


@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize("kind", ["sd", "xl"])
@pytest.mark.parametrize(
    "steps, scheduler", [(4, LCMScheduler), (1, EulerAncestralDiscreteScheduler)], ids=["LCM", "Turbo"]
)
def test_few_steps(guidance, kind, steps, scheduler, pipe, make_concept):
    """LCM's and Turbo's way to draw, as meant with no negative half in the batch, and with a little guidance."""
    pipe = pipe if kind == "sd" else sdxl(*tokenizers())
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    check(pipe, make_concept(pipe), num_inference_steps=steps, guidance_scale=guidance)


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_a_unet_that_is_told_the_guidance_scale(guidance, pipe, make_concept):
    """LCM's distilled UNets have an embedding of it; a concept neither sees nor disturbs it."""
    torch.manual_seed(4)
    told = unet(32, time_cond_proj_dim=8)
    told.load_state_dict(pipe.unet.state_dict(), strict=False)
    pipe.register_modules(unet=told)
    check(pipe, make_concept(pipe), guidance_scale=guidance)


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_the_refiner_is_left_alone(guidance, make_concept):
    """SDXL's base draws with a concept, its refiner, of another text encoder, finishes without; it takes no concept itself."""
    base = sdxl(*tokenizers())
    torch.manual_seed(5)
    told = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 5 * 8 + 20,
    }
    refiner = StableDiffusionXLImg2ImgPipeline(
        base.vae, None, base.text_encoder_2, None, base.tokenizer_2, unet(32, **told), base.scheduler,
        requires_aesthetics_score=True,
    )  # fmt: skip
    quiet(refiner)

    def both():
        half = base(PROMPT, generator=torch.Generator().manual_seed(7), num_inference_steps=4, denoising_end=0.5,
                    guidance_scale=guidance, height=16, width=16, output_type="latent").images  # fmt: skip
        return refiner("a teddy on a beach", image=half, num_inference_steps=4, denoising_start=0.5, output_type="np",
                       guidance_scale=guidance,
                       generator=torch.Generator().manual_seed(8)).images  # fmt: skip

    before, concept = both(), make_concept(base)
    with pytest.raises(UserError, match=r"lacks \['tokenizer', 'text_encoder'\]"):
        load_concepts(refiner, {"teddy*": concept})
    handle = load_concepts(base, {"teddy*": concept})
    assert not np.allclose(both(), before, atol=1e-3)
    handle.unload()
    assert np.array_equal(both(), before)

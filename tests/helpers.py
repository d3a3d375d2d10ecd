"""Tiny random models in the class layout of the real ones (SD 1.5, SD 2.1, SDXL, PixArt-Sigma), drawn with and trained."""

import copy
import functools
import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytorch_lightning as pl
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from pretrain_judge import save
from random_sd15 import clip_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from perfusion.learning.module import PerfusionModule
from perfusion.method.edit import inverse_metric
from perfusion.method.layers import cross_attentions
from perfusion.method.pipeline import load_concepts


def text_encoder(tokenizer, width: int, kind=CLIPTextModel, **more):
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 37,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return kind(CLIPTextConfig(**(options | more)))


def vae() -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, **blocks)


def unet(width: int, **more) -> UNet2DConditionModel:
    options = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": width,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**(options | more))


@torch.no_grad()
def louder(denoiser, *text_encoders, by: float = 4) -> None:
    """A fresh initialization all but ignores the text; louder encodings make the pictures depend on it."""
    for encoder in text_encoders:
        encoder.get_input_embeddings().weight.mul_(20)
    for attention in cross_attentions(denoiser).values():
        attention.to_v.weight.mul_(by)
        attention.to_out[0].weight.mul_(by)


def sd21(tokenizer) -> StableDiffusionPipeline:
    """SD 2.1's layout: OpenCLIP's tower (gelu, cut after its penultimate layer), v-prediction, linear projections."""
    torch.manual_seed(0)
    encoder = text_encoder(tokenizer, 32, hidden_act="gelu")
    heads = {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True}
    denoiser = unet(32, **heads)
    louder(denoiser, encoder)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return quiet(StableDiffusionPipeline(vae(), encoder, tokenizer, denoiser, scheduler, **parts))


def sdxl(tokenizer, tokenizer_2) -> StableDiffusionXLPipeline:
    """SDXL's layout: encodings 24 + 32 wide, pooled 20; the second encoder pools at its largest id, as SDXL's does."""
    torch.manual_seed(0)
    encoder = text_encoder(tokenizer, 24)
    encoder_2 = text_encoder(
        tokenizer_2, 32, CLIPTextModelWithProjection, hidden_act="gelu", projection_dim=20, eos_token_id=2
    )
    denoiser = unet(
        56,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
        transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
    )
    louder(denoiser, encoder, encoder_2)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    return quiet(StableDiffusionXLPipeline(vae(), encoder, encoder_2, tokenizer, tokenizer_2, denoiser, scheduler))


def pixart() -> PixArtTransformer2DModel:
    """PixArt-Sigma's layout: T5 encodings 40 wide, projected by the transformer to 32; keys and values with biases."""
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, num_layers=2, cross_attention_dim=32, caption_channels=40,
        sample_size=8, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    return model.eval()


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def open_clip_folder(tokenizer, folder: Path) -> str:
    """A tiny random open_clip model for the scores, as model.scorer names it."""
    shape = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
        "text_cfg": {
            "context_length": 16, "vocab_size": len(tokenizer), "width": 8, "heads": 2, "layers": 1,
            "hf_tokenizer_name": "local",
        },
    }  # fmt: skip
    model = open_clip.CLIP(shape["embed_dim"], shape["vision_cfg"], dict(shape["text_cfg"]))
    save(model, shape, tokenizer, folder)
    return f"local-dir:{folder}"


def sd15_unet() -> UNet2DConditionModel:
    """Stable Diffusion 1.5's UNet as its published config has it, without memory."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            cross_attention_dim=768,
            attention_head_dim=8,
        )


def module_of(pipe, data, **changes):
    torch.manual_seed(0)
    e = torch.randn(500, pipe.text_encoder.config.hidden_size)
    C_inv = changes.pop("C_inv", None)
    C_inv = inverse_metric(e.T @ e, 1e-2) if C_inv is None else C_inv
    options = {
        "beta": 0.75,
        "tau": 0.1,
        "lock": "local",
        "batch_size": 4,
        "i_star_decay": 0.99,
        "seed": 0,
        "learning_rate": {"o_star": 0.03, "embedding": 0.006, "relative": False},
    } | changes
    return PerfusionModule(pipe, data, "teddy*", "teddy", C_inv, **options)


def fit(module, steps):
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, range(steps))
    return module


def frozen(pipe):
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    return {
        f"{i}.{n}": p.detach().clone()
        for i, part in enumerate(parts)
        for n, p in part.named_parameters()
        if "o_star" not in n
    }


def loss_of(module, draws=16):
    with torch.no_grad():
        module.log = lambda *args, **kwargs: None
        return torch.stack([module.training_step(None, 10_000 + i) for i in range(draws)]).mean().item()


PROMPT = "a teddy* on a beach"


def latents(pipe, prompt=PROMPT, n=1, **kwargs):
    """Latents of the pictures [N, 4, 8, 8] as an array, noise fixed per image."""
    count = n * (len(prompt) if isinstance(prompt, list) else 1)
    kwargs = {"num_inference_steps": 3, "height": 16, "width": 16, "output_type": "latent"} | kwargs
    generators = kwargs.pop("generator", [torch.Generator().manual_seed(7) for _ in range(count)])
    return pipe(prompt, num_images_per_prompt=n, generator=generators, **kwargs).images.float().numpy()


def close(a, b):
    return np.allclose(a, b, rtol=1e-4, atol=1e-4)


@functools.cache
def tokenizers():
    # The end is the largest id of the true vocabulary, where the second encoder pools.
    return clip_tokenizer(16), clip_tokenizer(16, pad="!")


PICTURE = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)


def draw(pipe, prompt="a teddy* on a beach", **kwargs):
    """The latents, from one seed."""
    own = {"strength": 0.8} if "Img2Img" in type(pipe).__name__ else {"height": 16, "width": 16}
    options = {"num_inference_steps": 3, "output_type": "latent"} | own | kwargs
    generator = torch.Generator().manual_seed(7)
    return pipe(prompt, generator=generator, **options).images.float().numpy()


def differ(a, b):
    return np.isfinite(a).all() and not np.allclose(a, b, rtol=1e-3, atol=1e-3)


def twin_of(pipe, handle, way):
    """A copy of a pipeline with concepts loaded: by deepcopy, by pickle, or with its handle's pickle."""
    if way == "deepcopy":
        return copy.deepcopy(pipe)
    return pickle.loads(pickle.dumps(pipe)) if way == "pickle" else pickle.loads(pickle.dumps(handle)).pipe


def saved_by_torch(model):
    """A model as torch.save writes it and torch.load reads it."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # what was written here just now


def check_model_cpu_offload(pipe, concept, offload_first, draw):
    """Its hooks, with the CPU for an accelerator: they run at every call, and nothing moves. `draw` draws with a pipeline."""
    base = draw(pipe)
    handle = load_concepts(pipe, {"teddy*": concept})
    expected = draw(pipe)
    if offload_first:
        handle.unload()
        pipe.enable_model_cpu_offload(device="cpu")
        handle = load_concepts(pipe, {"teddy*": concept})
    else:
        pipe.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(draw(pipe), expected)
    handle.unload()
    assert np.array_equal(draw(pipe), base)


def without_weights(folder, to) -> str:
    """A copy of a pipeline's folder that cannot load: what is refused with it is refused before weights load."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    return str(to)

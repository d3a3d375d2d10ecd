"""Tiny random models in the class layout of the real ones: SD 2.1, SDXL, PixArt-Sigma."""

from pathlib import Path

import open_clip
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
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from perfusion.projections import cross_attentions


def text_encoder(tokenizer, width: int, kind=CLIPTextModel, **more):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **({"eos_token_id": tokenizer.eos_token_id} | more),
    )
    return kind(config)


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

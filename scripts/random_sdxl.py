"""A stock SDXL pipeline with random weights: SDXL base's true shape and configuration, or a tiny one of the same layout."""

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from random_sd15 import clip_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


def random_unet(tiny: bool = False) -> UNet2DConditionModel:
    """The UNet alone, on torch's default device: 2,567 M numbers."""
    shape, time, pooled, d = {
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
    }, 256, 1280, 2048  # fmt: skip
    if tiny:
        shape, time, pooled, d = {
            "block_out_channels": (8, 8, 16),
            "transformer_layers_per_block": (1, 1, 2),
            "attention_head_dim": (2, 2, 2),
            "norm_num_groups": 4,
        }, 8, 20, 56  # fmt: skip
    return UNet2DConditionModel(
        sample_size=128, cross_attention_dim=d, use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
        addition_time_embed_dim=time, projection_class_embeddings_input_dim=6 * time + pooled, **shape,
    )  # fmt: skip


def random_sdxl(tiny: bool = False) -> StableDiffusionXLPipeline:
    """StableDiffusionXLPipeline of random float32 weights, on torch's default device; 3,500 M numbers, or 4 M where `tiny`."""
    torch.manual_seed(0)
    tokenizers = clip_tokenizer(), clip_tokenizer(pad="!")
    one = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    two = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    pooled, vae = 1280, {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    if tiny:
        one = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        two = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        pooled, vae = 20, {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1}
    norm = {"norm_num_groups": 4} if tiny else {}
    common = {"vocab_size": len(tokenizers[0]), "bos_token_id": tokenizers[0].bos_token_id}
    first = CLIPTextModel(CLIPTextConfig(**common, **one, eos_token_id=tokenizers[0].eos_token_id))
    # eos_token_id=2 as in the published configuration: transformers then pools at the largest id
    more = {"hidden_act": "gelu", "projection_dim": pooled, "eos_token_id": 2}
    second = CLIPTextModelWithProjection(CLIPTextConfig(**common, **two, **more))
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    autoencoder = AutoencoderKL(
        latent_channels=4, sample_size=1024, scaling_factor=0.13025, force_upcast=True, **blocks, **vae, **norm
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    return StableDiffusionXLPipeline(autoencoder, first, second, *tokenizers, random_unet(tiny), scheduler)

"""Tiny PixArt and Sana pipelines of the true classes with random weights: T5 or Gemma 2 (tiny_tokenizers)."""

import functools

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)
from tiny_tokenizers import gemma_tokenizer, t5_tokenizer
from transformers import Gemma2Config, Gemma2Model, T5Config, T5EncoderModel


def random_pixart(kind=PixArtSigmaPipeline, sample_size: int = 8):
    """PixArt's layout: T5 encodings 40 wide that the transformer projects to 32, learned variances, keys with biases."""
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    config = T5Config(vocab_size=512, d_model=40, d_kv=8, d_ff=37, num_layers=2, num_heads=4, dropout_rate=0.0)
    encoder = T5EncoderModel(config)
    side = 12 if sample_size == 128 else 8  # the embeddings of height, width and ratio share the width evenly
    denoiser = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=side, num_layers=2, cross_attention_dim=4 * side, caption_channels=40,
        sample_size=sample_size, out_channels=8, use_additional_conditions=sample_size == 128,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    vae = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return kind(tokenizer, encoder, vae, denoiser, scheduler)


def random_sana():
    """Sana's layout: Gemma 2, projected and normalized captions, linear self-attention, a deep-compression VAE, flow matching."""
    torch.manual_seed(0)
    tokenizer = gemma_tokenizer()
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=40, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, query_pre_attn_scalar=10, max_position_embeddings=1024, pad_token_id=0,
        eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    denoiser = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=4, cross_attention_head_dim=8, cross_attention_dim=32, caption_channels=40, sample_size=32,
    )  # fmt: skip
    compressing = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"), encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), downsample_block_type="conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return SanaPipeline(tokenizer, Gemma2Model(config), compressing, denoiser, scheduler)


TINY = {
    "pixart": random_pixart,
    "pixart alpha": functools.partial(random_pixart, PixArtAlphaPipeline, 128),  # which is told the picture's size
    "sana": random_sana,
}

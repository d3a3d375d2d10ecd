"""A stock pipeline with random weights: SD 1.5's true shape and configuration, or a tiny one of the same layout."""

import gzip
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def clip_tokenizer(limit: int = 77, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's own tokenizer, out of open_clip's vocabulary file: what openai/clip-vit-large-patch14 has; pad "!" as SDXL's
    second tokenizer and SD 2.1's."""
    path = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    bytes_ = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = [*bytes_, *(b + "</w>" for b in bytes_), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=limit, pad_token=pad)


def random_unet(tiny: bool = False) -> UNet2DConditionModel:
    """The UNet alone: 860 M numbers."""
    shape = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
    if tiny:
        shape = {
            "block_out_channels": (8, 8, 16, 16),
            "cross_attention_dim": 32,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
        }
    return UNet2DConditionModel(sample_size=64, **shape)


def random_pipeline(tiny: bool = False) -> StableDiffusionPipeline:
    """StableDiffusionPipeline of random float32 weights; 1,066 M numbers, or 2 M where `tiny`."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vae = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    if tiny:
        text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        vae = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1}
    norm = {"norm_num_groups": 4} if tiny else {}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPTextConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **ids, **text)
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDPMScheduler(clip_sample=False, steps_offset=1, **noise)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return StableDiffusionPipeline(
        AutoencoderKL(latent_channels=4, sample_size=512, **blocks, **vae, **norm),
        CLIPTextModel(config),
        tokenizer,
        random_unet(tiny),
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )

"""The denoiser of a pipeline, UNet or transformer: where it is, and what it is called with beside the encodings."""

import inspect

import torch
from torch import Tensor, nn

from perfusion.errors import UserError
from perfusion.method.layers import plain


def denoiser_of(pipe) -> nn.Module:
    """The pipeline's UNet or transformer. Raises UserError where it has neither."""
    for name in ("unet", "transformer"):
        if isinstance(denoiser := getattr(pipe, name, None), nn.Module):
            return denoiser
    raise UserError(f"{type(pipe).__name__} has neither a unet nor a transformer; give a text-to-image pipeline.")


def predict(
    pipe,
    x: Tensor,
    t: Tensor,
    encodings: Tensor,
    resolution: int,
    mask: Tensor | None = None,
    pooled: Tensor | None = None,
) -> Tensor:
    """The denoiser's prediction [B, C, h, w], float32, for noisy latents x of that shape at timesteps t [B].

    encodings: as the denoiser takes them, with the gates' columns or without; mask [B, T]: of tokens that count (PixArt,
    Sana); pooled [B, p]: of SDXL. The picture is `resolution` pixels square, which some denoisers are told. Variances that
    are predicted too (PixArt's) are left out.
    """
    model = denoiser_of(pipe)
    told = {"encoder_attention_mask": mask, "added_cond_kwargs": _conditions(model, len(x), resolution, pooled)}
    takes = inspect.signature(plain(model).forward).parameters
    told = {name: value for name, value in told.items() if name in takes and value is not None}
    t = t * model.config.get("timestep_scale", 1)
    # A text encoder may have another precision (Sana's).
    out = model(x, timestep=t, encoder_hidden_states=encodings.to(model.dtype), **told).sample.float()
    return out[:, : x.shape[1]]


def _conditions(model: nn.Module, count: int, side: int, pooled: Tensor | None) -> dict[str, Tensor] | None:
    """What a denoiser is told of the picture, as its pipeline tells it; None for most."""
    if pooled is not None and model.config.get("addition_embed_type") == "text_time":  # SDXL
        sizes = pooled.new_tensor([side, side, 0, 0, side, side])  # original size, upper left corner of the crop, size
        return {"text_embeds": pooled, "time_ids": sizes.expand(count, -1)}
    if model.config.get("use_additional_conditions"):  # PixArt-alpha at 1024 pixels
        one = torch.ones(count, 1, device=model.device, dtype=model.dtype)
        return {"resolution": side * one.expand(-1, 2), "aspect_ratio": one}
    return None


def check_trainable(pipe) -> None:
    """Raises UserError for a denoiser that was distilled to be told the guidance scale: no denoising loss trains it."""
    config = denoiser_of(pipe).config
    for key in ("guidance_embeds", "time_cond_proj_dim"):
        if config.get(key):
            raise UserError(
                f"{type(denoiser_of(pipe)).__name__} has {key}={config[key]}: it was distilled to be told the guidance scale, "
                "which a denoising loss cannot train; train on the model that it was distilled from."
            )

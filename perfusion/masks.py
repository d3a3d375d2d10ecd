"""Zero-shot soft masks: where CLIPSeg sees the super-category's word, saved beside the pictures for a user to edit."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from perfusion.errors import UserError


def mask_path(image: Path) -> Path:
    return image.with_name(f"{image.stem}.mask.png")


def read_mask(image: Path, size: tuple[int, int]) -> Image.Image | None:
    """The mask saved beside a picture of `size` (width, height), or None. Raises UserError for a useless one."""
    path = mask_path(image)
    if not path.exists():
        return None
    with Image.open(path) as opened:
        mask = opened.convert("L")
    if mask.size != size:
        raise UserError(
            f"mask {path} is {mask.size[0]} x {mask.size[1]} pixels, its picture {size[0]} x {size[1]}: "
            "they must agree; delete the mask to have it made again."
        )
    if not np.asarray(mask).any():
        raise UserError(
            f"mask {path} is all zero, so nothing would be learned from its picture; "
            "paint the object white, or delete the mask to have it made again."
        )
    return mask


@torch.no_grad()
def segment(images: list[Image.Image], words: list[str], folder: str) -> list[Image.Image]:
    """Soft masks (mode L, each the size of its picture): CLIPSeg's probability of its word, divided by its own maximum."""
    from transformers import AutoTokenizer, CLIPSegForImageSegmentation
    from transformers.models.auto import AutoImageProcessor

    model = CLIPSegForImageSegmentation.from_pretrained(folder, dtype=torch.float32).eval()
    pictures = AutoImageProcessor.from_pretrained(folder)(
        images=[i.convert("RGB") for i in images], return_tensors="pt"
    )
    length = model.config.text_config.max_position_embeddings
    tokens = AutoTokenizer.from_pretrained(folder)(
        words, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    logits = model(input_ids=tokens.input_ids, pixel_values=pictures.pixel_values).logits
    masks = logits.reshape(len(images), *logits.shape[-2:]).sigmoid()
    masks = (masks / masks.amax((1, 2), keepdim=True) * 255).round().byte().numpy()
    return [Image.fromarray(m, "L").resize(i.size, Image.Resampling.BILINEAR) for m, i in zip(masks, images)]


def save_mask(image: Path, mask: Image.Image) -> None:
    unfinished = mask_path(image).with_suffix(".part")
    mask.save(unfinished, format="PNG")
    unfinished.replace(mask_path(image))

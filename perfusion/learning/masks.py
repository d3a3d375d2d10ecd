"""Soft masks: a file beside the picture, else its alpha channel, else where CLIPSeg sees the super-category's word.

CLIPSeg's are zero-shot, and saved beside the pictures for a user to edit.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from perfusion.config import INSTALLED, ROOT, home
from perfusion.errors import UserError


def mask_path(image: Path) -> Path:
    """Beside the picture; of the pictures that an installed package holds, in the cache."""
    name = f"{image.stem}.mask.png"
    if INSTALLED and image.is_relative_to(ROOT):
        return home() / "masks" / image.parent.name / name
    return image.with_name(name)


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


def alpha_mask(picture: Image.Image) -> Image.Image | None:
    """The alpha channel as a mask (mode L), or None where the picture has none or is opaque throughout."""
    if not picture.has_transparency_data:
        return None
    alpha = picture.convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == 255 else alpha


def on_white(picture: Image.Image) -> Image.Image:
    """The picture as RGB; what is transparent becomes white, what is half so lighter."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def square_box(size: tuple[int, int], mask: Image.Image) -> tuple[int, int, int, int]:
    """The square (left, top, right, bottom) of the shorter side that holds most of the mask; the middle one of equals.

    Most of the sum and not around the centre of mass: a constant glow over the whole picture then moves nothing.
    """
    width, height = size
    side = min(size)
    mass = np.asarray(mask, np.int64).sum(0 if width > height else 1)
    total = np.concatenate([[0], mass.cumsum()])
    inside = total[side:] - total[:-side]
    best = np.flatnonzero(inside == inside.max())
    start = int(best[(len(best) - 1) // 2])
    left, top = (start, 0) if width > height else (0, start)
    return left, top, left + side, top + side


def overlay(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with what the mask leaves out fading to dark blue: what the loss will see."""
    faded = Image.blend(picture, Image.new("RGB", picture.size, (20, 20, 90)), 0.8)
    return Image.composite(picture, faded, mask)


@torch.no_grad()
def segment(images: list[Image.Image], words: list[str], source: str) -> list[Image.Image]:
    """Soft masks (mode L, each the size of its picture): CLIPSeg's probability of its word, divided by its own maximum.

    The probability is the mean over four views of a picture (`_mean_over_views`).
    source: a folder or a hub id such as CIDAS/clipseg-rd64-refined. Raises UserError where it cannot be loaded.
    """
    from transformers import AutoTokenizer, CLIPSegForImageSegmentation
    from transformers.models.auto import AutoImageProcessor

    try:
        model = CLIPSegForImageSegmentation.from_pretrained(source, dtype=torch.float32).eval()
        processor, tokenizer = AutoImageProcessor.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.segmenter={source} cannot be loaded ({' '.join(str(error).split())}); give a CLIPSeg folder or hub "
            "id, put masks beside the pictures as NAME.mask.png, or learn without by masks=null."
        ) from error
    pictures = processor(images=[i.convert("RGB") for i in images], return_tensors="pt")
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(words, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    see = lambda x: model(input_ids=tokens.input_ids, pixel_values=x).logits.reshape(len(x), *x.shape[-2:]).sigmoid()
    masks = _mean_over_views(see, pictures.pixel_values, model.config.vision_config.patch_size // 2)
    masks = (masks / masks.amax((1, 2), keepdim=True) * 255).round().byte().numpy()
    return [Image.fromarray(m, "L").resize(i.size, Image.Resampling.BILINEAR) for m, i in zip(masks, images)]


def _mean_over_views(see, x: torch.Tensor, shift: int) -> torch.Tensor:
    """Mean of see(view) [B, H, W], moved back, over x [B, 3, H, W] as it is and mirrored, each also shifted diagonally.

    With a shift of half a patch, seams between patches fall elsewhere: outlines gain (IoU .73 -> .77 on Emojiland).
    """
    moved = lambda x, by: see(x.roll((by, by), (-2, -1))).roll((-by, -by), (-2, -1))
    seen = [moved(x, by) for by in (0, shift)] + [moved(x.flip(-1), by).flip(-1) for by in (0, shift)]
    return torch.stack(seen).mean(0)


def save_mask(image: Path, mask: Image.Image) -> None:
    """Write the mask beside its picture. Raises UserError where that cannot be written."""
    unfinished = mask_path(image).with_suffix(".part")
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        mask.save(unfinished, format="PNG")
        unfinished.replace(mask_path(image))
    except OSError as error:
        raise UserError(
            f"mask {mask_path(image)} cannot be written ({error}); masks are kept beside the pictures to be seen and "
            "edited: copy the pictures to a folder you can write to, or learn without by masks=null."
        ) from error

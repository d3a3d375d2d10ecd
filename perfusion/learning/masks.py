"""Soft masks: a file beside the picture, else its alpha channel, else where CLIPSeg sees the super-category's word.

CLIPSeg's are zero-shot, and saved beside the pictures for a user to edit, with a note of the picture and the word that
they are of: one that is of others is made again, one that a person has edited never.
"""

import hashlib
import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo

from perfusion.atomic import whole
from perfusion.config import INSTALLED, ROOT, home
from perfusion.errors import UserError, loading
from perfusion.learning.pictures import decoded, is_mask

log = logging.getLogger(__name__)
NOTE = "perfusion"  # the keyword of a made mask's PNG text


def mask_path(image: Path) -> Path:
    """Beside the picture; of the pictures that an installed package holds, in the cache."""
    name = f"{image.stem}.mask.png"
    if INSTALLED and image.is_relative_to(ROOT):
        return home() / "masks" / image.parent.name / name
    return image.with_name(name)


def find_mask(image: Path) -> Path | None:
    """The mask that lies where `mask_path` says, under that name in any case and of any kind. Raises UserError for two."""
    folder = mask_path(image).parent
    wanted = f"{image.stem}.mask".lower()
    masks = sorted(p for p in folder.glob("*") if is_mask(p) and p.stem.lower() == wanted) if folder.is_dir() else []
    if len(masks) > 1:
        raise UserError(f"{' and '.join(str(p) for p in masks)} are both masks of {image.name}; remove one of them.")
    return masks[0] if masks else None


def read_mask(image: Path, sizes: set[tuple[int, int]], made_for: str = "") -> Image.Image | None:
    """The mask (mode L) of a picture of `sizes` (width, height); its colours count as far as its alpha does.

    sizes: the file's own, and that of the picture as read, where it was shrunk. None where there is no mask, or one that
    `save_mask` wrote for something other than `made_for` and nobody has touched since. Raises UserError for a useless one.
    """
    path = find_mask(image)
    if path is None:
        return None
    try:
        mask, own = decoded(path, most=4 * max(width * height for width, height in sizes))
    except (ValueError, OSError) as error:
        raise UserError(
            f"mask {path} cannot be read ({error}); paint it anew, or delete it to have it made again."
        ) from error
    grey = mask.convert("L") if mask.mode == "RGB" else ImageChops.multiply(mask.convert("L"), mask.getchannel("A"))
    source, made = _note(path)
    if made == _digest(grey) and source != made_for:
        log.info(f"masks:     {path.name} was made for another picture or word; it is made again")
        return None
    if own not in sizes:
        wanted = " or ".join(f"{width} x {height}" for width, height in sorted(sizes))
        raise UserError(
            f"mask {path} is {own[0]} x {own[1]} pixels, its picture {wanted}: "
            "they must agree; delete the mask to have it made again."
        )
    if not grey.getbbox():
        raise UserError(
            f"mask {path} is all zero, so nothing would be learned from its picture; "
            "paint the object white, or delete the mask to have it made again."
        )
    return grey


def source_of(picture: Image.Image, word: str) -> str:
    """What a mask is made for, as a digest: a picture's pixels and the word that is looked for in it."""
    return _digest(picture, word)


def _digest(picture: Image.Image, word: str = "") -> str:
    return hashlib.sha256(f"{picture.mode} {picture.size} {word} ".encode() + picture.tobytes()).hexdigest()[:32]


def _note(path: Path) -> tuple[str | None, str | None]:
    """What `save_mask` wrote into a mask: what it was made for, and its own pixels; None, None in a person's."""
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            source, made = opened.info[NOTE].split()
            return source, made
    except Exception:  # none, or a damaged one beside pixels that could be decoded: taken for a person's, and kept
        return None, None


def save_mask(image: Path, mask: Image.Image, made_for: str) -> None:
    """Write the mask beside its picture, with a note of what it was made for. Raises UserError where that cannot be."""
    path, note = find_mask(image) or mask_path(image), PngInfo()
    note.add_text(NOTE, f"{made_for} {_digest(mask)}")
    try:
        with whole(path) as part:
            mask.save(part, format="PNG", pnginfo=note)
    except OSError as error:
        raise UserError(
            f"mask {path} cannot be written ({error.__cause__ or error}); masks are kept beside the pictures to be seen "
            "and edited: copy the pictures to a folder you can write to, or learn without by masks=null."
        ) from error


def alpha_mask(picture: Image.Image) -> Image.Image | None:
    """The alpha channel of an RGBA picture as a mask (mode L), or None where it has none or is opaque throughout."""
    if picture.mode != "RGBA" or picture.getchannel("A").getextrema()[0] == 255:
        return None
    return picture.getchannel("A")


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

    with loading(
        f"model.segmenter={source} cannot be loaded",
        "give a whole CLIPSeg folder or hub id, put masks beside the pictures as NAME.mask.png, or learn without by masks=null",
    ):
        model = CLIPSegForImageSegmentation.from_pretrained(source, dtype=torch.float32).eval()
        processor, tokenizer = AutoImageProcessor.from_pretrained(source), AutoTokenizer.from_pretrained(source)
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

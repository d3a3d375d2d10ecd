"""A concept's pictures: checked, cropped square around the mask, encoded once (mirrored too), drawn into batches."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import pil_to_tensor

from perfusion.errors import UserError
from perfusion.learning.masks import (
    alpha_mask,
    mask_path,
    overlay,
    read_mask,
    save_mask,
    segment,
    source_of,
    square_box,
)
from perfusion.learning.pictures import on_white, picture_paths, read_picture, real_pictures
from perfusion.plots import grid

__all__ = ["ConceptData", "Latents", "picture_paths", "real_pictures"]


@dataclass
class Latents:
    """What training sees: latents [n, C, h, w] and masks [n, 1, h, w] in [0, 1] of pictures of `resolution` pixels a side."""

    latents: Tensor
    masks: Tensor
    resolution: int

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`size` latents and masks drawn with a generator: the same for the same generator state."""
        rows = torch.randint(len(self.latents), (size,), generator=generator)
        return self.latents[rows], self.masks[rows]


class ConceptData:
    """A concept's pictures and masks, cropped; `encode` makes latents of them.

    masks: "clipseg", or None for the whole picture. With "clipseg" a picture's mask is the file beside it, else its
    alpha channel, else zero-shot by `segmenter`. Transparent pixels become white. A picture that is not square is
    cropped to the square that holds most of its mask, to the middle without one.
    """

    def __init__(
        self, paths: list[Path], resolution: int, super_category: str, segmenter: str, masks: str | None, flip: bool
    ):
        opened = [read_picture(p) for p in paths]
        pictures = [on_white(p) for p, _ in opened]
        by_picture: list = [None] * len(paths)
        if masks:
            _check_names(paths)
            sources = [source_of(p, super_category) for p in pictures]
            by_picture = [read_mask(p, {size, o.size}, source) for p, (o, size), source in zip(paths, opened, sources)]
            by_picture = [mask or alpha_mask(picture) for mask, (picture, _) in zip(by_picture, opened)]
            todo = [i for i, mask in enumerate(by_picture) if mask is None]
            if todo:
                for i, mask in zip(todo, segment([pictures[i] for i in todo], [super_category] * len(todo), segmenter)):
                    save_mask(paths[i], mask, sources[i])
                    by_picture[i] = mask
            by_picture = [mask.resize(p.size) if mask.size != p.size else mask for mask, p in zip(by_picture, pictures)]
            boxes = [square_box(p.size, mask) for p, mask in zip(pictures, by_picture)]
            pictures, by_picture = ([p.crop(box) for p, box in zip(part, boxes)] for part in (pictures, by_picture))
        self.pictures, self.masks = pictures, by_picture
        self.resolution, self.flip = resolution, flip

    def show(self, path: Path) -> None:
        """A picture of what training will see: the pictures as cropped, and below what their masks leave of them."""
        rows = [("pictures", [("", p) for p in self.pictures])]
        if None not in self.masks:
            rows.append(("masked", [("", overlay(p, m)) for p, m in zip(self.pictures, self.masks)]))
        grid(rows, path)

    @torch.no_grad()
    def encode(self, vae) -> Latents:
        """Encode every picture once with the frozen VAE, mirrored too where `flip`; its mean latents are what training sees."""
        square = lambda picture: ImageOps.fit(picture, (self.resolution, self.resolution), Image.Resampling.LANCZOS)
        x = torch.stack([pil_to_tensor(square(p)) for p in self.pictures]).to(vae.device) / 127.5 - 1
        m = torch.stack([pil_to_tensor(square(m)) / 255 if m else torch.ones(1, *x.shape[-2:]) for m in self.masks])
        if self.flip:
            x, m = torch.cat([x, x.flip(-1)]), torch.cat([m, m.flip(-1)])
        at_once = 4 if self.resolution <= 256 else 1
        upcast = vae.dtype == torch.float16 and vae.config.get("force_upcast")  # SDXL's overflows in float16
        if upcast:
            vae.float()
        mean = torch.cat([_mean(vae.encode(part.to(vae.dtype))) for part in x.split(at_once)]).float()
        if upcast:
            vae.half()
        latents = (mean - (vae.config.get("shift_factor") or 0)) * vae.config.scaling_factor
        masks = interpolate(m.to(vae.device), size=latents.shape[-2:], mode="area")
        return Latents(latents, masks, self.resolution)


def _mean(encoded) -> Tensor:
    """Of an autoencoder that gives a distribution, or of one that gives the latents themselves (Sana's)."""
    return encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latent


def _check_names(paths: list[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem.lower(), path)
        if other is not path:
            raise UserError(
                f"pictures {other.name} and {path.name} would share the mask {mask_path(path).name}; "
                "rename one of them."
            )

"""A concept's pictures: checked, cropped, encoded once to latents (mirrored too), drawn into batches by step."""

from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import pil_to_tensor

from perfusion.errors import UserError
from perfusion.masks import read_mask, save_mask, segment

KINDS = (".png", ".jpg", ".jpeg", ".webp")


def picture_paths(folder: str | Path) -> list[Path]:
    """The pictures in a folder, by name, masks left out. Raises UserError where there are none."""
    folder = Path(folder)
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in KINDS and not p.name.endswith(".mask.png"))
    if not found:
        raise UserError(
            f"concept.images={folder} has no pictures; put 1-7 photos of the concept there, as {', '.join(KINDS)}."
        )
    return found


def read_picture(path: Path) -> Image.Image:
    """RGB, upright by its EXIF tag. Raises UserError naming the file where it cannot be read."""
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(
            f"picture {path} cannot be read ({error}); replace it by a whole {', '.join(KINDS)} file, or remove it."
        ) from error


class ConceptData:
    """`count` pictures as latents [n, C, h, w] and masks [n, 1, h, w] in [0, 1]; n is doubled by mirroring.

    masks: "clipseg" (zero-shot soft masks from `segmenter`, or the files beside the pictures), or None for the whole picture.
    """

    def __init__(
        self, paths: list[Path], resolution: int, super_category: str, segmenter: str, masks: str | None, flip: bool
    ):
        self.pictures = [read_picture(p) for p in paths]
        found: list = [None] * len(paths)
        if masks:
            found = [read_mask(p, picture.size) for p, picture in zip(paths, self.pictures)]
            todo = [i for i, mask in enumerate(found) if mask is None]
            if todo:
                for i, mask in zip(
                    todo, segment([self.pictures[i] for i in todo], [super_category] * len(todo), segmenter)
                ):
                    save_mask(paths[i], mask)
                    found[i] = mask
        self.masks = found
        self.resolution, self.flip = resolution, flip

    @torch.no_grad()
    def encode(self, vae) -> "ConceptData":
        """Encode every picture once with the frozen VAE; its mean latents are what training sees."""
        square = lambda picture: ImageOps.fit(picture, (self.resolution, self.resolution), Image.Resampling.LANCZOS)
        x = torch.stack([pil_to_tensor(square(p)) for p in self.pictures]).to(vae.device) / 127.5 - 1
        m = torch.stack([pil_to_tensor(square(m)) / 255 if m else torch.ones(1, *x.shape[-2:]) for m in self.masks])
        if self.flip:
            x, m = torch.cat([x, x.flip(-1)]), torch.cat([m, m.flip(-1)])
        at_once = 4 if self.resolution <= 256 else 1
        upcast = vae.dtype == torch.float16 and vae.config.force_upcast  # SDXL's overflows in float16
        if upcast:
            vae.float()
        mean = torch.cat([vae.encode(part.to(vae.dtype)).latent_dist.mean for part in x.split(at_once)]).float()
        if upcast:
            vae.half()
        self.latents = (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
        self.soft_masks = interpolate(m.to(vae.device), size=self.latents.shape[-2:], mode="area")
        return self

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`size` latents and masks drawn with a generator: the same for the same generator state."""
        rows = torch.randint(len(self.latents), (size,), generator=generator)
        return self.latents[rows], self.soft_masks[rows]

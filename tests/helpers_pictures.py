"""Small photos, their masks, and what training makes of them."""

from pathlib import Path

from PIL import Image, ImageDraw

from perfusion.learning.data import ConceptData, picture_paths
from perfusion.learning.masks import mask_path

RED, GREY = (220, 30, 30), (128, 128, 128)


def photo(size=(40, 24), box=(28, 6, 38, 16)) -> Image.Image:
    """A red box on grey."""
    picture = Image.new("RGB", size, GREY)
    ImageDraw.Draw(picture).rectangle((*box[:2], box[2] - 1, box[3] - 1), RED)
    return picture


def data(folder: Path, masks: str | None = "clipseg", segmenter: str = "", flip=False) -> ConceptData:
    return ConceptData(picture_paths(folder), 16, "teddy", segmenter, masks, flip)


def save_box_mask(image: Path, size, box) -> None:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((*box[:2], box[2] - 1, box[3] - 1), 255)
    mask.save(mask_path(image))

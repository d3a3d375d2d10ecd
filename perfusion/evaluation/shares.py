"""How much of the attention of each word of a drawn prompt lies inside the object."""

import numpy as np
from PIL import Image
from torch import Tensor

from perfusion.learning.masks import segment
from perfusion.method.attention import Looked


def inside(heat: Tensor, mask: Image.Image) -> float:
    """Share of the mass of a map [side, side] that lies inside a soft mask (mode L)."""
    m = np.asarray(mask.resize(tuple(heat.shape[::-1]), Image.Resampling.BOX), np.float32) / 255
    return float((heat.numpy() * m).sum() / heat.sum().item())


def shares(looked: list[Looked], word: str, trigger: str, segmenter: str) -> dict:
    """How much of the attention of the concept's word, and of all other words, lies inside the drawn object.

    The object's mask is CLIPSeg's (soft, divided by its maximum) for the super-category `word` on the drawn picture.
    Returns {"concept", "others", "area"}: means over the pictures, and "rows", one dict a picture. An even map has the
    mask's area; above it, the word looks at the object.
    """
    rows, own = [], trigger.lower()  # as tokenizers write it
    masks = segment([one.picture for one in looked], [word] * len(looked), segmenter)
    for one, mask in zip(looked, masks):
        by_word = {name: round(inside(heat, mask), 4) for name, heat in one.maps.items()}
        others = [share for name, share in by_word.items() if name != own]
        area = round(float(np.asarray(mask).mean() / 255), 4)
        rows.append({"prompt": one.prompt, "concept": by_word[own], "others": float(np.mean(others)), "area": area,
                     "words": by_word})  # fmt: skip
    means = {name: round(float(np.mean([row[name] for row in rows])), 4) for name in ("concept", "others", "area")}
    return means | {"rows": rows}

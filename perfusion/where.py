"""Where each word of a drawn prompt is looked at (the paper's Figures 2 and 11), and how much of it inside the object."""

from dataclasses import dataclass

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from perfusion.attention import attention_maps
from perfusion.draw import draw
from perfusion.masks import segment
from perfusion.text import tokenize

SIDE = 32  # of the maps


@dataclass
class Looked:
    """A drawn picture, and each word's map [side, side]: the mean over heads, layers and steps of the word's tokens."""

    prompt: str
    picture: Image.Image
    maps: dict[str, Tensor]


def word_positions(tokenizer, prompt: str) -> dict[str, list[int]]:
    """{word: positions of its tokens} in a tokenized prompt; a word said twice has the positions of both."""
    ids, found, word, here = tokenize(tokenizer, [prompt])[0].tolist(), {}, "", []
    added = tokenizer.get_added_vocab()
    for position, token in enumerate(tokenizer.convert_ids_to_tokens(ids)[1:], 1):
        if ids[position] == tokenizer.eos_token_id:
            break
        word, here = word + token.removesuffix("</w>"), [*here, position]
        if token.endswith("</w>") or token in added:
            found[word], word, here = found.get(word, []) + here, "", []
    return found


@torch.no_grad()
def look(pipe, prompts: list[str], seeds: list[int], model: DictConfig, side: int = SIDE) -> list[Looked]:
    """Draw as `draw` does, under classifier-free guidance, and record every word's map. model: its configuration."""
    found = []
    for start in range(0, len(prompts), model.draw_batch):
        part = slice(start, start + model.draw_batch)
        with attention_maps(pipe.unet, side) as recorded:
            pictures = draw(
                pipe, prompts[part], seeds[part], model.steps, model.guidance, batch_size=model.draw_batch,
                resolution=model.resolution,
            )  # fmt: skip
        for prompt, picture, maps in zip(prompts[part], pictures, recorded.maps[-len(pictures) :]):
            words = word_positions(pipe.tokenizer, prompt)
            found.append(Looked(prompt, picture, {word: maps[at].mean(0).cpu() for word, at in words.items()}))
    return found


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


def heat_overlay(picture: Image.Image, heat: Tensor) -> Image.Image:
    """The picture in grey under a map, coloured as cividis: from dark blue (none) to yellow (the map's own maximum)."""
    from matplotlib import colormaps

    strength = (heat / heat.max()).numpy()
    color = Image.fromarray((colormaps["cividis"](strength)[..., :3] * 255).astype(np.uint8))
    color = color.resize(picture.size, Image.Resampling.BILINEAR)
    return Image.blend(picture.convert("L").convert("RGB"), color, 0.65)


def attention_rows(looked: list[Looked], most: int = 6) -> list[tuple[str, list[tuple[str, Image.Image]]]]:
    """Rows for picture.grid: the drawn picture, then its words' overlays, the longest (most telling) words kept."""
    rows = []
    for one in looked:
        kept = sorted(sorted(one.maps, key=len, reverse=True)[:most], key=list(one.maps).index)
        overlays = [(word, heat_overlay(one.picture, one.maps[word])) for word in kept]
        rows.append(("", [(one.prompt, one.picture), *overlays]))
    return rows

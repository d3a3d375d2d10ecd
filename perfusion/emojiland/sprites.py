"""The sprite sheet: one RGBA drawing for each (class, artist) that exists, recoloured on demand."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from perfusion.emojiland.vocabulary import ACCESSORIES, ARTISTS, CLASSES, COLORS, HELD_OUT

SHEET = Path(__file__).parents[1] / "assets/emojiland/sprites.png"


@cache
def sprites() -> dict[tuple[str, str], Image.Image]:
    """(class or accessory, artist) -> RGBA picture, cropped to its drawing; pairs no artist drew are absent."""
    with Image.open(SHEET) as opened:
        sheet = opened.convert("RGBA")
    cell = sheet.width // len(ARTISTS)
    pictures = {}
    for row, name in enumerate(CLASSES | ACCESSORIES):
        for column, artist in enumerate(ARTISTS):
            drawing = sheet.crop((column * cell, row * cell, (column + 1) * cell, (row + 1) * cell))
            if box := drawing.getchannel("A").getbbox():
                pictures[name, artist] = drawing.crop(box)
    return pictures


@cache
def drawings() -> tuple[tuple[str, str], ...]:
    """Every (class, artist) pair in a fixed order: the reader's identity labels."""
    return tuple(pair for pair in sprites() if pair[0] in CLASSES)


@cache
def artists_of(name: str, held_out: bool) -> tuple[str, ...]:
    """Artists that drew `name`; without the held-out pair unless `held_out`."""
    return tuple(a for n, a in sprites() if n == name and (held_out or HELD_OUT.get(name) != a))


@cache
def tinted(name: str, artist: str, color: str) -> Image.Image:
    """The drawing in one colour: dark outlines stay dark, highlights light, what lies between takes the colour."""
    drawing = sprites()[name, artist]
    rgba = np.asarray(drawing, np.float32) / 255
    light = rgba[..., :3] @ np.float32([0.299, 0.587, 0.114])
    light = light - (np.median(light[rgba[..., 3] > 0.5]) - 0.5)  # every drawing's body lands on the colour itself
    points = np.float32([[8, 8, 12], COLORS[color], COLORS[color], [255, 255, 255]])
    rgb = np.stack([np.interp(light, [0.0, 0.42, 0.62, 1.15], points[:, c]) for c in range(3)], -1)
    return Image.fromarray(np.dstack([rgb, rgba[..., 3] * 255]).astype(np.uint8), "RGBA")

"""Drawings that nobody drew: two artists' in one, bent, with something put on. Looks are then a continuum, not a list.

A model that has seen 140 drawings knows each by heart and nothing between them, so that no value tells it a new one.
"""

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from perfusion.emojiland.sprites import artists_of, tinted
from perfusion.emojiland.vocabulary import COLORS

GRID = 4  # cells a side that a drawing is bent by
BEND = 0.025  # standard deviation of a corner's shift, of the drawing's size


@lru_cache(256)
def mutant(name: str, artist: str, colors: tuple[str | None, ...], seed: int) -> Image.Image:
    """RGBA, cropped to its drawing: the artist's drawing of a class in `colors`, changed as `seed` says; never a held-out one's."""
    rng = np.random.default_rng(seed)
    picture = tinted(name, artist, *colors)
    others = [other for other in artists_of(name, False) if other != artist]
    if others and rng.random() < 0.6:
        other = tinted(name, others[rng.integers(len(others))], *colors).resize(picture.size, Image.Resampling.LANCZOS)
        picture = Image.composite(other, picture, _half(picture.size, rng))
    for _ in range(rng.integers(3)):
        picture = _with_something(picture, rng)
    picture = _bent(picture, rng)
    return picture.crop(picture.getchannel("A").getbbox())


def _half(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A mask, L: one side of a line, or the inside of a circle, near the middle."""
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in size))
    cx, cy, angle = *rng.normal(0, 0.25, 2), rng.uniform(0, 2 * math.pi)
    if rng.random() < 0.6:
        inside = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle) > 0
    else:
        inside = np.hypot(x - cx, y - cy) < rng.uniform(0.4, 0.8)
    return Image.fromarray(inside.astype(np.uint8) * 255, "L")


def _with_something(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A spot, a patch or a bow of one colour somewhere on the drawing."""
    rows, columns = np.nonzero(np.asarray(picture.getchannel("A")) > 127)
    at = rng.integers(len(rows))
    y, x, r = rows[at], columns[at], rng.uniform(0.06, 0.18) * max(picture.size)
    color = list(COLORS.values())[rng.integers(len(COLORS))]
    fill = tuple(int(v) for v in np.clip(np.array(color) * rng.normal(1, 0.08, 3), 0, 255))
    picture = picture.copy()
    pen, kind = ImageDraw.Draw(picture), rng.integers(3)
    if kind == 0:
        stretch = rng.uniform(0.5, 1)
        pen.ellipse((x - r, y - r * stretch, x + r, y + r * stretch), fill=fill)
    elif kind == 1:
        angles = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 7)))
        pen.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for a in angles], fill=fill)
    else:
        up, down = rng.uniform(0.5, 0.9, 2)
        pen.polygon([(x, y), (x - 1.3 * r, y - up * r), (x - 1.2 * r, y + down * r)], fill=fill)
        pen.polygon([(x, y), (x + 1.3 * r, y - up * r), (x + 1.2 * r, y + down * r)], fill=fill)
    return picture


def _bent(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Bent by a grid whose corners are shifted, and made a little wider or taller."""
    scale = np.exp(rng.normal(0, 0.07))
    margin = round(0.12 * max(picture.size))
    padded = Image.new("RGBA", (picture.width + 2 * margin, picture.height + 2 * margin))
    padded.paste(picture, (margin, margin))
    size = np.array(padded.size)
    corners = np.stack(np.meshgrid(*(np.linspace(0, n, GRID + 1) for n in padded.size)), -1)  # [row, column, (x, y)]
    shifted = corners + rng.normal(0, BEND * max(picture.size), corners.shape)
    mesh = [
        (
            (*map(round, corners[i, j]), *map(round, corners[i + 1, j + 1])),
            tuple(v for at in ((i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)) for v in shifted[at]),
        )
        for i in range(GRID)
        for j in range(GRID)
    ]
    bent = padded.transform(padded.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    return bent.resize(tuple(np.maximum(1, np.round(size * (scale, 1 / scale))).astype(int)), Image.Resampling.BICUBIC)

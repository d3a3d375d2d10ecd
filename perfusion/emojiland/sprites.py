"""The sprite sheet: one RGBA drawing for each (class, artist) that exists, recoloured on demand."""

from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from perfusion.emojiland.vocabulary import ACCESSORIES, ARTISTS, CLASSES, COLORS, HELD_OUT

LUMA = np.float32([0.299, 0.587, 0.114])
LIGHTNESS = 0.35  # weight of lightness beside colour, where parts are told apart
CLUSTERS = 6
INK = 0.22  # what is darker on average is outline
SMALLEST = 0.03  # share of the drawing that a part has at least
SHEET = Path(__file__).parents[1] / "assets/emojiland/sprites.png"
OTHERS = SHEET.with_name("others.webp")
SMALL = 56  # pixels a side of each place in it


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
def other_drawings() -> tuple[Image.Image, ...]:
    """Thousands of drawings of other things than classes, RGBA, for the UNet's training alone (scripts/pretrain_unet.py)."""
    with Image.open(OTHERS) as opened:
        sheet = opened.convert("RGBA")
    corners = [(x, y) for y in range(0, sheet.height, SMALL) for x in range(0, sheet.width, SMALL)]
    cells = [sheet.crop((x, y, x + SMALL, y + SMALL)) for x, y in corners]
    return tuple(cell.crop(box) for cell in cells if (box := cell.getchannel("A").getbbox()))


def sprite(name: str, artist: str) -> Image.Image:
    """An artist's drawing of a class. A number for an artist: that one of other_drawings, whatever the class."""
    return other_drawings()[int(artist)] if artist.isdigit() else sprites()[name, artist]


@cache
def drawings() -> tuple[tuple[str, str], ...]:
    """Every (class, artist) pair in a fixed order: the reader's identity labels."""
    return tuple(pair for pair in sprites() if pair[0] in CLASSES)


@cache
def artists_of(name: str, held_out: bool) -> tuple[str, ...]:
    """Artists that drew `name`; without the held-out pair unless `held_out`."""
    return tuple(a for n, a in sprites() if n == name and (held_out or HELD_OUT.get(name) != a))


@lru_cache(8192)
def parts(name: str, artist: str) -> np.ndarray:
    """Which part each pixel of a drawing belongs to: 1 its body, the largest area of one colour; 2 the next largest; 3 the
    third; 0 the rest: ink, and what is too small. k-means over colours in which lightness counts little, so that shading
    makes no part."""
    rgba = np.asarray(sprite(name, artist), np.float32) / 255
    solid = rgba[..., 3] > 0.5
    light = rgba[..., :3] @ LUMA
    # Opponent colours: blue against yellow, red against green, and a little of light against dark.
    axes = np.stack([rgba[..., 2] - light, rgba[..., 0] - light, LIGHTNESS * light], -1)
    pixels = axes[solid]
    apart = lambda centre: ((pixels - centre) ** 2).sum(1)
    centres, nearest = pixels[[0]], None
    far = apart(centres[0])
    while len(centres) < CLUSTERS:  # the farthest pixel from all centres so far is the next
        centres = np.concatenate([centres, pixels[[far.argmax()]]])
        far = np.minimum(far, apart(centres[-1]))
    for _ in range(20):
        before, nearest = nearest, np.stack([apart(centre) for centre in centres]).argmin(0)
        if np.array_equal(before, nearest):
            break
        centres = np.stack(
            [pixels[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(CLUSTERS)]
        )
    labels = np.full(solid.shape, -1)
    labels[solid] = nearest
    areas = {k: (nearest == k).mean() for k in range(CLUSTERS)}
    ink = {k for k in areas if light[labels == k].mean() < INK and areas[k] < 0.4}
    large = sorted((k for k in areas if k not in ink and areas[k] >= SMALLEST), key=lambda k: -areas[k])[:3]
    return sum(((rank + 1) * (labels == k) for rank, k in enumerate(large)), np.zeros(solid.shape, int))


@lru_cache(4096)  # every pair of colours of every drawing would be gigabytes
def tinted(name: str, artist: str, body: str | None, trim: str | None, details: str | None) -> Image.Image:
    """The drawing with its parts in other colours: in each, what is darker than most of it stays darker, highlights light."""
    drawing = sprite(name, artist)
    if not (body or trim or details):
        return drawing
    rgba, of = np.asarray(drawing, np.float32) / 255, parts(name, artist)
    light, rgb = rgba[..., :3] @ LUMA, rgba[..., :3] * 255
    for rank, color in enumerate((body, trim, details), 1):
        here = of == rank
        if not color or not here.any():
            continue
        shade = light[here] - np.median(light[here]) + 0.5  # most of every part lands on the colour itself
        points = np.float32([[8, 8, 12], COLORS[color], COLORS[color], [255, 255, 255]])
        rgb[here] = np.stack([np.interp(shade, [0.0, 0.42, 0.62, 1.15], points[:, c]) for c in range(3)], -1)
    return Image.fromarray(np.dstack([rgb, rgba[..., 3] * 255]).astype(np.uint8), "RGBA")

"""Emojiland's backgrounds: nine places and the plain one, drawn without grain, which would cost a small VAE its bits."""

import numpy as np
from PIL import Image, ImageDraw

SCALE = 2  # drawn at twice the size, then reduced: smooth edges


def _bands(side: int, horizon: float, top, sky_end, ground, ground_end) -> np.ndarray:
    """Two vertical gradients that meet at `horizon` (a share of the side)."""
    y = np.linspace(0, 1, side)[:, None, None]
    sky, earth = np.clip(y / horizon, 0, 1), np.clip((y - horizon) / (1 - horizon), 0, 1)
    top, sky_end, ground, ground_end = (np.float64(c) for c in (top, sky_end, ground, ground_end))
    picture = np.where(y < horizon, top + (sky_end - top) * sky, ground + (ground_end - ground) * earth)
    return np.broadcast_to(picture, (side, side, 3)).copy()


def background(place: str | None, rng: np.random.Generator, side: int) -> Image.Image:
    """A square RGB background for `place` (a key of PLACES, or None for a quiet plain one)."""
    n = side * SCALE
    shift = rng.normal(0, 5, 3)
    horizon = rng.uniform(0.42, 0.62)
    if place is None:
        tone = np.float64(rng.choice([[236, 232, 224], [206, 214, 224], [190, 190, 194], [232, 222, 206]]))
        picture = _bands(n, 0.5, tone + 8, tone, tone, tone - 10)
    elif place == "beach":
        picture = _bands(n, horizon, (120, 190, 245), (200, 230, 250), (240, 218, 160), (228, 196, 130))
        sea = slice(int((horizon - 0.14) * n), int(horizon * n))
        picture[sea] = (40, 130, 190)
    elif place == "snow":
        picture = _bands(n, horizon, (150, 170, 210), (205, 215, 235), (246, 249, 254), (226, 234, 246))
    elif place == "grass":
        picture = _bands(n, horizon, (110, 180, 245), (200, 228, 250), (96, 178, 60), (50, 130, 36))
    elif place == "night":
        picture = _bands(n, 0.8, (10, 10, 44), (36, 30, 84), (24, 24, 50), (16, 16, 36))
    elif place == "desert":
        picture = _bands(n, horizon, (252, 176, 96), (255, 222, 160), (222, 150, 76), (190, 112, 50))
    elif place == "brick":
        picture = _bands(n, 0.5, (170, 72, 52), (164, 66, 48), (160, 64, 46), (150, 58, 42))
    elif place == "table":
        picture = _bands(n, horizon, (234, 226, 212), (222, 212, 196), (160, 104, 58), (124, 76, 40))
    elif place == "water":
        picture = _bands(n, 0.5, (60, 160, 220), (30, 110, 190), (30, 110, 190), (10, 56, 130))
    elif place == "city":
        picture = _bands(n, 0.86, (150, 176, 214), (214, 218, 232), (96, 96, 104), (76, 76, 84))
    else:
        raise KeyError(place)
    picture = np.clip(picture + shift, 0, 255).astype(np.uint8)
    image = Image.fromarray(picture, "RGB")
    _details(place, ImageDraw.Draw(image), rng, n, horizon)
    return image.resize((side, side), Image.Resampling.BOX)


def _details(place: str | None, draw: ImageDraw.ImageDraw, rng: np.random.Generator, n: int, horizon: float) -> None:
    """What makes a place recognisable beyond its two gradients."""
    unit = n / 64
    if place == "snow":
        for x, y in rng.uniform(0, n, (22, 2)):
            draw.ellipse((x, y, x + 1.6 * unit, y + 1.6 * unit), fill=(255, 255, 255))
    elif place == "night":
        for x, y in rng.uniform(0, n * 0.7, (16, 2)) * (1.43, 1):
            draw.ellipse((x, y, x + 1.3 * unit, y + 1.3 * unit), fill=(250, 246, 210))
        x, y = rng.choice([0.1, 0.72]) * n, 0.06 * n
        draw.ellipse((x, y, x + 11 * unit, y + 11 * unit), fill=(252, 244, 196))
    elif place == "brick":
        rows, mortar = 9, (206, 190, 176)
        for row in range(rows + 1):
            y = row * n / rows
            draw.line((0, y, n, y), fill=mortar, width=round(1.2 * unit))
            for brick in range(6):
                x = (brick + 0.5 * (row % 2)) * n / 5
                draw.line((x, y, x, y + n / rows), fill=mortar, width=round(1.2 * unit))
    elif place == "table":
        for board in range(1, 4):
            y = (horizon + board * (1 - horizon) / 4) * n
            draw.line((0, y, n, y), fill=(96, 56, 28), width=round(unit))
    elif place == "water":
        for x, y in rng.uniform(0, n, (9, 2)):
            r = rng.uniform(1.2, 2.6) * unit
            draw.ellipse((x - r, y - r, x + r, y + r), outline=(190, 230, 250), width=round(0.8 * unit))
    elif place == "city":
        x = -rng.uniform(0, 8) * unit
        while x < n:
            width, top = rng.uniform(9, 15) * unit, rng.uniform(0.12, 0.5) * n
            tone = int(rng.uniform(70, 120))
            draw.rectangle((x, top, x + width, 0.86 * n), fill=(tone, tone + 6, tone + 30))
            for wy in np.arange(top + 3 * unit, 0.8 * n, 5 * unit):
                for wx in np.arange(x + 2 * unit, x + width - 2.5 * unit, 4 * unit):
                    draw.rectangle((wx, wy, wx + 1.4 * unit, wy + 2 * unit), fill=(250, 226, 140))
            x += width + unit

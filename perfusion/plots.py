"""Pictures side by side: labelled rows, contact sheets, a word's attention over a picture."""

import sys
import textwrap
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import matplotlib.font_manager

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from perfusion.atomic import whole

FONTS = (  # for scripts that matplotlib's own font lacks, where they are installed; a glyph that all lack is a box
    "Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari",
    "Noto Emoji", "Symbola", "Unifont", "Arial Unicode MS", "Hiragino Sans", "Microsoft YaHei", "Segoe UI Emoji",
)  # fmt: skip


@contextmanager
def plain_text():
    """Text in figures is text: a $ starts no formula, and a glyph that no font has costs no warning. Also a decorator."""
    installed = {font.name for font in matplotlib.font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in FONTS if name in installed)]
    with matplotlib.rc_context({"text.parse_math": False, "font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def attempt(draw: Callable, *arguments, path: Path) -> bool:
    """draw(*arguments, path); a picture that cannot be drawn is said, and costs nothing else. Returns whether it is there."""
    try:
        draw(*arguments, path)
    except Exception as error:  # whatever it is: what was learned or measured is worth more than its picture
        print(
            f"warning: {path} could not be drawn ({type(error).__name__}: {' '.join(str(error).split())}).",
            file=sys.stderr,
        )
        return False
    return True


@plain_text()
def grid(rows: list[tuple[str, list[tuple[str, Image.Image]]]], path: Path, cell: float = 1.25) -> None:
    """Labelled rows of captioned pictures, as PNG. rows: (label, [(caption, picture), ...]), not all of one length."""
    columns = max(len(pictures) for _, pictures in rows)
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(cell * columns + 1.1, (cell + 0.32) * len(rows)),
        squeeze=False,
        layout="constrained",
        subplot_kw={"xticks": [], "yticks": []},  # else each is measured, though none is drawn: twice the time
    )
    for line, (label, pictures) in zip(axes, rows):
        for axis in line:
            axis.set_axis_off()
        for axis, (caption, picture) in zip(line, pictures):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(_folded(caption, int(17.6 * cell)), fontsize=7, pad=2, y=1.0)
        line[0].text(-0.12, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=160, bbox_inches="tight")
    plt.close(figure)


def _folded(caption: str, width: int, most: int = 8) -> str:
    """A caption in lines about as wide as its picture; the end of a long one is left out, for pictures to stay to be seen."""
    words = (word if len(word) <= 3 * width else f"{word[: 3 * width]}…" for word in caption.split(" "))
    return textwrap.fill(" ".join(words), width, break_long_words=False, max_lines=most, placeholder=" …")


def tiled(rows: list[list[Image.Image]]) -> Image.Image:
    """Pictures of one size side by side, at their own size; white where a row is shorter than others."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * width, y * height))
    return sheet


def contact_sheet(rows: list[list[Image.Image]], path: Path) -> None:
    """`tiled` pictures as PNG, a prompt a row and an operating point a column."""
    sheet = tiled(rows)
    with whole(path) as part:
        sheet.save(part, "PNG", optimize=True)


def cells(path: Path, rows: int, columns: int, row: int = 0) -> list[Image.Image]:
    """One row of a contact sheet, as pictures again."""
    with Image.open(path) as opened:
        sheet = opened.convert("RGB")
    w, h = sheet.width // columns, sheet.height // rows
    return [sheet.crop((x * w, row * h, (x + 1) * w, (row + 1) * h)) for x in range(columns)]


def heat_overlay(picture: Image.Image, heat) -> Image.Image:
    """The picture in grey under a map [side, side] (a tensor), coloured as cividis: from dark blue (none) to yellow (the map's own maximum)."""
    strength = (heat / heat.max()).numpy()
    color = Image.fromarray((matplotlib.colormaps["cividis"](strength)[..., :3] * 255).astype(np.uint8))
    color = color.resize(picture.size, Image.Resampling.BILINEAR)
    return Image.blend(picture.convert("L").convert("RGB"), color, 0.65)


def attention_rows(looked: list, most: int = 6) -> list[tuple[str, list[tuple[str, Image.Image]]]]:
    """Rows for `grid`, of attention.Looked: the drawn picture, then its words' overlays, the longest (most telling) words kept."""
    rows = []
    for one in looked:
        kept = sorted(sorted(one.maps, key=len, reverse=True)[:most], key=list(one.maps).index)
        overlays = [(word, heat_overlay(one.picture, one.maps[word])) for word in kept]
        rows.append(("", [(one.prompt, one.picture), *overlays]))
    return rows

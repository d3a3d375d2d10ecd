"""Sixty real scenes, unchosen: python scripts/figure_scenes.py     # docs/scenes.png"""

from PIL import Image

from perfusion.config import ROOT
from perfusion.emojiland.scenes import SIDE, scene

SEED, COLUMNS, ROWS, GAP = 1, 12, 5, 2


def main() -> None:
    step = SIDE + GAP
    sheet = Image.new("RGB", (COLUMNS * step - GAP, ROWS * step - GAP), "white")
    for index in range(COLUMNS * ROWS):
        sheet.paste(scene(SEED, index).image, (index % COLUMNS * step, index // COLUMNS * step))
    sheet = sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST)
    sheet.save(ROOT / "docs/scenes.png", optimize=True)
    print(f"written: {ROOT / 'docs/scenes.png'}")


if __name__ == "__main__":
    main()

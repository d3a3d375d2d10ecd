"""Render the open emoji sets into perfusion/assets/emojiland/sprites.png and others.webp, once.

    npm pack @iconify-json/{noto,noto-v1,twemoji,fluent-emoji,fluent-emoji-flat,emojione}   # then unpack each into FOLDER/<name of its tgz>
    python scripts/render_sprites.py FOLDER

One sheet: rows are classes and accessories, columns are artists, an empty cell where an artist drew none
or in another pose. The licence
of each set is written beside it (ATTRIBUTION.md). The other sheet is of everything else that most artists drew, and of which no
held-out drawing is a near copy. Needs the `world` extra (resvg-py).
"""

import io
import json
import math
import re
import sys
from collections import Counter
from pathlib import Path

import resvg_py
from PIL import Image, ImageOps

from perfusion.emojiland.sprites import SMALL
from perfusion.emojiland.vocabulary import ACCESSORIES, ARTISTS, CLASSES, HELD_OUT, LEFT_OUT, MIRRORED

CELL = 96  # pixels: 1.5 x the largest a sprite is ever drawn
ASSETS = Path(__file__).parents[1] / "perfusion/assets/emojiland"
ACROSS = 64  # other drawings beside one another
# Signs, letters and the many skins and sexes of one drawing.
NOT_DRAWN = re.compile(
    r"skin|^flag|keycap|o-clock|thirty|button|^(man|woman|men|women|people|couple|kiss|family|person|mx|regional|input|letter"
    r"|squared|japanese|tag|component|emoji-modifier|negative|circled|number|digit|symbol)\b|arrow|-sign$|-mark$|emoji-|selector"
    r"|-hair|copyright|registered|information|wheelchair|zodiac|male|female|quarter|hand|finger|thumb|fist|^[0-9]"
    r"|-(dark|light|medium|tone\d)\b"
)
# Words in the names of what may look like a held-out drawing.
NEAR = {*HELD_OUT, "bear", "wrapped", "present", "tv", "shortcake"}


def render(icons: dict, name: str) -> Image.Image | None:
    """One icon as an RGBA picture cropped to what is drawn, centred in a CELL x CELL square."""
    icon = icons["icons"].get(name) or icons["icons"].get(icons.get("aliases", {}).get(name, {}).get("parent"))
    if icon is None:
        return None
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">'
    png = resvg_py.svg_to_bytes(svg_string=f"{svg}{icon['body']}</svg>", width=4 * CELL, height=4 * CELL)
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    drawn = drawn.crop(drawn.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox())
    drawn.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(drawn, ((CELL - drawn.width) // 2, (CELL - drawn.height) // 2))
    return cell


def other_sheet(of_artist: dict[str, dict]) -> Image.Image:
    """Every drawing that four artists or more drew, of none of our classes, ACROSS in a row."""
    count = Counter(name for icons in of_artist.values() for name in icons["icons"])
    ours = {*CLASSES.values(), *ACCESSORIES.values()}
    fit = lambda name: not (NOT_DRAWN.search(name) or name in ours or NEAR & set(name.split("-")))
    chosen = sorted(name for name, artists in count.items() if artists >= 4 and fit(name))
    drawn = [
        cell
        for name in chosen
        for icons in of_artist.values()
        if name in icons["icons"] and (cell := render(icons, name))
    ]
    sheet = Image.new("RGBA", (SMALL * ACROSS, SMALL * math.ceil(len(drawn) / ACROSS)))
    for number, cell in enumerate(drawn):
        cell = cell.crop(cell.getbbox())
        cell.thumbnail((SMALL, SMALL), Image.Resampling.LANCZOS)
        x, y = SMALL * (number % ACROSS), SMALL * (number // ACROSS)
        sheet.paste(cell, (x + (SMALL - cell.width) // 2, y + (SMALL - cell.height) // 2))
    return sheet


def main(folder: Path) -> None:
    names, of_artist = CLASSES | ACCESSORIES, {}
    sheet = Image.new("RGBA", (CELL * len(ARTISTS), CELL * len(names)))
    lines = [
        "# Where the drawings come from",
        "",
        "Rendered by `scripts/render_sprites.py`; unchanged but for size, and mirrored: "
        + ", ".join(f"{artist}'s {word}" for word, artist in sorted(MIRRORED))
        + ".",
        "",
    ]
    lines += ["| set | version | author | licence |", "|---|---|---|---|"]
    for column, artist in enumerate(ARTISTS):
        (package,) = folder.glob(f"*{artist}-[0-9]*/package.json")
        icons = json.loads((package.parent / "icons.json").read_text())
        info = json.loads((package.parent / "info.json").read_text())
        for row, (word, name) in enumerate(names.items()):
            if (word, artist) in LEFT_OUT:
                continue
            if cell := render(icons, name):
                cell = ImageOps.mirror(cell) if (word, artist) in MIRRORED else cell
                sheet.paste(cell, (CELL * column, CELL * row))
        author, licence = info["author"], info["license"]
        version = json.loads(package.read_text())["version"]
        lines.append(
            f"| {info['name']} (`@iconify-json/{artist}`) | {version} | [{author['name']}]({author['url']}) "
            f"| [{licence['title']}]({licence.get('url', 'https://spdx.org/licenses/' + licence['spdx'])}) |"
        )
        of_artist[artist] = icons
    sheet.save(ASSETS / "sprites.png", optimize=True)
    other_sheet(of_artist).save(ASSETS / "others.webp", quality=75, alpha_quality=60, method=6)
    (ASSETS / "ATTRIBUTION.md").write_text("\n".join(lines) + "\n")
    print(f"{ASSETS}: sprites.png ({len(names)} rows x {len(ARTISTS)} artists) and others.webp")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

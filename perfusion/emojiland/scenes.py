"""Scenes: facts drawn from a seed, then a picture, the object's mask and a caption that all say the same."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from perfusion.emojiland.mutants import mutant
from perfusion.emojiland.places import background
from perfusion.emojiland.sprites import artists_of, other_drawings, parts, sprite, sprites, tinted
from perfusion.emojiland.vocabulary import ACCESSORIES, ARTISTS, ARTS, CLASSES, COLORS, EYES, PLACES

SIDE = 64  # pixels
TEMPLATES = (
    "a photo of {a}", "a photo of {a}", "a good photo of {a}", "the photo of {a}", "a good photo of the {x}",
    "image of {a}", "image of the {x}", "a photograph of {x}", "{a} shown in a photo", "a photo of {x}",
    "a picture of {a}", "{a}", "the {x}",
)  # fmt: skip

STYLED = 0.3  # share of the objects whose artist the caption names
PENCIL_PLACES = ("night", "brick", "water", "city")  # the others have no lines to be known by


@dataclass(frozen=True)
class Facts:
    """What a scene shows; None stands for: no colour word, a plain background, nothing worn, alone, a photo."""

    object: str
    artist: str  # or the number of a drawing of something else (sprites.other_drawings)
    color: str | None = None
    place: str | None = None
    accessory: str | None = None
    second: str | None = None
    second_artist: str | None = None
    art: str | None = None
    trim: str | None = None  # the colour of its second part, `color` being that of its body
    details: str | None = None  # and of its third
    mutant: int | None = None  # the seed by which its drawing was changed into one that nobody drew
    second_mutant: int | None = None


@dataclass(frozen=True)
class Scene:
    image: Image.Image  # RGB, SIDE x SIDE
    mask: Image.Image  # L, SIDE x SIDE: the visible share of the main object at each pixel
    second: Image.Image  # the same of the second object; empty where there is none
    caption: str
    facts: Facts


def _pick(rng: np.random.Generator, options) -> str:
    """What rng.choice gives for a sequence, without the array it makes of it, which takes longer than the draw."""
    return options[rng.integers(len(options))]


def _maybe(rng: np.random.Generator, share: float, options) -> str | None:
    return _pick(rng, list(options)) if rng.random() < share else None


def sample_facts(rng: np.random.Generator, held_out: bool = False) -> Facts:
    """Facts of one scene. `held_out=False` never names a held-out drawing (what draws is trained on these)."""
    name = _pick(rng, list(CLASSES))
    art = _maybe(rng, 0.16, ARTS)
    place = _maybe(rng, 0.62, PENCIL_PLACES if art == "pencil" else PLACES)
    facts = Facts(name, _pick(rng, artists_of(name, held_out)), place=place, art=art)
    if facts.art != "pixel" and rng.random() < 0.27:  # two small things in 16 x 16 blocks are unreadable
        second = _pick(rng, [c for c in CLASSES if c != name])
        return replace(facts, second=second, second_artist=_pick(rng, artists_of(second, held_out)))
    facts = replace(facts, accessory=_maybe(rng, 0.33, ACCESSORIES))
    if facts.art in ("pencil", "gray"):
        return facts
    # Parts take other colours, and captions say so: a drawing that nobody has seen is then near to ones that can be said.
    has = parts(name, facts.artist)
    trim = _maybe(rng, 0.35, COLORS) if (has == 2).any() else None
    details = _maybe(rng, 0.25, COLORS) if (has == 3).any() else None
    return replace(facts, color=_maybe(rng, 0.4, COLORS), trim=trim, details=details)


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _named(noun: str, artist: str | None, styled: float, rng: np.random.Generator) -> str:
    """The noun, in a share `styled` of the cases with its artist, as a style."""
    return f"{noun} in {ARTISTS[artist]} style" if artist in ARTISTS and rng.random() < styled else noun


def describe(facts: Facts, rng: np.random.Generator, styled: float = STYLED) -> str:
    """A caption of the facts; its wording varies with `rng`. A place it does not name is a plain background.

    It says the body's colour alone: an encoding that is the same in every context (a gate needs that) would not tell whose a
    second colour is. The UNet learns colours of parts by names (scripts/pretrain_unet.py).

    styled: the share of objects whose artist is named ("a teddy in noto style").
    """
    noun = f"{facts.color} {facts.object}" if facts.color else facts.object
    noun = _named(noun, facts.artist, styled, rng)
    if facts.art:
        opening = f"{ARTS[facts.art]} {article(noun)}"
    else:
        opening = _pick(rng, TEMPLATES).format(a=article(noun), x=noun)
    details = []
    if facts.accessory:
        details.append("wearing sunglasses" if facts.accessory == "sunglasses" else f"wearing a {facts.accessory}")
    if facts.second:
        joint = _pick(rng, ("next to", "beside", "and"))
        details.append(f"{joint} {article(_named(facts.second, facts.second_artist, styled, rng))}")
    if facts.place:
        details.append(PLACES[facts.place])
    return " ".join([opening, *details])


def _sized(drawing: Image.Image, limit: float) -> Image.Image:
    """Scaled so that its longer side is `limit` pixels."""
    scale = limit / max(drawing.size)
    size = (max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale)))
    return drawing.resize(size, Image.Resampling.LANCZOS)


def _jittered(drawing: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness and hue moved a little. Nothing is mirrored: a drawing has one orientation."""
    rgba = np.asarray(drawing).astype(np.float32)
    rgba[..., :3] = np.clip(rgba[..., :3] * rng.normal(1, 0.035, 3) + rng.normal(0, 3), 0, 255)
    return Image.fromarray(rgba.astype(np.uint8), "RGBA")


def _dressed(
    name: str, wearer: str, body: Image.Image, x: int, y: int, rng: np.random.Generator
) -> tuple[Image.Image, int, int]:
    """The accessory for a body at (x, y) and where it goes: hats sit on top, sunglasses before the eyes."""
    worn = sprites()[name, _pick(rng, artists_of(name, True))]
    if name == "sunglasses":
        worn = _sized(worn, 0.72 * body.width)
        return (
            worn,
            x + (body.width - worn.width) // 2,
            y + round(EYES.get(wearer, 0.45) * body.height - worn.height / 2),
        )
    worn = _sized(worn, min(0.62 * body.width, 22))
    depth = round(0.14 * body.height) + 1
    # Where the drawing's top is: a guitar's is at its neck.
    top = np.asarray(body.getchannel("A"), np.float64)[:depth].sum(0)
    middle = (top * np.arange(body.width)).sum() / max(top.sum(), 1) + 0.5
    left = np.clip(x + middle - worn.width / 2, 0, SIDE - worn.width)
    return worn, int(left), max(0, y - worn.height + depth)


def _stylised(picture: Image.Image, art: str) -> Image.Image:
    if art == "gray":
        return ImageOps.grayscale(picture).convert("RGB")
    if art == "pixel":
        small = picture.resize((SIDE // 4, SIDE // 4), Image.Resampling.BOX)
        return ImageOps.posterize(small, 4).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    gray = np.asarray(ImageOps.grayscale(picture).filter(ImageFilter.GaussianBlur(0.5)), np.float32)
    padded = np.pad(gray, 1, mode="edge")
    dx, dy = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    ink = np.clip(np.hypot(dx, dy) * 1.6 - 10, 0, 215)
    paper = np.clip(246 - ink - 0.10 * (255 - gray), 0, 255)[..., None] * np.float32([1, 0.99, 0.96])
    return Image.fromarray(paper.astype(np.uint8), "RGB")


def drawing_of(name: str, artist: str, colors: tuple = (None, None, None), seed: int | None = None) -> Image.Image:
    """RGBA, in other colours where some are given; by a mutant's seed, one that nobody drew."""
    if seed is not None:
        return mutant(name, artist, colors, seed)
    return tinted(name, artist, *colors) if any(colors) else sprite(name, artist)


def draw(facts: Facts, rng: np.random.Generator) -> tuple[Image.Image, Image.Image, Image.Image]:
    """The picture of the facts, the main object's mask and the second one's; position, size and tint from `rng`."""
    picture = background(facts.place, rng, SIDE).convert("RGBA")
    if facts.art == "pencil":  # lines of the place stay fainter than those of the objects
        picture = Image.blend(picture, Image.new("RGBA", picture.size, "white"), 0.6)
    cover = Image.new("RGBA", picture.size)  # what stands in front of the background, the main object last
    drawings = [drawing_of(facts.object, facts.artist, (facts.color, facts.trim, facts.details), facts.mutant)]
    if facts.second:
        drawings.insert(0, drawing_of(facts.second, facts.second_artist, seed=facts.second_mutant))
    masks = []
    left = int(rng.integers(2))  # which side the main object takes when there are two
    for position, drawing in enumerate(drawings):
        limit = rng.uniform(28, 31) if facts.second else rng.uniform(42, 52) + 4 * (facts.art == "pixel")
        if facts.accessory in ("hat", "crown"):
            limit = min(limit, 44)
        body = _sized(_jittered(drawing, rng), limit)
        middle = SIDE / 2 + rng.uniform(-5, 5)
        if facts.second:
            middle = SIDE * (0.26 if (position == 0) == bool(left) else 0.74) + rng.uniform(-1, 1)
        x = int(np.clip(middle - body.width / 2, 0, SIDE - body.width))
        floor = SIDE - rng.uniform(2, 7)
        y = int(np.clip(floor - body.height, 16 if facts.accessory in ("hat", "crown") else 0, SIDE - body.height))
        cover.alpha_composite(body, (x, y))
        masks.append(Image.new("L", picture.size))
        masks[-1].paste(body.getchannel("A"), (x, y))
    mask = masks[-1]
    second = ImageChops.subtract(masks[0], mask)
    if facts.accessory:
        worn, wx, wy = _dressed(facts.accessory, facts.object, body, x, y, rng)
        cover.alpha_composite(worn, (max(0, wx), max(0, wy)))
    picture.alpha_composite(cover)
    picture = picture.convert("RGB")
    return (_stylised(picture, facts.art) if facts.art else picture), mask, second


def scene(seed: int, index: int, held_out: bool = False, mutants: float = 0.0, strangers: float = 0.0) -> Scene:
    """Scene `index` of the stream `seed`: the same pixels, mask, caption and facts every time.

    mutants: the share of scenes whose object is a drawing that nobody drew; the others are the same at any share.
    strangers: the share whose objects are drawings of other things, whatever the caption calls them.
    """
    rng, apart = np.random.default_rng([seed, index]), np.random.default_rng([seed, index, 1])
    facts = sample_facts(rng, held_out)
    if apart.random() < mutants:
        seeds = [int(seed) for seed in apart.integers(2**31, size=2)]
        facts = replace(facts, mutant=seeds[0], second_mutant=seeds[1] if facts.second else None)
    if apart.random() < strangers:
        artists = [str(artist) for artist in apart.integers(len(other_drawings()), size=2)]
        facts = replace(facts, artist=artists[0], second_artist=artists[1] if facts.second else None)
    caption = describe(facts, rng)
    image, mask, second = draw(facts, rng)
    return Scene(image, mask, second, caption, facts)

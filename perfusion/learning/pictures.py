"""The pictures of a folder: which files are used, which are not and why, each read as 8-bit RGB or RGBA.

Whatever Pillow reads as a still picture is read, HEIC where pillow-heif is installed. A picture of another depth is
scaled, one of a phone's 200 megapixels shrunk, and texts and colour profiles inside PNGs are left unread.
"""

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from perfusion.errors import UserError, told

log = logging.getLogger(__name__)

# Named one by one: of those left out, some start other programs (EPS), decode no pixels (MPEG), or take any bytes for one (PCD).
FORMATS = {
    "PNG": (".png", ".apng"), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "MPO": (".mpo",), "WEBP": (".webp",),
    "GIF": (".gif",), "BMP": (".bmp",), "DIB": (".dib",), "TIFF": (".tif", ".tiff"), "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx"), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"), "TGA": (".tga",),
    "QOI": (".qoi",), "ICO": (".ico",), "PSD": (".psd",), "HEIF": (".heic", ".heif", ".hif"),
}  # fmt: skip
KINDS = tuple(kind for kinds in FORMATS.values() for kind in kinds)
SIDE = 4096  # a longer picture is shrunk to it: training looks at no more than 1024 pixels a side
MOST = 2**28  # pixels that are decoded
FAINT = 16  # between its darkest and its lightest: 12 bits in 16 come out so
LEAST = 8  # pixels a side: of less nothing is left in the latents
KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # of a PNG, and eXIf: all else is text, profiles and hints
TURN = Image.Transpose
TURNS = {  # by the EXIF tag "orientation"
    2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE, 6: TURN.ROTATE_270,
    7: TURN.TRANSVERSE, 8: TURN.ROTATE_90,
}  # fmt: skip
ACROSS = (TURN.TRANSPOSE, TURN.TRANSVERSE, TURN.ROTATE_90, TURN.ROTATE_270)
XMP = b"XML:com.adobe.xmp\0"  # a text that may say which way is up


def is_mask(path: Path) -> bool:
    """Whether a file is named as a mask: NAME.mask.png, in any case and of any kind."""
    return path.suffix.lower() in KINDS and path.stem.lower().endswith(".mask")


def picture_paths(folder: str | Path | Sequence[str], tell: bool = True) -> list[Path]:
    """The pictures in a folder, by name, masks left out; or the one, or those, that are named.

    tell: log which files of a folder are not used, and why. Raises UserError where there are none.
    """
    if not isinstance(folder, (str, Path)) or Path(folder).is_file():
        return [Path(path) for path in ([folder] if isinstance(folder, (str, Path)) else folder)]
    folder = Path(folder)
    pictures, left_out = [], {}
    files = sorted(folder.iterdir())
    for path in files:
        reason = _unusable(path)
        if reason is None and is_mask(path):
            stems = {other.stem.lower() for other in files if not is_mask(other)}
            if path.stem.lower().removesuffix(".mask") not in stems:
                left_out[path.name] = "a mask whose picture is not here"
        elif reason is None:
            pictures.append(path)
        elif reason:
            left_out[path.name] = reason
    listed = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
    if not pictures:
        raise UserError(
            f"concept.images={folder} has no pictures{f' ({listed})' if listed else ''}; put 1-7 photos of the concept "
            f"there, as {', '.join(KINDS)}."
        )
    if left_out and tell:
        log.warning(f"pictures in {told(folder)}: {', '.join(p.name for p in pictures)}; not used: {listed}")
    return pictures


def _unusable(path: Path) -> str | None:
    """Why a file is no picture; "" where nobody would take it for one, None for a picture or a mask."""
    kind = path.suffix.lower()
    if path.name.startswith("."):
        return "hidden, as the notes are that some systems write beside files" if kind in KINDS else ""
    if path.is_symlink() and not path.exists():
        return "a link to nothing"
    if path.is_dir():
        return "a folder" if kind in KINDS else ""
    if not path.is_file():
        return "not a regular file"
    if kind not in KINDS:
        return "" if path.name == "concept.yaml" else "not a picture of a kind that is read"
    if not _readable(kind):
        return f"{kind[1:].upper()}, which this installation does not read" + _needs(kind)
    return None


def _readable(kind: str) -> bool:
    return any(kind in FORMATS[name] for name in _formats())


def _needs(kind: str) -> str:
    return " (pip install pillow-heif)" if kind in FORMATS["HEIF"] else ""


def _formats(path: Path | None = None) -> list[str]:
    """The formats of FORMATS that are read here, whatever the file's suffix says; TGA, which has no signature, by its own."""
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    ours = path is None or path.suffix.lower() in FORMATS["TGA"]
    return [name for name in FORMATS if name in Image.OPEN and (ours or name != "TGA")]


def decoded(path: Path, most: int = MOST) -> tuple[Image.Image, tuple[int, int]]:
    """A file's first frame, upright by its EXIF tag, as 8-bit RGB or RGBA, no side longer than SIDE; and its own size.

    most: pixels; a larger one is not decoded. Raises ValueError, with the reason, for what cannot be read.
    """
    if not path.is_file():  # of a pipe no end might come
        raise ValueError("it is no regular file")
    data = path.read_bytes()
    try:
        data = _without_texts(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of corrupt EXIF, of palettes: nothing a user can do about
            with _unlimited(), Image.open(io.BytesIO(data), formats=_formats(path)) as opened:
                width, height = opened.size
                if width * height > most:
                    raise ValueError(f"it is {width} x {height} pixels, more than {most:,}")
                opened.draft(None, (SIDE, SIDE))  # JPEG: decode an eighth, a quarter or a half of the pixels
                opened.load()
                turn = TURNS.get(_orientation(opened))
                picture = _eight_bits(opened)
    except ValueError:
        raise
    except UnidentifiedImageError as error:  # which names the buffer
        raise ValueError("it is no picture of a kind that is read, or damaged at its beginning") from error
    except Exception as error:  # a damaged file raises whatever its decoder meets: OSError, struct.error, EOFError, ...
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    if turn is None:
        return picture, (width, height)
    return picture.transpose(turn), (height, width) if turn in ACROSS else (width, height)


@contextmanager
def _unlimited():
    """Pillow's own limit of pixels off for a with-block: `decoded` has its own, and says it in a sentence."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _without_texts(data: bytes) -> bytes:
    """A PNG's bytes without what is no picture (KEPT): generators write their prompts there, of any length.

    Raises ValueError where a part that makes the picture is damaged; Pillow does not look at the sums of all of them.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        end = at + 12 + length
        sound = zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end]) if end <= len(data) else False
        if kind in KEPT and not sound:
            raise ValueError(f"its part {kind.decode()} is {'damaged' if end <= len(data) else 'cut short'}")
        if sound and (
            kind in (*KEPT, b"eXIf") or (kind == b"iTXt" and length < 2**20 and data.startswith(XMP, at + 8))
        ):
            parts.append(data[at:end])
        at = end
        if kind == b"IEND":
            return b"".join(parts)
    raise ValueError("it is cut short")


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block: the picture is as whole as it was
        return 1


def _eight_bits(picture: Image.Image) -> Image.Image:
    """RGB, or RGBA where something is transparent to a degree. Pillow itself would cut deeper grey off at 255."""
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture, np.float64)
        low, high = values.min(), values.max()
        if picture.mode.startswith("I;16"):
            full = 65535
        else:  # a TIFF of 32 bits says nothing of its range: 1, 255 and 65535 are what programs write
            full = next((f for f in (1, 255, 65535) if high <= f and (f > 1 or picture.mode == "F")), None)
        if full is None or not (np.isfinite(values).all() and low >= 0):
            raise ValueError(f"its grey values go from {low:g} to {high:g}; 8 or 16 bits, or 0 to 1, are read")
        return Image.fromarray((values * (255 / full)).round().astype(np.uint8), "L").convert("RGB")
    if picture.mode == "LAB":  # Pillow converts it by a colour profile alone
        raise ValueError("its colours are Lab; save it as RGB")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def read_picture(path: Path) -> tuple[Image.Image, tuple[int, int]]:
    """A picture as `decoded` has it, and the size of its file. Raises UserError where it cannot be read or shows nothing."""
    try:
        picture, size = decoded(path)
    except (ValueError, OSError) as error:
        raise UserError(
            f"picture {path} cannot be read ({error}); replace it by a whole file of at most {MOST:,} pixels, or remove it."
        ) from error
    if min(size) < LEAST:
        raise UserError(
            f"picture {path} is {size[0]} x {size[1]} pixels, so nothing can be learned from it; give one of at least "
            f"{LEAST} a side, better of the model's resolution, or remove it."
        )
    if picture.mode == "RGBA" and not picture.getchannel("A").getbbox():
        raise UserError(
            f"picture {path} is transparent throughout, so nothing can be learned from it; replace or remove it."
        )
    if all(low == high for low, high in on_white(picture).getextrema()):
        color = on_white(picture).getpixel((0, 0))
        raise UserError(
            f"picture {path} has one colour throughout ({'black' if not any(color) else f'RGB {color}'}), so nothing can "
            "be learned from it; replace or remove it."
        )
    if max(high - low for low, high in on_white(picture).getextrema()) <= FAINT:
        raise UserError(
            f"picture {path} shows next to nothing: its colours differ by no more than {FAINT} of 255, as where a file of 16 bits "
            "holds 12; save it with the full range, or remove it."
        )
    return picture, size


def on_white(picture: Image.Image) -> Image.Image:
    """The picture as RGB; what is transparent becomes white, what is half so lighter."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def real_pictures(folder: str | Path) -> list[Image.Image]:
    """A concept's pictures as scores see them: RGB, what is transparent white, whole."""
    return [on_white(read_picture(path)[0]) for path in picture_paths(folder)]

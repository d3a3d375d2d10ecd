"""Every kind of file that people put beside their pictures, made here: read, left out with a reason, or one sentence."""

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers_pictures import data, photo, save_box_mask
from PIL import Image, ImageDraw, PngImagePlugin

from perfusion.errors import UserError
from perfusion.learning.masks import mask_path, read_mask
from perfusion.learning.pictures import FORMATS, SIDE, decoded, picture_paths, read_picture, real_pictures

SIZE = (40, 24)


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A black and white PNG of any size out of few bytes, with more chunks before its pixels."""
    row = b"\0" + b"\xf0" * (width // 8)
    packer = zlib.compressobj()
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def first(folder: Path) -> Image.Image:
    return real_pictures(folder)[0]


@pytest.mark.parametrize(
    "kind",
    ["png", "jpg", "jpeg", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "jp2", "ppm", "tga", "qoi", "ico"],
)
def test_what_pillow_reads_is_read(tmp_path, kind, caplog):
    if kind == "avif" and "AVIF" not in Image.OPEN:
        pytest.skip("this Pillow has no AVIF")
    photo().save(tmp_path / f"a.{kind.upper()}")
    assert picture_paths(tmp_path) == [tmp_path / f"a.{kind.upper()}"] and not caplog.messages
    picture = first(tmp_path)
    assert picture.mode == "RGB"
    if kind == "ico":  # squeezed by its writer
        return
    assert picture.size == SIZE
    difference = np.abs(np.asarray(picture, int) - np.asarray(photo(), int))
    assert difference.mean() < 8  # the lossy ones


def test_every_mode_is_read(tmp_path):
    kinds = {"CMYK": "tif", "YCbCr": "jpg"}
    for i, mode in enumerate(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"]):
        photo().convert(mode).save(tmp_path / f"{i}.{kinds.get(mode, 'png')}")
    grey = np.asarray(photo().convert("L"))
    for picture in real_pictures(tmp_path):
        assert picture.mode == "RGB" and abs(np.asarray(picture.convert("L")).mean() - grey.mean()) < 5


@pytest.mark.parametrize(
    "name, dtype, top",
    [("a.png", np.uint16, 65535), ("a.tif", np.uint16, 65535), ("b.tif", np.int32, 255), ("c.tif", np.int32, 65535),
     ("d.tif", np.float32, 1), ("e.tif", np.float32, 255)],
)  # fmt: skip
def test_deep_grey_is_scaled(tmp_path, name, dtype, top):
    """Pillow's own conversion makes all of it white."""
    grey = np.linspace(0, 1, 40 * 24).reshape(24, 40)
    Image.fromarray((grey * top).astype(dtype)).save(tmp_path / name)
    assert np.abs(np.asarray(first(tmp_path))[..., 1] / 255 - grey).max() < 0.01


@pytest.mark.parametrize("values", [np.full((9, 9), np.nan, np.float32), np.eye(9, dtype=np.int32) * 10**6])
def test_grey_of_no_known_range_is_one_sentence(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="a.tif cannot be read .its grey values go from"):
        first(tmp_path)


@pytest.mark.slow
def test_very_large_pictures_are_shrunk_or_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(16384, 12288))  # 201 megapixels
    picture, size = read_picture(tmp_path / "a.png")
    assert size == (16384, 12288) and picture.size == (SIDE, SIDE * 3 // 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo((9000, 6000)).save(tmp_path / "a.jpg", exif=exif)
    picture, size = read_picture(tmp_path / "a.jpg")
    assert size == (6000, 9000) and picture.size == (2731, SIDE)
    (tmp_path / "b.png").write_bytes(png(2**15, 2**14))
    with pytest.raises(UserError, match="b.png cannot be read .it is 32768 x 16384 pixels, more than 268,435,456"):
        read_picture(tmp_path / "b.png")


def test_a_mask_of_a_shrunk_picture(tmp_path):
    """A person's has the size of the file; what training sees has the size of the picture as read."""
    photo((8192, 4096), (0, 0, 800, 800)).save(tmp_path / "a.png")
    save_box_mask(tmp_path / "a.png", (8192, 4096), (0, 0, 800, 800))
    d = data(tmp_path)
    assert d.pictures[0].size == d.masks[0].size == (2048, 2048) and d.masks[0].getbbox() == (0, 0, 400, 400)


def test_texts_inside_a_png_are_not_read(tmp_path):
    bomb = zlib.compress(bytes(2**26))
    texts = [
        chunk(b"zTXt", b"prompt\0\0" + bomb),
        chunk(b"tEXt", b"prompt\0" + b"a" * 2**21),
        chunk(b"iCCP", b"x\0\0" + bomb),
    ]
    texts += [chunk(b"iTXt", b"parameters\0\1\0\0\0" + bomb)]
    (tmp_path / "a.png").write_bytes(png(64, 64, *texts))
    assert first(tmp_path).size == (64, 64)


def test_corrupt_exif_is_passed_over(tmp_path):
    for i, exif in enumerate(
        [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
    ):
        photo().save(tmp_path / f"{i}.jpg", exif=exif)
        photo().save(tmp_path / f"{i}.webp", exif=exif)
        (tmp_path / f"{i}.png").write_bytes(png(64, 64, chunk(b"eXIf", exif[6:])))
    assert sorted(p.size for p in real_pictures(tmp_path)) == [SIZE] * 6 + [(64, 64)] * 3


def test_upright_by_an_xmp_text(tmp_path):
    note = PngImagePlugin.PngInfo()
    note.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6"/>')
    photo().save(tmp_path / "a.png", pnginfo=note)
    assert first(tmp_path).size == (24, 40)


def test_files_that_are_not_used_are_named_with_the_reason(tmp_path, caplog):
    photo().save(tmp_path / "a.jpg")
    (tmp_path / "._a.jpg").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "concept.yaml").write_text("super_category: teddy\n")
    (tmp_path / "x.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "film.mov").write_bytes(b"film")
    photo().convert("L").save(tmp_path / "b.mask.png")
    names = [p.name for p in picture_paths(tmp_path)]
    (said,) = caplog.messages
    assert names == ["a.jpg"] and ": a.jpg; not used: " in said and "\n" not in said
    for part in ("._a.jpg: hidden", "x.png: a folder", "gone.png: a link to nothing", "pipe.png: not a regular file",
                 "film.mov: not a picture", "b.mask.png: a mask whose picture is not here"):  # fmt: skip
        assert part in said
    assert "DS_Store" not in said and "concept.yaml" not in said
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UserError, match="has no pictures .*x.png: a folder"):
        picture_paths(tmp_path)


def test_heic_is_named_where_it_is_not_read(tmp_path, caplog, monkeypatch):
    photo().save(tmp_path / "a.png")
    (tmp_path / "b.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    monkeypatch.setattr("perfusion.learning.pictures.find_spec", lambda name: None)
    if "HEIF" in Image.OPEN:
        monkeypatch.delitem(Image.OPEN, "HEIF")
    assert picture_paths(tmp_path) == [tmp_path / "a.png"]
    assert "b.HEIC: HEIC, which this installation does not read (pip install pillow-heif)" in caplog.text


def test_heic(tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    photo().save(tmp_path / "a.heic")
    assert first(tmp_path).size == SIZE


@pytest.mark.parametrize("size", [(1, 1), (2, 500), (500, 7)])
def test_too_small(tmp_path, size):
    photo(size, (0, 0, 1, 1)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=rf"a.png is {size[0]} x {size[1]} pixels, so nothing can be learned"):
        first(tmp_path)


@pytest.mark.parametrize("color, said", [(0, "black"), ((255, 255, 255), "255, 255, 255"), ((9, 8, 7, 90), "RGB")])
def test_one_colour_throughout(tmp_path, color, said):
    Image.new("RGBA" if color and len(color) == 4 else "RGB", SIZE, color).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=f"a.png has one colour throughout .*{said}.*nothing can be learned"):
        first(tmp_path)


def test_next_to_black(tmp_path):
    twelve_bits = np.tile(np.linspace(0, 4095, 40), (24, 1)).astype(np.uint16)
    Image.fromarray(twelve_bits).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="a.tif shows next to nothing: its colours differ by no more than 16 of 255"):
        first(tmp_path)
    Image.fromarray(2 * twelve_bits).save(tmp_path / "a.tif")
    assert first(tmp_path).size == SIZE


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".tif", ".bmp", ".avif", ".jp2"])
def test_damaged_files_are_one_sentence(tmp_path, suffix):
    photo((64, 64)).save(tmp_path / f"whole{suffix}")
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    (tmp_path / f"whole{suffix}").unlink()
    broken = tmp_path / f"a{suffix}"
    for content in (
        b"",
        whole[:9],
        whole[: len(whole) // 3],
        b"\x89PNG\r\n\x1a\n" + b"\xff" * 30,
        b"%!PS-Adobe-3.0 EPSF",
    ):
        broken.write_bytes(content)
        with pytest.raises(UserError, match=f"a{suffix} cannot be read"):
            first(tmp_path)


# -- masks ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["A.MASK.PNG", "a.mask.jpg", "a.Mask.webp", "a.mask.bmp"])
def test_masks_of_any_name(tmp_path, name):
    photo().save(tmp_path / "a.png")
    mask = Image.new("L", SIZE)
    ImageDraw.Draw(mask).rectangle((28, 6, 37, 15), 255)
    mask.save(tmp_path / name)
    assert picture_paths(tmp_path) == [tmp_path / "a.png"]
    seen = np.asarray(data(tmp_path).masks[0]) > 128
    assert seen.sum() == pytest.approx(100, abs=12)


def test_two_masks_of_one_picture(tmp_path):
    photo().save(tmp_path / "a.png")
    save_box_mask(tmp_path / "a.png", SIZE, (0, 0, 9, 9))
    photo().save(tmp_path / "a.mask.jpg")
    with pytest.raises(UserError, match="are both masks of a.png; remove one"):
        data(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"not a mask"])
def test_a_damaged_mask_is_one_sentence(tmp_path, content):
    photo().save(tmp_path / "a.png")
    mask_path(tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match="mask .*a.mask.png cannot be read .*delete it to have it made again"):
        data(tmp_path)
    save_box_mask(tmp_path / "a.png", SIZE, (0, 0, 9, 9))
    whole = mask_path(tmp_path / "a.png").read_bytes()
    at = whole.index(b"IDAT") + 9
    for damaged in (whole[:-20], whole[:-1], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
        mask_path(tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            data(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/nowhere", path)])
def test_a_mask_that_is_no_file_is_one_sentence(tmp_path, make):
    photo().save(tmp_path / "a.png")
    make(mask_path(tmp_path / "a.png"))
    with pytest.raises(
        UserError, match="a.mask.png cannot be read .it is no regular file.; paint it anew, or delete it"
    ):
        data(tmp_path)


def test_what_is_transparent_in_a_mask_counts_for_nothing(tmp_path):
    photo().save(tmp_path / "a.png")
    mask = Image.new("RGBA", SIZE, (255, 255, 255, 0))
    ImageDraw.Draw(mask).rectangle((28, 6, 37, 15), (255, 255, 255, 255))
    mask.putpixel((30, 8), (255, 255, 255, 128))
    mask.save(mask_path(tmp_path / "a.png"))
    seen = np.asarray(data(tmp_path).masks[0], int)
    assert seen.sum() == 255 * 99 + 128


def test_a_deep_grey_mask(tmp_path):
    photo().save(tmp_path / "a.png")
    Image.fromarray(np.tile(np.linspace(0, 65535, 40), (24, 1)).astype(np.uint16)).save(mask_path(tmp_path / "a.png"))
    mask = np.asarray(read_mask(tmp_path / "a.png", {SIZE}))
    assert mask[0, 0] == 0 and mask[0, 20] == pytest.approx(131, abs=2) and mask[0, 39] == 255


def test_a_made_mask_follows_picture_and_word(tmp_path, segmenter, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "a.png"
    photo().save(path)
    data(tmp_path, segmenter=segmenter)
    made = mask_path(path).read_bytes()
    data(tmp_path, segmenter="/nowhere")  # the same picture and word: the segmenter is not asked again
    assert not caplog.messages and mask_path(path).read_bytes() == made
    photo(box=(2, 2, 12, 12)).save(path)
    data(tmp_path, segmenter=segmenter)
    assert "a.mask.png was made for another picture or word; it is made again" in caplog.text
    assert mask_path(path).read_bytes() != made
    photo((64, 48)).save(path)  # of another size
    data(tmp_path, segmenter=segmenter)
    with Image.open(mask_path(path)) as again:
        assert again.size == (64, 48)
    from perfusion.learning.data import ConceptData

    caplog.clear()
    ConceptData([path], 16, "teapot", segmenter, "clipseg", False)  # another word
    assert "made again" in caplog.text
    assert oct(mask_path(path).stat().st_mode)[-3:] == oct(path.stat().st_mode)[-3:]


def test_an_edited_mask_is_kept(tmp_path, segmenter, caplog):
    """Whether the program that it was painted in keeps the note or not."""
    caplog.set_level("INFO")
    path = tmp_path / "a.png"
    photo().save(path)
    for keeps in (True, False):
        mask_path(path).unlink(missing_ok=True)
        data(tmp_path, segmenter=segmenter)
        with Image.open(mask_path(path)) as opened:
            mask, note = opened.copy(), PngImagePlugin.PngInfo()
            note.add_text("perfusion", opened.info["perfusion"])
        mask.paste(255, (0, 0, 3, 3))
        mask.save(mask_path(path), pnginfo=note if keeps else None)
        edited = mask_path(path).read_bytes()
        photo(box=(2, 2, 12, 12)).save(path)
        data(tmp_path, segmenter="/nowhere")
        assert mask_path(path).read_bytes() == edited and "made again" not in caplog.text
        photo().save(path)


def test_names_are_of_one_format_each():
    kinds = [kind for kinds in FORMATS.values() for kind in kinds]
    assert len(kinds) == len(set(kinds)) and all(kind.startswith(".") for kind in kinds)
    with pytest.raises(ValueError, match="no picture of a kind that is read"):
        decoded(Path(__file__))

"""Pictures and masks: file kinds, EXIF, alpha, shapes, and the masks' three sources, on small real files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_pictures import GREY, RED, data, photo, save_box_mask
from PIL import Image, ImageDraw, ImageOps
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import CLIPSegConfig

from perfusion.errors import UserError
from perfusion.learning.data import picture_paths
from perfusion.learning.masks import _mean_over_views, mask_path, segment, square_box


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "JPEG"])
@pytest.mark.parametrize("size, box, at", [((40, 24), (28, 6, 38, 16), (15, 0)), ((24, 40), (6, 2, 16, 12), (0, 1))])
def test_crop_holds_the_mask(tmp_path, kind, size, box, at):
    photo(size, box).save(tmp_path / f"a.{kind}")
    save_box_mask(tmp_path / f"a.{kind}", size, box)
    (picture,), (mask,) = (d := data(tmp_path)).pictures, d.masks
    assert picture.size == mask.size == (24, 24) and picture.mode == "RGB"
    assert np.asarray(mask).sum() == 255 * 100  # none of it is cut off; the middle square would cut it
    left, top = box[0] - at[0], box[1] - at[1]
    assert mask.getbbox() == (left, top, left + 10, top + 10)
    np.testing.assert_allclose(picture.getpixel((left + 5, top + 5)), RED, atol=12)
    np.testing.assert_allclose(picture.getpixel((left - 4, top - 1)), GREY, atol=12)


def test_crop_is_the_middle_one_of_equals_and_ignores_a_glow():
    mask = np.zeros((10, 40), np.uint8)
    mask[:, 18:20] = 200
    assert square_box((40, 10), Image.fromarray(mask)) == (14, 0, 24, 10)
    assert square_box((40, 10), Image.fromarray(mask + 30)) == (14, 0, 24, 10)
    assert square_box((10, 40), Image.fromarray(mask.T.copy())) == (0, 14, 10, 24)
    mask[:, 0] = 255  # a second, smaller thing at the edge
    assert square_box((40, 10), Image.fromarray(mask)) == (14, 0, 24, 10)
    assert square_box((10, 10), Image.fromarray(mask[:, :10].copy())) == (0, 0, 10, 10)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_exif_rotation(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    photo().rotate(90, expand=True).save(tmp_path / f"a.{kind}", exif=exif, quality=95)
    save_box_mask(tmp_path / f"a.{kind}", (40, 24), (28, 6, 38, 16))  # of the upright picture
    (picture,), (mask,) = (d := data(tmp_path)).pictures, d.masks
    red = np.asarray(picture).astype(int)
    red = (red[..., 0] - red[..., 1]) > 100
    assert (red == (np.asarray(mask) > 0)).mean() > 0.97


@pytest.mark.parametrize("kind, mode", [("png", "RGBA"), ("png", "LA"), ("png", "P"), ("webp", "RGBA")])
def test_alpha_is_the_mask(tmp_path, kind, mode):
    picture = photo().convert("RGBA")
    alpha = Image.new("L", picture.size)
    ImageDraw.Draw(alpha).rectangle((28, 6, 37, 15), 255)
    picture.putalpha(alpha)
    picture.convert(mode).save(tmp_path / f"a.{kind}", **({"lossless": True} if kind == "webp" else {}))
    d = data(tmp_path)  # no segmenter is there to be asked
    assert d.masks[0].getbbox() == (13, 6, 23, 16) and set(np.unique(d.masks[0])) == {0, 255}
    assert d.pictures[0].getpixel((0, 0)) == (255, 255, 255) and d.pictures[0].getpixel((15, 10)) != (255, 255, 255)
    assert not mask_path(tmp_path / f"a.{kind}").exists()
    save_box_mask(tmp_path / f"a.{kind}", (40, 24), (0, 0, 4, 4))  # a mask beside the picture goes before
    assert data(tmp_path).masks[0].getbbox() == (0, 0, 4, 4)
    whole = data(tmp_path, masks=None)
    assert whole.masks == [None] and whole.pictures[0].size == (40, 24)


def test_half_transparent_is_lighter_and_a_soft_mask(tmp_path):
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    picture.putpixel((0, 0), (0, 0, 0, 255))
    picture.save(tmp_path / "a.png")
    d = data(tmp_path)
    assert d.pictures[0].getpixel((3, 3)) == (127, 127, 127) and d.masks[0].getpixel((3, 3)) == 128


def test_clipseg_masks_are_soft_normalised_saved_and_editable(tmp_path, segmenter):
    photo().save(tmp_path / "a.png")
    photo((24, 32), (2, 2, 10, 10)).save(tmp_path / "b.jpg")
    photo((16, 16), (2, 2, 9, 9)).convert("RGBA").save(tmp_path / "c.png")  # opaque: its alpha says nothing
    data(tmp_path, segmenter=segmenter)
    saved = {n: Image.open(tmp_path / f"{n}.mask.png") for n in "abc"}
    assert [saved[n].size for n in "abc"] == [(40, 24), (24, 32), (16, 16)]
    assert all(len(np.unique(m)) > 20 for m in saved.values())  # soft
    raw = segment([photo()], ["teddy"], segmenter)[0]
    assert np.array_equal(raw, saved["a"])
    side = CLIPSegConfig.from_pretrained(segmenter).vision_config.image_size
    assert np.asarray(segment([photo((side, side))], ["teddy"], segmenter)[0]).max() == 255  # where nothing is resized
    save_box_mask(tmp_path / "a.png", (40, 24), (28, 6, 38, 16))  # edited by hand
    again = data(tmp_path, segmenter="/nowhere")  # so the segmenter is not asked again
    assert again.masks[0].getbbox() == (13, 6, 23, 16)
    again.show(tmp_path / "masks.png")
    with Image.open(tmp_path / "masks.png") as shown:
        assert shown.size[0] > 200
    assert len(picture_paths(tmp_path / ".")) == 4  # a, b, c and masks.png; the .mask.png are none


def test_square_pictures_give_the_latents_they_always_gave(pipe, tmp_path):
    """The first version's formula, literally: ImageOps.fit of picture and mask, mean latents, mirrored."""
    root = Path(__file__).parents[2] / "data/concepts/teddy"
    pictures = [Image.open(root / f"{i}.png").convert("RGB") for i in range(3)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64), np.uint8)).save(tmp_path / f"{i}.mask.png")
    square = lambda picture: pil_to_tensor(ImageOps.fit(picture, (16, 16), Image.Resampling.LANCZOS))
    with torch.no_grad():
        x = torch.stack([square(p) for p in pictures]) / 127.5 - 1
        x = torch.cat([x, x.flip(-1)])
        latents = torch.cat([pipe.vae.encode(part).latent_dist.mean for part in x.split(4)])
    m = torch.stack([square(Image.open(tmp_path / f"{i}.mask.png")) / 255 for i in range(3)])
    m = interpolate(torch.cat([m, m.flip(-1)]), size=latents.shape[-2:], mode="area")
    encoded = data(tmp_path, flip=True).encode(pipe.vae)
    assert torch.equal(encoded.latents, latents * pipe.vae.config.scaling_factor)
    assert torch.equal(encoded.masks, m)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"])
def test_a_cut_segmenter_is_one_sentence(tmp_path, segmenter, file):
    cut = Path(shutil.copytree(segmenter, tmp_path / "cut")) / file
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(
        UserError, match=f"model.segmenter={tmp_path / 'cut'} cannot be loaded .*; give a whole CLIPSeg"
    ):
        segment([photo()], ["teddy"], str(tmp_path / "cut"))


def no_space(*args):
    raise OSError(28, "No space left on device")


def test_refused(tmp_path, segmenter, monkeypatch):
    Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="a.png is transparent throughout"):
        data(tmp_path)
    photo().save(tmp_path / "a.png")
    with pytest.raises(UserError, match="model.segmenter=/nowhere cannot be loaded"):
        data(tmp_path, segmenter="/nowhere")
    photo().save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="a.jpg and a.png would share the mask a.mask.png"):
        data(tmp_path, segmenter=segmenter)
    (tmp_path / "a.jpg").unlink()
    monkeypatch.setattr("os.replace", no_space)
    with pytest.raises(UserError, match="a.mask.png cannot be written .*No space left.*masks are kept beside"):
        data(tmp_path, segmenter=segmenter)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_masks_are_the_mean_over_views_moved_back():
    """What sees pixel by pixel sees the same in every view; a seam at fixed places is halved and mirrored."""
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(_mean_over_views(lambda v: v[:, 0], x, 2), x[:, 0])
    seam = torch.zeros(2, 8, 8)
    seam[:, :, 3] = 1
    assert _mean_over_views(lambda v: seam, x, 2)[0, 0].tolist() == [0, 0.25, 0, 0.25, 0.25, 0, 0.25, 0]

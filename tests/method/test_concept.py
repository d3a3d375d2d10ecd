"""The concept file: round trip, size, and every kind of bad file refused with its sentence."""

import base64
import pickle
import zlib

import pytest
import torch
from helpers import sd15_unet
from safetensors import safe_open
from safetensors.torch import save_file

from perfusion.errors import UserError
from perfusion.method.concept import Concept
from perfusion.method.edit import energy, inverse_metric, target_key
from perfusion.method.fingerprint import base_hash
from perfusion.method.layers import cross_attentions

# What a training run would put in: as many keys, with values as long.
CONFIG = {
    "concept": {"name": "teddy", "images": "data/concepts/teddy", "super_category": "teddy", "trigger": "teddy*"},
    "lr_o_star": 0.03,
    "lr_embedding": 0.006,
    "weight_decay": 0.0,
    "batch_size": 16,
    "max_steps": 400,
    "seed": 0,
    "beta": 0.75,
    "tau": 0.1,
    "lock": "local",
    "i_star_decay": 0.99,
    "straight_through": False,
    "mask": "clipseg",
    "flip": 0.5,
    "precision": "32-true",
    "covariance": {"captions": 100000, "tokens": "valid", "shrinkage": 0.001},
    "selection": {"every": 25, "prompts": 8, "steps": 50, "guidance": 6.0},
}


@pytest.fixture
def saved(pipe, make_concept, tmp_path):
    concept = make_concept(pipe)
    concept.save(tmp_path / "teddy.safetensors")
    return concept, tmp_path / "teddy.safetensors"


def packed(details: bytes) -> str:
    return base64.b85encode(zlib.compress(details)).decode()


def change(path, tensors=lambda t: t, metadata=lambda m: m):
    with safe_open(path, framework="pt") as file:
        t, m = {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata())  # noqa: SIM118
    save_file({k: v.contiguous() for k, v in tensors(t).items()}, path, metadata(m))


@pytest.mark.parametrize("lock", ["local", "trained"])
def test_round_trip(pipe, make_concept, tmp_path, lock):
    concept = make_concept(pipe, lock=lock)
    concept.steps, concept.licence, concept.config, concept.shrinkage = 175, "CC0-1.0", CONFIG, 1e-3
    concept.save(tmp_path / "deep" / "c.safetensors")
    loaded = Concept.load(tmp_path / "deep" / "c.safetensors")
    for name, value in vars(concept).items():
        if name in ("i_star", "embedding"):
            torch.testing.assert_close(getattr(loaded, name), value, rtol=1e-3, atol=1e-4)
        elif name.startswith("o_star") and value is not None:
            assert list(getattr(loaded, name)) == list(value)
            for layer, o in value.items():
                torch.testing.assert_close(getattr(loaded, name)[layer], o, rtol=1e-3, atol=1e-4)
        elif name != "c_inv_i_star":  # known up to scale
            assert getattr(loaded, name) == value
    e = torch.randn(1, 50, 32)
    r = [energy(e, c.i_star[None], c.c_inv_i_star[None]) for c in (concept, loaded)]
    torch.testing.assert_close(r[0], r[1], rtol=1e-2, atol=5e-3)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["c.safetensors"]  # no temporary file left


@pytest.mark.parametrize("d, condition", [(768, 4e3), (128, 4e4)])
def test_float16_is_enough_for_the_energies(d, condition):
    """At SD 1.5's condition number and at a shrunk Emojiland's, storing in float16 moves r by < .005."""
    g = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))
    spectrum = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), d, dtype=torch.float64)
    C = basis * spectrum @ basis.T
    e = (torch.randn(200, d, generator=g, dtype=torch.float64) * spectrum.sqrt()) @ basis.T
    i_star = e[0].float()
    key = target_key(inverse_metric(C, 0.0), i_star)
    stored = lambda x: (x / x.abs().max()).half().float()
    r = energy(e[None].float(), i_star[None], key[None])
    torch.testing.assert_close(
        energy(e[None].float(), i_star.half().float()[None], stored(key)[None]), r, rtol=0, atol=5e-3
    )


def test_at_most_30_KB_at_sd15_dimensions(tmp_path):
    o_star_v = {name: torch.randn(a.to_v.out_features) for name, a in cross_attentions(sd15_unet()).items()}
    concept = Concept(
        "teddy*",
        "teddy",
        torch.randn(768),
        torch.randn(768),
        torch.randn(768),
        o_star_v,
        steps=175,
        base_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
        base_hash="0123456789abcdef" * 2,
        covariance_hash="fedcba9876543210" * 2,
        shrinkage=1e-3,
        licence="CC-BY-4.0",
        config=CONFIG,
    )
    concept.save(tmp_path / "c.safetensors")
    assert 28_000 < (tmp_path / "c.safetensors").stat().st_size <= 30 * 1024
    assert Concept.load(tmp_path / "c.safetensors").config == CONFIG


@pytest.mark.parametrize(
    "tensors, metadata, match",
    [
        (lambda t: {k: v for k, v in t.items() if k != "i_star"}, None, r"missing \['i_star'\]"),
        (lambda t: t | {"C": torch.eye(3)}, None, r"unknown \['C'\]"),
        (lambda t: t | {"c_inv_i_star": torch.ones(31)}, None, r"c_inv_i_star of shape \(31,\).*\(32,\)"),
        (lambda t: t | {"o_star_v": t["o_star_v"][1:]}, None, "o_star_v of shape"),
        (lambda t: t | {"i_star": t["i_star"] * float("nan")}, None, "not finite"),
        (None, lambda m: m | {"version": "2"}, "version 2, this program reads 1"),
        (None, lambda m: {}, "is no concept file of Perfusion"),
        (None, lambda m: m | {"colour": "red"}, r"unknown \['colour'\]"),
        (None, lambda m: {k: v for k, v in m.items() if k != "licence"}, r"missing \['licence'\]"),
        (None, lambda m: m | {"lock": "trained"}, r"missing \['o_star_k'\]"),
        (None, lambda m: m | {"lock": "global"}, 'lock="global" is unknown'),
        (None, lambda m: m | {"beta": "high"}, "unreadable metadata.*high"),
        (None, lambda m: m | {"tau": "0"}, "tau positive"),
        (None, lambda m: m | {"details": "abc"}, "unreadable metadata"),
        (None, lambda m: m | {"details": packed(b" " * 2**21)}, "longer than the 1048576 bytes allowed"),
        (None, lambda m: m | {"details": packed(b'{"layers": {"a": Infinity}}')}, "unreadable metadata"),
    ],
)
def test_bad_files_are_refused(saved, tensors, metadata, match):
    change(saved[1], tensors or (lambda t: t), metadata or (lambda m: m))
    with pytest.raises(UserError, match=match):
        Concept.load(saved[1])


def test_pickles_truncated_and_missing_files_are_refused(saved, tmp_path):
    (tmp_path / "c.pt").write_bytes(pickle.dumps({"i_star": 1}))
    torch.save({"i_star": torch.ones(3)}, tmp_path / "c.bin")
    (tmp_path / "cut.safetensors").write_bytes(saved[1].read_bytes()[:-10])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("c.pt", "c.bin", "cut.safetensors", "empty.safetensors"):
        with pytest.raises(UserError, match="not a safetensors file"):
            Concept.load(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        Concept.load(tmp_path / "nothing.safetensors")


def test_values_beyond_float16_are_not_saved(saved):
    concept, path = saved
    before = path.read_bytes()
    concept.embedding = concept.embedding + 1e5
    with pytest.raises(UserError, match="embedding of teddy"):
        concept.save(path)
    assert path.read_bytes() == before


def test_hash_is_the_weights_and_not_their_precision(pipe):
    one = base_hash(pipe.text_encoder, pipe.unet)
    pipe.to(torch.float16)
    assert base_hash(pipe.text_encoder, pipe.unet) == one
    next(iter(cross_attentions(pipe.unet).values())).to_v.weight.data[0, 0] += 1
    assert base_hash(pipe.text_encoder, pipe.unet) != one

"""The kinds of files that are read: how a whole one is made, what is read from it, its name."""

from dataclasses import fields
from pathlib import Path

from contents import digest, tensors


def concept(folder: Path, seed: int) -> bytes:
    import torch

    from perfusion.method.concept import Concept

    g = torch.Generator().manual_seed(seed)
    r = lambda n: torch.randn(n, generator=g)
    made = Concept(
        "teddy*", "teddy", r(32), r(32), r(32), {"a": r(16), "b": r(24)}, base_hash="0" * 32, config={"seed": seed}
    )
    made.save(folder / "made.safetensors")
    return (folder / "made.safetensors").read_bytes()


def read_concept(path: Path):
    from perfusion.method.concept import Concept

    concept = Concept.load(path)
    plain = lambda v: (
        {k: plain(x) for k, x in v.items()} if isinstance(v, dict) else digest(v.numpy()) if hasattr(v, "numpy") else v
    )
    return {f.name: plain(getattr(concept, f.name)) for f in fields(concept)}


def covariance(folder: Path, seed: int) -> bytes:
    import torch

    from perfusion.method.covariance import Covariance

    e = torch.randn(100, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    Covariance(e.T @ e, 100, "0" * 32, "1" * 32).save(folder / "made.safetensors")
    return (folder / "made.safetensors").read_bytes()


def read_covariance(path: Path):
    from perfusion.method.covariance import Covariance

    covariance = Covariance.load(path)
    return digest(covariance.C.numpy()), covariance.count, covariance.hash, covariance.encoder


def checkpoint(folder: Path, seed: int) -> bytes:
    import torch

    state = {f"o_star_v.{i}": torch.randn(1, 16, generator=torch.Generator().manual_seed(seed + i)) for i in range(6)}
    torch.save(
        {"state_dict": state, "global_step": 7 + seed, "loops": {}, "perfusion": {}, "callbacks": {"best": 0.5}},
        folder / "made.ckpt",
    )
    return (folder / "made.ckpt").read_bytes()


def read_checkpoint(path: Path):
    from perfusion.learning.resume import read as read_checkpoint

    return tensors(read_checkpoint(path))


def imported(folder: Path, seed: int) -> bytes:
    """A file of ChenDarYen's Perfusion: no sums are in it, so numbers may differ; it is only read as tensors."""
    import torch

    r = lambda *n: torch.randn(*n, generator=torch.Generator().manual_seed(seed))
    parts = {"target_input": r(8), "C_inv": r(8, 8), "embedding": {"string_to_param": {"*": r(1, 8)}}}
    torch.save(
        parts | {"target_output": {"input_blocks.1.1.transformer_blocks.0.attn2.to_v.target_output": r(4, 8)}},
        folder / "made.ckpt",
    )
    return (folder / "made.ckpt").read_bytes()


def read_imported(path: Path):
    from perfusion.commands.interchange import read_checkpoint

    parts = read_checkpoint(path)
    return {
        k: digest(v.numpy()) if hasattr(v, "numpy") else {n: digest(o.numpy()) for n, o in v.items()}
        for k, v in parts.items()
    }


def result(folder: Path, seed: int) -> bytes:
    from perfusion.results import write_result

    rows = {"point": [0, 1] * 20, "text": [0.1 * seed + i / 100 for i in range(40)]}
    write_result(
        folder / "made.json",
        {"concept": "teddy*", "rows": rows, "points": [{"beta": 0.6}, {"beta": 0.75}], "drift": None},
    )
    return (folder / "made.json").read_bytes()


def read_result(path: Path):
    from perfusion.results import read_result

    return read_result(path)


def mask(folder: Path, seed: int) -> bytes:
    from PIL import Image

    from perfusion.learning.masks import mask_path, save_mask

    drawn = Image.effect_noise((48, 32), 60 + seed)
    save_mask(folder / "a.png", drawn, "0" * 32)
    return mask_path(folder / "a.png").read_bytes()


def read_mask(path: Path):
    from perfusion.learning.masks import read_mask

    return digest(read_mask(path.with_name("a.png"), {(48, 32)}, "0" * 32))


def yaml(folder: Path, seed: int) -> bytes:
    (folder / "0.png").write_bytes(b"")
    return f"name: teddy{seed}*\nsuper_category: teddy\nartist: openmoji\n# a comment\n".encode()


def read_yaml(path: Path):
    """What training takes from it: words. Another word is what a person may as well have meant."""
    from omegaconf import OmegaConf

    from perfusion.config import concept_of

    told = concept_of(OmegaConf.create({"concept": {"images": str(path.parent), "super_category": None, "name": None}}))
    words = {k: told.get(k) for k in ("name", "super_category", "artist")}
    return "words" if all(v is None or isinstance(v, str) for v in words.values()) else words


KINDS = {
    "concept": (concept, read_concept, "a.safetensors"),
    "covariance": (covariance, read_covariance, "a.safetensors"),
    "checkpoint": (checkpoint, read_checkpoint, "last.ckpt"),
    "result": (result, read_result, "result.json"),
    "mask": (mask, read_mask, "a.mask.png"),
    "yaml": (yaml, read_yaml, "concept.yaml"),
    "imported": (imported, read_imported, "a.ckpt"),
}

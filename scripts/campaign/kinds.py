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


AROUND = {  # the tensors of a checkpoint
    "perfusion": {}, "loops": {"fit_loop": {}}, "optimizer_states": [{}],
    "callbacks": {"Selection": {"best": 0.5, "history": [], "file": None, "seconds": 1.0}},
}  # fmt: skip


def checkpoint(folder: Path, seed: int) -> bytes:
    import torch

    state = {f"o_star_v.{i}": torch.randn(1, 16, generator=torch.Generator().manual_seed(seed + i)) for i in range(6)}
    torch.save(AROUND | {"state_dict": state, "global_step": 7 + seed}, folder / "made.ckpt")
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


def job(folder: Path, seed: int) -> bytes:
    """An experiment's job as it may be edited: "format" 1 has no sum, so numbers may differ; it is only read as numbers."""
    import json

    about = {"lock": None, "tau": 0.1}
    points = [about | {"beta": beta} for beta in (0.6, 0.9)]
    scores = {name: [round(0.1 + 0.01 * i + 0.001 * seed, 4) for i in range(8)] for name in ("text", "image", "facts")}
    rows = {"point": [0, 1] * 4, "prompt": [0] * 4 + [1] * 4, "k": [0, 0, 1, 1] * 2} | scores
    result = {
        "format": 1, "concept": "teddy*", "prompts": ["a {}", "a {} at night"], "points": points, "rows": rows,
        "summary": [p | {"text": 0.2, "image": 0.2 + i, "facts": None, "pareto": True} for i, p in enumerate(points)],
        "front": {"reference": [0.0, 0.0], "hypervolume": 0.1, "interval": [0.0, 0.2]}, "drift": None,
        "definitions": {"text": "a cosine"}, "config": {"seed": seed, "model": {"id": "a"}}, "scorers": {"clip": "a", "dino": None},
        "trained": {"base_hash": "0" * 32}, "surroundings": {"commit": None}, "seconds": 1.0, "job_seconds": 2.0,
        "training": {"train_seconds": 1.0, "folder": "gone"}, "job": {"arm": "a", "concept": "teddy*", "seed": 0},
    }  # fmt: skip
    (folder / "a").mkdir(exist_ok=True)
    return json.dumps(result).encode()


def read_job(path: Path):
    """What is made of it: the joined table, and the page."""
    from omegaconf import OmegaConf

    from perfusion.experiments.collect import collect, report, table
    from perfusion.experiments.jobs import read_jobs
    from perfusion.experiments.report import of_run

    of_run(path.parent)
    jobs = read_jobs(path.parents[1])
    cfg = OmegaConf.create({"name": "a", "arms": None, "draws": 20, "seed": 0, "reference": [0.0, 0.0]})
    claims = [{"better": "a", "worse": "a", "measure": m, "claim": "none"} for m in ("hypervolume", "matched_text")]
    cfg.arms = {arm: None for arm in jobs}
    joined, arms = collect(jobs, claims, cfg)
    report(joined)
    return "joined", len(table(jobs)["text"]), len(arms)


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
    "job": (job, read_job, "a/result.json"),
    "mask": (mask, read_mask, "a.mask.png"),
    "yaml": (yaml, read_yaml, "concept.yaml"),
    "imported": (imported, read_imported, "a.ckpt"),
}

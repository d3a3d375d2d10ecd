"""Configuration: where conf/ is, the resolvers it uses, what it may hold (schema.py, of groups.py and kinds.py), and the one check of it (checked.py)."""

import os
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from perfusion.config.checked import check, not_taken, read_beside
from perfusion.errors import UserError

__all__ = [
    "ASSETS", "CONF", "INSTALLED", "PACKAGE", "ROOT", "check", "concept_of", "home", "not_taken", "preset", "trainer_for",
]  # fmt: skip

PACKAGE = Path(__file__).parents[1]
INSTALLED = (PACKAGE / "conf").is_dir()  # a wheel holds conf/ and data/ within the package
ROOT = PACKAGE if INSTALLED else PACKAGE.parent
CONF = ROOT / "conf"
ASSETS = Path(os.environ.get("PERFUSION_ASSETS", PACKAGE / "assets"))


def home() -> Path:
    """Where covariances, scenes and checkpoints live: $PERFUSION_CACHE, or ~/.cache/perfusion."""
    return Path(os.environ.get("PERFUSION_CACHE", Path.home() / ".cache/perfusion")).expanduser()


OmegaConf.register_new_resolver("assets", lambda path: str(ASSETS / path), replace=True)
OmegaConf.register_new_resolver("root", lambda path: str(ROOT / path), replace=True)


def native_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself: 1.5-2 x faster than float32 there, far slower elsewhere."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


OmegaConf.register_new_resolver("cpu_precision", lambda: "bf16-mixed" if native_bfloat16() else "32-true", replace=True)


def preset(gib: float | None) -> str:
    """The name in conf/trainer for a GPU of so much memory; None where there is none."""
    return "cpu" if gib is None else "gpu_24gb" if gib > 20 else "gpu_8gb"


def trainer_for(model: str, *small: str) -> str:
    """The trainer where none is named: by the GPU that is here, if any; the CPU for the small models."""
    if model in small:
        return "cpu"
    import torch

    return preset(torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None)


OmegaConf.register_new_resolver("trainer_for", trainer_for, replace=True)


def run_name(*, _root_: DictConfig) -> str:
    """The part of a run's folder that names its concept, whatever was given for one; the command itself refuses that."""
    concept = OmegaConf.to_container(_root_.get("concept") or OmegaConf.create(), resolve=False)
    images = concept.get("images")
    for word in (concept.get("super_category"), images[0] if isinstance(images, list) and images else images):
        if isinstance(word, str) and word != "???" and (name := re.sub(r"[^\w-]+", "_", Path(word).stem).strip("_")):
            return name[:40]
    return "concept"


OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def concept_of(cfg: DictConfig) -> DictConfig:
    """The concept's images, name and super_category: as configured, else from concept.yaml beside the pictures.

    Raises UserError for pictures that are not there, a concept.yaml that is none, or a super-category named nowhere.
    """
    images = cfg.concept.images
    several = [Path(images)] if isinstance(images, str) else [Path(path) for path in images]
    for path in several:
        if not (path.is_file() or path.is_dir() and len(several) == 1):
            raise UserError(
                f"concept.images={path} is not a folder or a picture that is there; give a folder that holds 1-7 pictures "
                "of the concept, one picture, or a list of pictures."
            )
    folder = several[0] if several[0].is_dir() else several[0].parent
    given = {k: v for k, v in OmegaConf.to_container(cfg.concept, resolve=True).items() if v is not None}
    merged = OmegaConf.create(read_beside(folder / "concept.yaml") | given)
    if not merged.get("super_category"):
        raise UserError(
            f"concept.super_category is not given, and {folder} has no concept.yaml that says it; "
            "add concept.super_category=WORD, such as teddy."
        )
    merged.super_category = merged.super_category.lower()  # as tokenizers read it
    merged.setdefault("name", f"{merged.super_category}*")
    return merged

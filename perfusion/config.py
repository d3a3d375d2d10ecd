"""Configuration: where conf/ is, the resolvers it uses, and what is checked before any weights load."""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from perfusion.errors import UserError

PACKAGE = Path(__file__).parent
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


def check_counts(cfg: DictConfig, *keys: str, prefix: str = "") -> None:
    """Raises UserError for a key of cfg that is not a whole number of at least 1."""
    for key in keys:
        if type(cfg[key]) is not int or cfg[key] < 1:
            raise UserError(f"{prefix}{key}={cfg[key]} does not work; a whole number of at least 1 is allowed.")


def concept_of(cfg: DictConfig) -> DictConfig:
    """The concept's images, name and super_category: as configured, else from concept.yaml beside the pictures.

    Raises UserError for a missing folder or a super-category that is named nowhere.
    """
    missing = [key for key in ("images", "super_category") if OmegaConf.is_missing(cfg.concept, key)]
    if missing:
        raise UserError(
            f"concept.{missing[0]} is not given; say what to learn, as in "
            "concept=custom concept.images=photos/ concept.super_category=teddy."
        )
    folder = Path(cfg.concept.images)
    if not folder.is_dir():
        raise UserError(f"concept.images={folder} is not a folder; give one that holds 1-7 pictures of the concept.")
    beside = OmegaConf.load(folder / "concept.yaml") if (folder / "concept.yaml").exists() else {}
    given = {k: v for k, v in OmegaConf.to_container(cfg.concept, resolve=True).items() if v is not None}
    merged = OmegaConf.merge(beside, given)
    if not merged.get("super_category"):
        raise UserError(
            f"concept.super_category is not given, and {folder} has no concept.yaml that says it; "
            "add concept.super_category=WORD, such as teddy."
        )
    merged.setdefault("name", f"{merged.super_category}*")
    return merged

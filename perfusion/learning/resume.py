"""Going on from a run's last.ckpt: which file is meant, and whether the run can go on as configured."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from perfusion.errors import UserError
from perfusion.learning.checkpoints import tensors


def checkpoint_of(resume: str) -> Path:
    """A checkpoint's own path, or last.ckpt of a run's folder."""
    return Path(resume) / "last.ckpt" if Path(resume).is_dir() else Path(resume)


def read(resume: str) -> dict:
    """A checkpoint of perfusion train, as tensors alone. Raises UserError for anything else."""
    path = checkpoint_of(resume)
    if not path.is_file():
        raise UserError(f"resume={resume} does not exist; give a run's folder or its last.ckpt, or null to start anew.")
    way_out = "give the last.ckpt of a run of perfusion train, or null to start anew."
    try:
        checkpoint = tensors(path)
    except Exception as error:  # on bytes that are no checkpoint the reader raises what it happens to meet
        raise UserError(
            f"resume={resume} is not a whole checkpoint ({type(error).__name__}: {' '.join(str(error).split())[:100]}); {way_out}"
        ) from error
    parts = {"state_dict": dict, "global_step": int, "perfusion": dict, "callbacks": dict, "loops": dict}
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(k), kind) for k, kind in parts.items()):
        raise UserError(f"resume={resume} is no checkpoint of this program, or of an older version of it; {way_out}")
    numbers = checkpoint["state_dict"].values()
    if not all(isinstance(t, torch.Tensor) and t.isfinite().all() for t in numbers):
        raise UserError(f"resume={resume} holds numbers that are not finite; {way_out}")
    return checkpoint


def check(checkpoint: dict, cfg: DictConfig, known: dict) -> None:
    """Raises UserError where a run cannot go on as configured. known: what is known of this one, as `module.about`."""
    for field, value in known.items():
        if checkpoint["perfusion"].get(field) != value:
            raise UserError(
                f"resume={cfg.resume} is a run with {field}={checkpoint['perfusion'].get(field)}, this one has "
                f"{field}={value}; give the same, or resume=null to start anew."
            )
    if checkpoint["global_step"] > cfg.max_steps:
        raise UserError(
            f"resume={cfg.resume} is at step {checkpoint['global_step']} and max_steps={cfg.max_steps} is passed already; "
            "give a larger max_steps, or resume=null to start anew."
        )


def check_tensors(checkpoint: dict, cfg: DictConfig, state: dict) -> None:
    """Raises UserError where the checkpoint's tensors are not of the shapes of those that are learned, `state`."""
    shapes = lambda named: {name: tuple(value.shape) for name, value in named.items()}
    if shapes(checkpoint["state_dict"]) != shapes(state):
        raise UserError(
            f"resume={cfg.resume} holds other tensors than this model learns; it is damaged: give another, or resume=null."
        )

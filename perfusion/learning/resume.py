"""Going on from a run's last.ckpt: which file is meant, and whether the run can go on as configured."""

import hashlib
from pathlib import Path
from typing import Annotated

import torch
from omegaconf import DictConfig
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perfusion.errors import UserError
from perfusion.learning.checkpoints import tensors

PICTURES = "concept.images (digest of the files)"  # which checkpoints of older versions do not say


class Part(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, strict=True)


class OfSelection(Part):
    """selection.Selection's own."""

    best: float
    history: list[dict[str, float]]
    file: torch.Tensor | None
    seconds: float


class Callbacks(Part):
    Selection: OfSelection


class Loops(Part):
    fit_loop: dict


class Checkpoint(Part):
    """What of last.ckpt is read when a run goes on; Lightning itself would fail amid it, or begin anew what is not there."""

    state_dict: dict[str, torch.Tensor]
    global_step: Annotated[int, Field(ge=0)]
    perfusion: dict[str, str]
    callbacks: Callbacks
    loops: Loops
    optimizer_states: Annotated[list[dict], Field(min_length=1)]


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
    try:
        Checkpoint.model_validate(checkpoint)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = f" ({'.'.join(map(str, wrong['loc']))}: {wrong['msg'].lower()})" if wrong["loc"] else ""
        raise UserError(
            f"resume={resume} is no checkpoint of this program, or of an older version of it{where}; {way_out}"
        ) from None
    numbers = checkpoint["state_dict"].values()
    # Some at a time: isfinite takes memory of its own, of twice what it looks at.
    finite = lambda tensor: all(part.isfinite().all() for part in tensor.flatten().split(2**20))
    if not all(map(finite, numbers)):
        raise UserError(f"resume={resume} holds numbers that are not finite; {way_out}")
    return checkpoint


def of_pictures(paths: list[Path]) -> dict[str, str]:
    """What a checkpoint tells of the pictures that it learns from, under whatever names they lie."""
    digests = sorted(hashlib.sha256(path.read_bytes()).digest() for path in paths)
    return {PICTURES: hashlib.sha256(b"".join(digests)).hexdigest()[:16]}


def check(checkpoint: dict, cfg: DictConfig, known: dict) -> None:
    """Raises UserError where a run cannot go on as configured. known: what is known of this one, as `module.about`."""
    for field, value in known.items():
        if checkpoint["perfusion"].get(field, value if field == PICTURES else None) != value:
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

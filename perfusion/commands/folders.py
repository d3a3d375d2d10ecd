"""Whose folder a run is: no two jobs of a sweep have one, and what another command line left in it is not written over."""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from perfusion.errors import UserError, told

WRITERS = ("train", "generate", "evaluate")  # the other apps' files have keys of their own
KEPT = (
    "concept.safetensors",
    "last.ckpt",
    "result.json",
    "000-00.png",
)  # what work went into; a refused run leaves none


def is_first_process() -> bool:
    """Under DDP the first process stands for the others, which have its folder."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def check_folder(app: str, folder: Path, cfg: DictConfig, field: str) -> None:
    """Raises UserError where `folder` holds what a run with another configuration than cfg made, unless cfg goes on from it.

    field: the key that names the folder.
    """
    folder = Path(os.path.abspath(folder))  # Hydra makes what a/../b goes through
    if not folder.is_dir() and (folder.exists() or any(parent.is_file() for parent in folder.parents)):
        raise UserError(f"{field}={told(folder)} is a file, or within one; give a folder.")
    kept = [name for name in KEPT if (folder / name).exists()] if app in WRITERS and is_first_process() else []
    resume = cfg.get("resume")
    going_on = isinstance(resume, str) and folder.resolve() in (Path(resume).resolve(), Path(resume).resolve().parent)
    if not kept or going_on or _before(folder) == OmegaConf.to_container(cfg, resolve=False):
        return
    more = f", go on from it with resume={told(folder)}" if app == "train" and "last.ckpt" in kept else ""
    raise UserError(
        f"{field}={told(folder)} holds what a run with other settings made ({', '.join(kept)}), which this one would write "
        f"over; give a folder that is not there yet{more}, or move the old one away."
    )


def _before(folder: Path) -> object:
    """The configuration of the run before, as Hydra keeps it; None where it is not there."""
    try:
        return OmegaConf.to_container(OmegaConf.load(folder / ".hydra/config.yaml"), resolve=False)
    except (OSError, ValueError, OmegaConfBaseException):
        return None


def check_hydra(hydra: DictConfig, experiment: str | None) -> None:
    """Raises UserError for Hydra's own settings with which files would not be found: given ones, or an experiment's results."""
    if hydra.job.chdir:
        raise UserError(
            "hydra.job.chdir=true does not work, as files are named from the folder that perfusion is started in; leave it "
            "out: false is allowed."
        )
    home = Path(hydra.sweep.dir)
    if experiment and home.name != experiment:
        raise UserError(
            f"hydra.sweep.dir={home} does not end in the experiment's name, by which perfusion collect finds its jobs; give "
            f"hydra.sweep.dir={home / experiment}, and multirun={home} to perfusion collect."
        )


class JobFolders:
    """The folders of a sweep's jobs, as they come: `add` raises UserError for one that another job has."""

    def __init__(self, app: str, loader, master: DictConfig):
        self.app, self.loader, self.master, self.taken = app, loader, master, {}
        raw, home = OmegaConf.to_container(master.hydra.sweep, resolve=False), Path(master.hydra.sweep.dir)
        # By its number, or by the key of its settings, in a folder that is not there: composing each is slow.
        own = any(key in str(raw["subdir"]) for key in ("${hydra.job.num}", "${hydra.job.id}", "${job_key:}"))
        self.sure = own and not home.exists()

    def add(self, number: int, overrides: list[str], cfg: DictConfig, work: object) -> None:
        """overrides: those of the job alone; cfg: what they make; work: jobs of the same may have one folder."""
        check_hydra(self.master.hydra, cfg.name if work != number else None)
        if self.sure:
            return
        job = self.loader.load_sweep_config(self.master, overrides)
        OmegaConf.set_struct(job, False)
        job.hydra.job.num = number
        job.hydra.job.id = str(number)
        folder = Path(os.path.abspath(os.path.join(job.hydra.sweep.dir, str(job.hydra.sweep.subdir))))
        other = self.taken.setdefault(folder, work)
        if other != work:
            raise UserError(
                f"hydra.sweep.dir={self.master.hydra.sweep.dir} and hydra.sweep.subdir={job.hydra.sweep.subdir} give two jobs "
                f"the folder {told(folder)}, where one would write over the other; leave hydra.sweep.subdir out, or give one "
                "that differs from job to job, as in 'hydra.sweep.subdir=${hydra.job.num}'."
            )
        if work == number:  # an experiment's job looks for its result itself
            check_folder(self.app, folder, cfg, "hydra.sweep.dir and hydra.sweep.subdir")

"""The commands that Hydra configures: composed, checked, run here or by a sweep's launcher."""

import importlib
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from perfusion.atomic import alone
from perfusion.commands.cli import APPS, refuse
from perfusion.config import CONF
from perfusion.errors import UserError
from perfusion.experiments import sweep  # registers the resolver of job folders, here and in other processes
from perfusion.experiments.launchers import missing_extra, register

PROGRAM = sys.argv[0]


def start(app: str, overrides: list[str]) -> None:
    """Run an app on the command line's overrides."""
    if sentence := missing_extra(overrides):
        refuse(sentence)
    register(overrides)
    if not any(o.startswith("-") for o in overrides):  # with flags (-m, --help, ...) Hydra itself checks
        _check(app, overrides)
    sys.argv = [f"perfusion {app}", *overrides]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come out of Hydra, so that those of a full disk are a sentence too
    try:
        hydra.main(str(CONF), app, version_base="1.3")(task)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        refuse(" ".join(str(error).split()))
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename} cannot be written or read" if error.filename else "a file cannot be written or read"
        refuse(f"{where} ({error.strerror}); free some space, or give files and folders that you may read and write.")


def task(cfg):
    """What Hydra runs, here or in another process: the app that the configuration is named after."""
    app = HydraConfig.get().job.config_name
    if sys.argv[0] == f"perfusion {app}":
        sys.argv[:1] = [PROGRAM, app]  # what Lightning starts its other processes with, under DDP
    several = HydraConfig.get().mode == RunMode.MULTIRUN
    if "wandb" in (cfg.get("logger") or {}):
        from perfusion.learning.dashboard import check_login

        try:
            check_login(cfg.logger.wandb)
        except UserError as error:  # of every job of a sweep
            refuse(str(error))
        of_sweep = Path(HydraConfig.get().sweep.dir).name if several else None
        cfg.logger.wandb.group = cfg.logger.wandb.group or cfg.get("name") or of_sweep
    try:
        # Under DDP the first process stands for the others.
        others = any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
        folder, shared = HydraConfig.get().runtime.output_dir, app in ("collect", "report", "measure")
        with nullcontext() if others else alone(folder, "hydra.run.dir", wait=several or shared):
            if app == "train" and cfg.name:
                return sweep.job(cfg)
            return importlib.import_module(APPS[app][0]).run(cfg)
    except UserError as error:
        if several:  # the other jobs of a sweep go on
            raise
        refuse(str(error))


def _check(app: str, overrides: list[str]) -> None:
    """Compose once, for an error of one sentence."""
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            hydra.compose(app, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        refuse(" ".join(str(error).split()))

"""Lightning's trainer and loggers, of what is configured; what they refuse is one sentence, before any weights load."""

import os
from pathlib import Path

import hydra
import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.environments import LightningEnvironment

from perfusion.config import CONF
from perfusion.config.groups import Trainer as TrainerKeys
from perfusion.config.saying import shown
from perfusion.errors import UserError, fails, first_sentence
from perfusion.learning.checkpoints import Checkpoints
from perfusion.learning.progress import Progress


def trainer_of(cfg: DictConfig, folder: Path) -> pl.Trainer:
    """The Lightning trainer of cfg.trainer. Raises UserError where this machine has not what it asks for."""
    callbacks = [Progress()] if cfg.trainer.get("enable_progress_bar", True) else []
    settings = OmegaConf.to_container(cfg.trainer, resolve=True)
    micro_batches = cfg.max_steps * cfg.trainer.accumulate_grad_batches
    make = lambda given: _with_its_processes(
        **given, max_steps=cfg.max_steps, logger=loggers_of(cfg.logger, folder), callbacks=callbacks,
        default_root_dir=folder, enable_model_summary=False, log_every_n_steps=min(5, micro_batches),
        enable_checkpointing=False, plugins=[Checkpoints()],
    )  # fmt: skip
    try:
        return make(settings)
    except UserError:
        raise
    except Exception as error:  # Lightning's own checks raise errors of many kinds
        named = {k: v for k, v in settings.items() if k in TrainerKeys.model_fields}
        wrong = [] if fails(make, named) else [k for k in settings if fails(make, named | {k: settings[k]})]
        if wrong:  # of those that are handed to Lightning as they are
            raise UserError(
                f"trainer.{wrong[0]}={shown(settings[wrong[0]])} does not work ({first_sentence(error)[:300]}); leave it out, "
                "or give what pytorch_lightning.Trainer takes."
            ) from error
        raise UserError(
            f"trainer={shown(settings, 400)} cannot run here ({' '.join(str(error).split())}); "
            f"allowed are: {', '.join(sorted(p.stem for p in (CONF / 'trainer').glob('*.yaml')))}, on a machine that has "
            "what they name."
        ) from error


def _with_its_processes(**given) -> pl.Trainer:
    """The trainer. Raises UserError where it would wait for ever for processes that nobody starts."""
    trainer = pl.Trainer(**given)
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is None:  # of one process
        return trainer
    nodes, devices, said = trainer.num_nodes, trainer.num_devices, os.environ
    environment.validate_settings(num_devices=devices, num_nodes=nodes)  # SLURM's or torchrun's own numbers
    if not isinstance(environment, LightningEnvironment):
        return trainer
    met = {"MASTER_ADDR", "MASTER_PORT"} <= said.keys()
    if nodes > 1 and not (met and said.keys() & {"NODE_RANK", "GROUP_RANK"}):
        raise UserError(
            f"trainer.num_nodes={nodes} waits for other machines, where nothing starts this training; 1 is allowed, or start "
            "perfusion train on every machine with srun or torchrun, or with MASTER_ADDR, MASTER_PORT and NODE_RANK set."
        )
    if devices > 1 and environment.creates_processes_externally and not met:
        raise UserError(
            f"trainer.devices={devices} waits for processes that, as LOCAL_RANK={said['LOCAL_RANK']} is set, another program "
            "starts, but none did; unset LOCAL_RANK, or start perfusion train with torchrun."
        )
    if environment.node_rank() >= nodes:
        raise UserError(
            f"NODE_RANK={environment.node_rank()} is of no machine of trainer.num_nodes={nodes}; unset it, or give as many."
        )
    return trainer


def loggers_of(logger: DictConfig, folder: Path) -> list:
    """The one logger of conf/logger/csv.yaml, or several by name; each writes to `folder` or to its own save_dir."""
    several = [logger] if "_target_" in logger else [logger[name] for name in logger]
    try:
        # Absolute, as wandb's own process keeps the working directory that it was started in.
        return [hydra.utils.instantiate(one, save_dir=one.get("save_dir") or str(folder.resolve())) for one in several]
    except Exception as error:  # of the logger's own
        raise UserError(
            f"logger={OmegaConf.to_container(logger, resolve=True)} cannot be made ({' '.join(str(error).split())[:200]}); "
            "allowed are csv, wandb, null for none, and any of Lightning's loggers with its own keys."
        ) from error

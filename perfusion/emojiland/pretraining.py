"""What the pretraining scripts share: rows drawn from (seed, step), checkpoints, resuming, a progress bar."""

import math
import time
from datetime import timedelta

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger

from perfusion.config import native_bfloat16
from perfusion.emojiland.cache import SceneCache, home
from perfusion.emojiland.muon import optimizer_of
from perfusion.emojiland.scenes import Facts
from perfusion.errors import UserError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
APART = 8  # steps between two updates of the moving average on a GPU, where each waits for the device


class Pretraining(pl.LightningModule):
    """A model trained on rows of a scene cache. Subclasses set `self.model` and define `loss(rows) -> dict of scalars`."""

    def __init__(self, cfg: DictConfig, scenes: SceneCache):
        super().__init__()
        self.cfg = cfg
        self._resident: dict[int, torch.Tensor] = {}
        self.pool = np.repeat(np.arange(len(scenes)), [self.often(fact) for fact in scenes.facts])

    def often(self, fact: Facts) -> int:
        """How many times as often as others a scene is drawn: cfg.twos times where there are two objects, the hardest."""
        return self.cfg.twos if fact.second else 1

    def take(self, array: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """Rows of an array of the scenes, as a tensor on the module's device; a GPU keeps the whole array."""
        if self.device.type == "cpu":
            return torch.from_numpy(np.ascontiguousarray(array[rows]))
        if id(array) not in self._resident:
            self._resident[id(array)] = torch.from_numpy(np.array(array)).to(self.device)
        return self._resident[id(array)][self.here(torch.from_numpy(rows))]

    def here(self, small: torch.Tensor) -> torch.Tensor:
        """A small tensor on the module's device, without waiting for what a GPU still does."""
        return small.to(self.device, non_blocking=True)

    def on_train_start(self):
        self.started = time.monotonic()

    def rows(self, rng: np.random.Generator) -> np.ndarray:
        """Which rows of the scenes a step is trained on [cfg.batch]."""
        return self.pool[rng.integers(0, len(self.pool), self.cfg.batch)]

    def training_step(self, batch, batch_index):
        # Rows and noise follow from the step alone, so a resumed run is the uninterrupted one.
        step = self.global_step
        torch.manual_seed(self.cfg.seed * 1_000_003 + step)
        losses = self.loss(np.sort(self.rows(np.random.default_rng([self.cfg.seed, step]))))
        self.log_dict(losses, prog_bar=True)
        return losses["loss"]

    def configure_optimizers(self):
        cfg = self.cfg
        optimizer = optimizer_of(self, cfg.optimizer, cfg.lr, cfg.weight_decay)

        def rate(step: int) -> float:
            gone = step / cfg.steps
            if cfg.timed and step:
                gone = min(1.0, (time.monotonic() - self.started) / (60 * cfg.minutes))
            left = min(1.0, (1 - gone) / cfg.cooldown)
            return min(1.0, (step + 1) / cfg.warmup) * 0.5 * (1 - math.cos(math.pi * left))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def pixels(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    images = torch.from_numpy(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def fit(module: Pretraining, name: str) -> None:
    """Train `module` to cfg.steps, or for cfg.minutes; goes on from the newest checkpoint under home()."""
    cfg = module.cfg
    if cfg.timed and not cfg.minutes:
        raise UserError(
            "timed=true needs the minutes that the rate falls over; add minutes=NUMBER, or set timed=false."
        )
    folder = home() / "emojiland/checkpoints" / name
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    callbacks = [
        ModelCheckpoint(
            folder,
            save_last=True,
            enable_version_counter=False,  # or a run that goes on writes last-v1.ckpt, and the next goes on from last.ckpt
            train_time_interval=timedelta(minutes=cfg.checkpoint_minutes),
        ),
    ]
    gpu = DEVICE == "cuda"
    if cfg.ema:
        every = APART if gpu else 1
        callbacks.append(EMAWeightAveraging(DEVICE, decay=cfg.ema**every, update_every_n_steps=every))
    if gpu:
        torch.set_float32_matmul_precision("high")
        callbacks.append(TQDMProgressBar(refresh_rate=50))  # each refresh waits for the device
    trainer = pl.Trainer(
        max_steps=cfg.steps,
        max_time=timedelta(minutes=cfg.minutes) if cfg.minutes else None,
        precision=cfg.precision if gpu or native_bfloat16() else "32-true",
        callbacks=callbacks,
        logger=CSVLogger(folder, "log"),  # a resumed run logs beside the earlier parts of its curve
        log_every_n_steps=50,
        gradient_clip_val=1.0,
        enable_model_summary=False,
        accelerator="auto",
        devices=1,
    )
    last = folder / "last.ckpt"
    trainer.fit(module, range(cfg.steps), ckpt_path=last if last.exists() else None, weights_only=True)
    trainer.save_checkpoint(last)
    done = trainer.global_step
    print(f"{name}: step {done} of {cfg.steps}, {done * cfg.batch} pictures, checkpoint {last}")

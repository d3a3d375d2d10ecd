"""The wandb dashboard, offline by default: imported only where logger=wandb is chosen. The CSV is kept beside it.

perfusion train logger=wandb                     # then: wandb sync FOLDER/wandb/offline-run-*
"""

from pathlib import Path

import pytorch_lightning as pl
import wandb
from omegaconf import DictConfig, OmegaConf

from perfusion.errors import UserError


def check_login(mine: DictConfig) -> None:
    """mine: logger.wandb. Raises UserError, before anything is trained, where its runs could not be sent at once."""
    try:
        mine.offline or wandb.login(verify=False)  # a login, whether or not the server answers just now
    except wandb.errors.Error as error:
        raise UserError(
            f"logger.wandb.offline=false needs a login ({' '.join(str(error).split())}); run wandb login, "
            "or leave offline=true and send the run later with wandb sync."
        ) from error


class Dashboard(pl.Callback):
    """Configuration and masks before training, then the pictures of every selection step.

    The curves (loss, gate, i_star_moved, selection) come by Lightning's own logger.
    """

    def __init__(self, logger, selection, settings: dict, folder: Path):
        self.logger, self.selection, self.settings, self.folder, self.shown = logger, selection, settings, folder, 0

    def on_train_start(self, trainer, module) -> None:
        if not trainer.is_global_zero:
            return
        run = self.logger.experiment
        run.config.update(self.settings, allow_val_change=True)
        if (self.folder / "masks.png").exists():
            run.log({"masks": wandb.Image(str(self.folder / "masks.png"))})

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        new = self.selection.history[-1:] if self.selection.drawn else []
        if not trainer.is_global_zero or not new or new[0]["step"] == self.shown:
            return
        self.shown = new[0]["step"]
        pictures = [wandb.Image(picture, caption=prompt) for prompt, picture in self.selection.drawn]
        self.logger.experiment.log({"drawn": pictures, "trainer/global_step": self.shown})


def show_end(logger, folder: Path, concept) -> None:
    """After training: the last picture, the attention maps, and the concept file as an artifact with its metadata."""
    run = logger.experiment
    for name in ("picture", "attention"):
        if (folder / f"{name}.png").exists():
            run.log({name: wandb.Image(str(folder / f"{name}.png"))})
    known = ("trigger", "super_category", "lock", "beta", "tau", "steps", "base_id", "base_hash", "config")
    metadata = {name: getattr(concept, name) for name in known}
    word = "".join(c for c in concept.trigger if c.isalnum() or c in "-_.") or "concept"
    artifact = wandb.Artifact(f"concept-{word}", type="concept", metadata=metadata)
    artifact.add_file(str(folder / "concept.safetensors"))
    run.log_artifact(artifact)


def show_front(cfg: DictConfig, result: dict, folder: Path) -> None:
    """One evaluation as a run of its own: the front as a table and as a picture. `finish` is called in any case."""
    mine = cfg.logger.wandb
    run = wandb.init(
        project=mine.project, entity=mine.entity, group=mine.group, job_type="evaluate", dir=str(folder.resolve()),
        mode="offline" if mine.offline else "online", name=f"{result['concept']} evaluated",
        config={"evaluation": OmegaConf.to_container(cfg.evaluation, resolve=True), "trained": result["trained"]},
    )  # fmt: skip
    failed = True
    try:
        points = result["summary"]
        run.log({"front": wandb.Table(columns=[*points[0]], data=[[*p.values()] for p in points])})
        if (folder / "front.png").exists():
            run.log({"front_picture": wandb.Image(str(folder / "front.png"))})
        run.summary.update({"definitions": result["definitions"]})
        failed = False
    finally:
        wandb.finish(exit_code=int(failed))


def finish(failed: bool) -> None:
    """Close the run, if one is open: otherwise the next job of a sweep would be written into it."""
    if wandb.run is not None:
        wandb.finish(exit_code=int(failed))

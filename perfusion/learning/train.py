"""perfusion train: pictures and a super-category in, a concept file, a result.json and a picture out."""

import time
from dataclasses import dataclass
from pathlib import Path

import hydra
import pytorch_lightning as pl
import torch
from diffusers.models.attention_processor import AttnProcessor
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from perfusion.atomic import write_json
from perfusion.config import CONF, check_counts, concept_of
from perfusion.errors import UserError
from perfusion.learning.data import ConceptData, picture_paths
from perfusion.learning.masks import mask_path
from perfusion.learning.methods import (
    at_points,
    check_method,
    module_of,
    open_learned,
    operating_points,
    put_on,
    word_of,
)
from perfusion.learning.models import check_covariance, check_model, load_pipeline, load_tokenizer
from perfusion.learning.selection import Selection
from perfusion.method.attention import look
from perfusion.method.concept import LOCKS
from perfusion.method.fingerprint import hash_of
from perfusion.method.sampling import Sampling, draw
from perfusion.method.text import add_placeholders, single_token
from perfusion.plots import attention_rows, grid
from perfusion.results import forget_peak, peak_mib
from perfusion.scorers import open_scorer

SMALL = 32 * 32  # latents: above, plain products would fill the memory, which grows with the square (SD 1.5: 64 x 64)


def train(cfg: DictConfig, folder: Path) -> dict:
    """Learn cfg.concept; write concept.safetensors, result.json, config.yaml, metrics.csv, masks.png, picture.png,
    attention.png, selection/STEP.png and last.ckpt to `folder`.

    Returns what result.json holds. Raises UserError, before any weights load, for input that cannot work.
    """
    failed = True
    try:
        started = time.perf_counter()
        forget_peak()
        concept = concept_of(cfg)
        check(cfg, concept)
        run = build(cfg, concept, folder)
        fit(run, cfg)
        seconds = time.perf_counter() - started
        # Under DDP the first process alone writes.
        result = finish(run, cfg, concept.name, seconds, folder) if run.trainer.is_global_zero else {}
        failed = False
        return result
    finally:
        if "wandb" in cfg.logger:
            from perfusion.learning import dashboard

            dashboard.finish(failed)


@dataclass
class Run:
    """What is built before a training and read after it."""

    trainer: pl.Trainer
    module: pl.LightningModule
    data: ConceptData
    selection: Selection
    covariance_condition: float | None
    dashboard: Logger | None  # wandb's logger, where it is chosen


def check(cfg: DictConfig, concept: DictConfig) -> None:
    """Raises UserError for input that cannot work; no weights are loaded."""
    check_model(cfg.model, ("path", "scorer", *(["segmenter"] if cfg.masks else [])))
    check_method(cfg.method)
    if not cfg.method.module:
        check_covariance(cfg.model, **cfg.covariance)
    tokenizer = load_tokenizer(cfg.model)
    single_token(tokenizer, concept.super_category)
    add_placeholders(tokenizer, [concept.name])
    if cfg.masks not in ("clipseg", None):
        raise UserError(f"masks={cfg.masks} is unknown; allowed are clipseg and null.")
    if cfg.lock not in LOCKS:
        raise UserError(f"lock={cfg.lock} is unknown; a concept is trained with one of: {', '.join(LOCKS)}.")
    check_counts(cfg, "batch_size", "max_steps", *(["shots"] if cfg.shots is not None else []))
    if cfg.i_star_gradient and cfg.model.get("gradient_checkpointing"):
        raise UserError(
            "i_star_gradient=true does not go with model.gradient_checkpointing=true; set one of them to false."
        )
    if cfg.resume and not Path(cfg.resume).is_file():
        raise UserError(f"resume={cfg.resume} does not exist; give a run's last.ckpt, or null to start anew.")


def build(cfg: DictConfig, concept: DictConfig, folder: Path) -> Run:
    """Trainer, masks, models, module and callbacks, in the order in which what is cheap can still fail."""
    checkpoint = ModelCheckpoint(
        folder, filename="last", every_n_train_steps=cfg.selection.every or cfg.max_steps, enable_version_counter=False
    )
    trainer = trainer_of(cfg, checkpoint, folder)
    paths = picture_paths(concept.images)[: cfg.shots]
    data = ConceptData(paths, cfg.model.resolution, concept.super_category, cfg.model.segmenter, cfg.masks, cfg.flip)
    if cfg.masks:
        data.show(folder / "masks.png")
        print(f"masks:    {folder / 'masks.png'} (edit {mask_path(paths[0]).parent}/*.mask.png to change one)")

    scorer = open_scorer(cfg.model.scorer)  # before the long part: it may have to be downloaded
    pl.seed_everything(cfg.seed, verbose=False)
    pipe = load_pipeline(cfg.model, trainer.strategy.root_device)
    positions = (cfg.model.resolution // pipe.vae_scale_factor) ** 2
    if pipe.device.type == "cpu" and not cfg.model.get("attention") and positions <= SMALL:
        pipe.unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward is slower than plain products there
    # Frozen from here on, so remembered: load_concepts asks for it at every selection.
    pipe._perfusion_base_hash = hash_of(pipe)
    module, metadata, condition = module_of(cfg, pipe, data.encode(pipe.vae), concept)
    settings = OmegaConf.to_container(cfg, resolve=True)
    file = folder / "concept.safetensors"
    selection = Selection(cfg.selection, Sampling.of(cfg.model), scorer, data.pictures, metadata, file)
    trainer.callbacks.insert(0, selection)
    dashboard = next((logger for logger in trainer.loggers if type(logger).__name__ == "WandbLogger"), None)
    if dashboard:
        from perfusion.learning.dashboard import Dashboard

        trainer.callbacks.insert(1, Dashboard(dashboard, selection, settings, folder))
    return Run(trainer, module, data, selection, condition, dashboard)


def fit(run: Run, cfg: DictConfig) -> None:
    micro_batches = cfg.max_steps * cfg.trainer.accumulate_grad_batches
    run.trainer.fit(run.module, range(micro_batches), ckpt_path=cfg.resume, weights_only=True)


def finish(run: Run, cfg: DictConfig, name: str, seconds: float, folder: Path) -> dict:
    """The kept concept's pictures and files; returns what result.json holds."""
    file, pipe = run.selection.path, run.module.pipe
    concept = open_learned(cfg.method, file)
    if cfg.concept_file:
        concept.save(cfg.concept_file)
    run.module.detach()
    trained = {"train_seconds": round(seconds, 1), "peak_mib": peak_mib()}
    if cfg.picture:
        show(pipe, concept, run.data, cfg, folder / "picture.png")
    if cfg.attention:
        show_attention(pipe, concept, cfg, folder / "attention.png")
    result = {
        "concept": name, "method": cfg.method.name, **trained, "kept_step": concept.steps,
        "trainable": sum(p.numel() for p in run.module.parameters()), "file_bytes": file.stat().st_size,
        "covariance_condition": run.covariance_condition, "selection": run.selection.history,
    }  # fmt: skip
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    write_json(folder / "result.json", result)
    if run.dashboard:
        from perfusion.learning.dashboard import show_end

        show_end(run.dashboard, folder, concept)
    print(f"concept:  {cfg.concept_file or file}")
    if cfg.picture:
        print(f"picture:  {folder / 'picture.png'}")
    print(f"{name}: step {concept.steps} of {cfg.max_steps} kept, {seconds:.0f} s")
    return result


def trainer_of(cfg: DictConfig, checkpoint: ModelCheckpoint, folder: Path) -> pl.Trainer:
    """The Lightning trainer of cfg.trainer. Raises UserError where this machine has not what it asks for."""
    try:
        return pl.Trainer(
            **cfg.trainer, max_steps=cfg.max_steps, callbacks=[checkpoint], logger=loggers_of(cfg.logger, folder),
            default_root_dir=folder, enable_model_summary=False, log_every_n_steps=5,
        )  # fmt: skip
    except (MisconfigurationException, ImportError, ValueError, TypeError) as error:
        raise UserError(
            f"trainer={OmegaConf.to_container(cfg.trainer)} cannot run here ({' '.join(str(error).split())}); "
            f"allowed are: {', '.join(sorted(p.stem for p in (CONF / 'trainer').glob('*.yaml')))}, on a machine that has "
            "what they name."
        ) from error


def loggers_of(logger: DictConfig, folder: Path) -> list:
    """The one logger of conf/logger/csv.yaml, or several by name; each writes to `folder` or to its own save_dir."""
    several = [logger] if "_target_" in logger else [logger[name] for name in logger]
    # Absolute, as wandb's own process keeps the working directory that it was started in.
    return [hydra.utils.instantiate(one, save_dir=one.get("save_dir") or str(folder.resolve())) for one in several]


@torch.no_grad()
def show_attention(pipe, concept, cfg: DictConfig, path: Path) -> None:
    """Where the words of the selection's first four prompts are looked at."""
    prompts = [p.format(word_of(concept)) for p in cfg.selection.prompts[:4]]
    handle = put_on(pipe, concept)
    looked = look(pipe, prompts, [cfg.selection.seed + i for i in range(len(prompts))], Sampling.of(cfg.model))
    handle.unload()
    grid(attention_rows(looked), path)


@torch.no_grad()
def show(pipe, concept, data: ConceptData, cfg: DictConfig, path: Path) -> None:
    """The photos, the base model's idea of the word, the concept in the selection's prompts at three strengths."""
    prompts = list(cfg.selection.prompts)
    seeds = [cfg.selection.seed + i for i in range(len(prompts))]
    word, named = concept.super_category, [p.format(word_of(concept)) for p in prompts]
    sampling = Sampling.of(cfg.model)
    base = draw(pipe, [p.format(word) for p in prompts], seeds, sampling)
    rows = [("photos", [("", p) for p in data.pictures[: len(prompts)]]),
            ("base model", [(p.format(word), i) for p, i in zip(prompts, base)])]  # fmt: skip
    handle = put_on(pipe, concept)
    for label, point in operating_points(cfg.method.strength):
        with at_points(handle, [point] * len(prompts)):
            drawn = draw(pipe, named, seeds, sampling)
        rows.append((f"{concept.trigger}\n{label}", list(zip(named, drawn))))
    handle.unload()
    grid(rows, path)


def run(cfg: DictConfig) -> dict:
    return train(cfg, Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir))

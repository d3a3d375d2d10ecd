"""perfusion train: pictures and a super-category in, a concept file, a result.json and a picture out."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger

from perfusion.atomic import check_place, write_json, write_text
from perfusion.config import check as check_keys
from perfusion.config import concept_of
from perfusion.errors import Stopped, UserError, told
from perfusion.learning import resume
from perfusion.learning.data import ConceptData, picture_paths
from perfusion.learning.masks import mask_path
from perfusion.learning.methods import (
    about_run,
    at_points,
    module_of,
    open_learned,
    operating_points,
    put_on,
    word_of,
)
from perfusion.learning.models import check_covariance, check_model, load_pipeline, load_tokenizer, plain_attention
from perfusion.learning.selection import Selection
from perfusion.learning.trainer import trainer_of
from perfusion.method.attention import look
from perfusion.method.fingerprint import hash_of
from perfusion.method.sampling import Sampling, draw
from perfusion.method.text import add_placeholders, single_token
from perfusion.plots import attempt, attention_rows, grid
from perfusion.results import forget_peak, peak_mib
from perfusion.scorers import open_scorer

log = logging.getLogger(__name__)


def train(cfg: DictConfig, folder: Path, callbacks: Sequence[pl.Callback] = ()) -> dict:
    """Learn cfg.concept; write concept.safetensors, result.json, config.yaml, metrics.csv, masks.png, picture.png,
    attention.png, selection/STEP.png and last.ckpt to `folder`.

    callbacks: more of Lightning's, called before the training's own: to watch it, or to stop it (trainer.should_stop).
    Returns what result.json holds. Raises UserError, before any weights load, for input that cannot work, and Stopped
    where a signal ended it, after all is saved.
    """
    failed, cfg = True, check_keys("train", cfg)
    try:
        started = time.perf_counter()
        forget_peak()
        concept = concept_of(cfg)
        check(cfg, concept)
        run = build(cfg, concept, folder)
        run.trainer.callbacks[:0] = callbacks  # before Selection, which saves when one stops the training
        fit(run, cfg)
        seconds = time.perf_counter() - started
        # Under DDP the first process alone writes.
        result = finish(run, cfg, concept.name, seconds, folder) if run.trainer.is_global_zero else {}
        if run.selection.signal:
            raise Stopped(run.selection.signal)
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
    if not cfg.method.module:
        check_covariance(cfg.model, **cfg.covariance)
    tokenizer = load_tokenizer(cfg.model)
    single_token(tokenizer, concept.super_category)
    add_placeholders(tokenizer, [concept.name])
    paths = picture_paths(concept.images)
    if cfg.shots is not None and cfg.shots > len(paths):
        raise UserError(
            f"shots={cfg.shots} is more than the {len(paths)} pictures in {concept.images}; null learns from all."
        )
    if cfg.concept_file:
        check_place("concept_file", cfg.concept_file, "a concept file")
    if cfg.resume:
        resume.check(resume.read(cfg.resume), cfg, about_run(cfg, concept) | resume.of_pictures(paths[: cfg.shots]))


def build(cfg: DictConfig, concept: DictConfig, folder: Path) -> Run:
    """Trainer, masks, models, module and callbacks, in the order in which what is cheap can still fail."""
    trainer = trainer_of(cfg, folder)
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    paths = picture_paths(concept.images, tell=False)[: cfg.shots]
    data = ConceptData(paths, cfg.model.resolution, concept.super_category, cfg.model.segmenter, cfg.masks, cfg.flip)
    device = trainer.strategy.root_device
    if trainer.is_global_zero:
        log.info(
            f"learning:  {concept.name} (a {concept.super_category}) from {len(paths)} "
            f"picture{'s' * (len(paths) > 1)} in {told(paths[0].parent)}, on {device}"
        )
    if cfg.masks:
        attempt(data.show, path=folder / "masks.png")
        masks = told(mask_path(paths[0]).parent)
        log.info(f"masks:     {told(folder / 'masks.png')} (to change one, edit {masks}/*.mask.png)")

    scorer = open_scorer(cfg.model.scorer)  # before the long part: it may have to be downloaded
    pl.seed_everything(cfg.seed, verbose=False)
    pipe = load_pipeline(cfg.model, device)
    if not cfg.model.get("attention"):
        plain_attention(pipe, cfg.model.resolution)
    # Frozen from here on, so remembered: load_concepts asks for it at every selection.
    pipe._perfusion_base_hash = hash_of(pipe)
    module, metadata, condition = module_of(cfg, pipe, data.encode(pipe.vae), concept)
    module.of_pictures = resume.of_pictures(paths)
    settings = OmegaConf.to_container(cfg, resolve=True)
    file = folder / "concept.safetensors"
    selection = Selection(cfg.selection, Sampling.of(cfg.model), scorer, data.pictures, metadata, file)
    trainer.callbacks.append(selection)
    dashboard = next((logger for logger in trainer.loggers if type(logger).__name__ == "WandbLogger"), None)
    if dashboard:
        from perfusion.learning.dashboard import Dashboard

        trainer.callbacks.append(Dashboard(dashboard, selection, settings, folder))
    if cfg.resume:
        checkpoint = resume.read(cfg.resume)
        resume.check(checkpoint, cfg, module.about())
        resume.check_tensors(checkpoint, cfg, module.state_dict())
    return Run(trainer, module, data, selection, condition, dashboard)


def fit(run: Run, cfg: DictConfig) -> None:
    """Train. Raises UserError, saying what is kept, where the loss is not finite or the memory too small."""
    micro_batches = cfg.max_steps * cfg.trainer.accumulate_grad_batches
    file, checkpoint = run.selection.path, cfg.resume and resume.checkpoint_of(cfg.resume)
    try:
        run.trainer.fit(run.module, range(micro_batches), ckpt_path=checkpoint, weights_only=True)
    except (UserError, MemoryError, RuntimeError) as error:
        if not isinstance(error, UserError) and "memory" not in str(error):
            raise
        said = str(error) if isinstance(error, UserError) else (
            f"training stopped: the memory is too small ({' '.join(str(error).split())[:100]}); give a smaller batch_size than "
            f"{cfg.batch_size}, model.draw_batch than {cfg.model.draw_batch}, or model.gradient_checkpointing=true."
        )  # fmt: skip
        raise UserError(f"{said} {f'What was kept so far is in {file}.' if file.exists() else ''}".strip()) from error
    if run.trainer.is_global_zero and not file.exists():  # no step was trained
        run.module.concept(**run.selection.metadata).save(file)


def finish(run: Run, cfg: DictConfig, name: str, seconds: float, folder: Path) -> dict:
    """The kept concept's files, then its pictures, which a training that a signal ended goes without.

    Returns what result.json holds. Raises UserError, at the very end, where concept_file could not be written.
    """
    file, pipe = run.selection.path, run.module.pipe
    concept, failure = open_learned(cfg.method, file), None
    if cfg.concept_file:
        try:
            concept.save(cfg.concept_file)
        except OSError as error:
            failure = error
    result = {
        "concept": name, "method": cfg.method.name, "train_seconds": round(seconds, 1), "peak_mib": peak_mib(),
        "kept_step": concept.steps,
        "trainable": sum(p.numel() for p in run.module.parameters()), "file_bytes": file.stat().st_size,
        "covariance_condition": run.covariance_condition, "selection": run.selection.history,
    }  # fmt: skip
    write_json(folder / "result.json", result)
    kept = file if failure or not cfg.concept_file else cfg.concept_file
    if run.selection.signal:
        print(f"concept:   {told(kept)}")
        print(f"{name}: stopped at step {run.module.global_step} of {cfg.max_steps}, step {concept.steps} kept, {seconds:.0f} s; "
              f"to go on: resume={folder}", flush=True)  # fmt: skip
        return result
    run.module.detach()
    if cfg.picture:
        attempt(show, pipe, concept, run.data, cfg, path=folder / "picture.png")
    if cfg.attention:
        attempt(show_attention, pipe, concept, cfg, path=folder / "attention.png")
    if run.dashboard:
        from perfusion.learning.dashboard import show_end

        show_end(run.dashboard, folder, concept)
    print(f"kept:      step {concept.steps} of {run.trainer.global_step}, {seconds:.0f} s")
    print(f"concept:   {told(kept)} ({file.stat().st_size:,} bytes)")
    if cfg.picture:
        print(f"picture:   {told(folder / 'picture.png')}")
    if failure:
        raise UserError(
            f"concept_file={cfg.concept_file} could not be written ({failure.strerror or failure}); the concept is in {file}, from where "
            "it can be copied."
        )
    return result


@torch.no_grad()
def show_attention(pipe, concept, cfg: DictConfig, path: Path) -> None:
    """Where the words of the selection's first four prompts are looked at."""
    prompts = [p.format(word_of(concept)) for p in cfg.selection.prompts[:4]]
    handle = put_on(pipe, concept)
    try:
        looked = look(pipe, prompts, [cfg.selection.seed + i for i in range(len(prompts))], Sampling.of(cfg.model))
    finally:
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
    try:
        for label, point in operating_points(cfg.method.strength):
            with at_points(handle, [point] * len(prompts)):
                drawn = draw(pipe, named, seeds, sampling)
            rows.append((f"{concept.trigger}\n{label}", list(zip(named, drawn))))
    finally:
        handle.unload()
    grid(rows, path)


def run(cfg: DictConfig) -> dict:
    return train(cfg, Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir))

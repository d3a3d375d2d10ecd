"""The method that learns, by configuration (conf/method): Perfusion, or a baseline that is measured beside it.

A module (LightningModule) has `concept(**metadata)`, `detached()`, `attach()` and `detach()`; what it leaves has `trigger`,
`super_category`, `word`, `steps`, `save(path)` and, of a baseline, `on(pipe)`, whose handle has `at(strength)` and `unload()`.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from perfusion.learning.models import base_model, covariance
from perfusion.learning.module import PerfusionModule, about
from perfusion.method.concept import Concept
from perfusion.method.edit import inverse_metric
from perfusion.method.pipeline import LoadedConcepts, load_concepts
from perfusion.method.sampling import Sampling

SETTINGS = ("seed", "masks", "shots", "flip", "batch_size", "max_steps")  # that every method's file tells
BIASES = (0.6, 0.75, 0.9)  # of a picture: more likeness, the training bias, more of the prompt
OF_PERFUSION = ("lock", "i_star_decay", "masked_prior", "i_star_gradient")


def about_run(cfg: DictConfig, concept: DictConfig) -> dict:
    """What a run that goes on must have in common with the one before, as far as it is known before any weights load."""
    if cfg.method.module:
        return {
            "concept.name": concept.name,
            "concept.super_category": concept.super_category,
            "method": cfg.method.name,
        }
    return about(concept.name, concept.super_category, cfg.lock)


def module_of(cfg: DictConfig, pipe, latents, concept: DictConfig) -> tuple:
    """The LightningModule of cfg.method, what its files tell beside what was learned, and C's condition (None of baselines)."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    metadata = {"base_id": cfg.model.id, "base_hash": pipe._perfusion_base_hash, "licence": cfg.model.licence}
    metadata["config"] = {name: settings[name] for name in SETTINGS} | base_model(cfg.model)
    common = {"batch_size": cfg.batch_size, "seed": cfg.seed}
    if cfg.method.module:
        metadata["config"]["method"] = settings["method"]
        cls = hydra.utils.get_class(
            cfg.method.module
        )  # not instantiate, which would make DictConfigs of what it is given
        words = (concept.name, concept.super_category)
        return (
            cls(pipe, latents, *words, method=settings["method"], sampling=Sampling.of(cfg.model), **common),
            metadata,
            None,
        )
    C = covariance(pipe, cfg.model, **cfg.covariance)
    metadata["config"] |= {name: settings[name] for name in OF_PERFUSION}
    metadata |= {"covariance_hash": C.hash, "shrinkage": cfg.model.shrinkage}
    module = PerfusionModule(
        pipe, latents, concept.name, concept.super_category, inverse_metric(C.C, cfg.model.shrinkage),
        beta=cfg.beta, tau=cfg.tau, lock=cfg.lock, i_star_decay=cfg.i_star_decay, masked_prior=cfg.masked_prior,
        learning_rate=settings["model"]["learning_rate"], i_star_gradient=cfg.i_star_gradient, **common,
    )  # fmt: skip
    return module, metadata, C.condition


def open_learned(method: DictConfig, path: str | Path):
    """The file that the method's training saved."""
    cls = hydra.utils.get_class(method.learned) if method.learned else Concept  # the class: its `load` makes the object
    return cls.load(path)


def word_of(learned) -> str:
    """What stands for the concept in a prompt."""
    return getattr(learned, "word", learned.trigger)


def put_on(pipe, learned, **options):
    """The concept on the pipeline; the handle's `unload` takes it off. options: of load_concepts, for Perfusion alone."""
    return (
        load_concepts(pipe, {learned.trigger: learned}, **options) if isinstance(learned, Concept) else learned.on(pipe)
    )


def operating_points(strengths: list[float] | None) -> list[tuple[str, dict]]:
    """Three of them for a picture, each with what it is called: most likeness first."""
    if not strengths:
        return [(f"bias {beta}", {"beta": beta, "tau": None, "lock": None}) for beta in BIASES]
    chosen = sorted(strengths)[-3:][::-1]
    return [(f"strength {s}", {"strength": s}) for s in chosen]


def at_points(handle, points: list[dict]):
    """The with-block in which a batch is drawn, each picture at its operating point; a baseline has one for them all."""
    if isinstance(handle, LoadedConcepts):
        return handle.gate(**{name: [point[name] for point in points] for name in ("beta", "tau", "lock")})
    return handle.at(points[0]["strength"])

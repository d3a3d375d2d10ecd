"""perfusion generate: prompts and concept files in, pictures out."""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from perfusion.atomic import whole
from perfusion.config import check_counts
from perfusion.errors import UserError
from perfusion.learning.models import check_device, check_model, load_pipeline, load_tokenizer
from perfusion.method.concept import Concept
from perfusion.method.pipeline import check_gate, load_concepts
from perfusion.method.sampling import Sampling, draw
from perfusion.method.text import add_placeholders, held_tokens
from perfusion.plots import grid


def generate(cfg: DictConfig, folder: Path) -> list[Path]:
    """Draw cfg.images pictures of each prompt; returns their paths, the overview last."""
    if OmegaConf.is_missing(cfg, "prompts") or not cfg.prompts:
        raise UserError("prompts is not given; say what to draw, as in prompts='[\"a teddy* on a beach\"]'.")
    prompts = [cfg.prompts] if isinstance(cfg.prompts, str) else list(cfg.prompts)
    if cfg.concepts and not OmegaConf.is_dict(cfg.concepts):
        raise UserError(f"concepts={cfg.concepts} needs a trigger word and a file, as {{teddy*: teddy.safetensors}}.")
    concepts = {trigger: Concept.load(path) for trigger, path in (cfg.concepts or {}).items()}
    check_model(cfg.model, ("path",))
    check_gate(concepts, beta=cfg.beta, tau=cfg.tau, lock=cfg.lock)
    tokenizer, ids = add_placeholders(load_tokenizer(cfg.model), list(concepts))
    check_counts(cfg, "images")
    # By its tokens: "teddy*s" and "teddy *" are other words, and of a long prompt the end is cut.
    for prompt, held in zip(prompts, held_tokens(tokenizer, prompts)):
        if concepts and not held & set(ids.values()):
            print(f'warning: prompt "{prompt}" holds none of {list(concepts)}, so the base model alone draws it.')
    device = check_device(cfg.device)
    pipe = load_pipeline(cfg.model, device)
    if concepts:
        load_concepts(pipe, concepts).set_gate(beta=cfg.beta, tau=cfg.tau, lock=cfg.lock)
    repeated = [p for p in prompts for _ in range(cfg.images)]
    seeds = [cfg.seed + i for _ in prompts for i in range(cfg.images)]
    drawn = draw(pipe, repeated, seeds, Sampling.of(cfg.model), cfg.negative_prompt)
    paths = [folder / f"{i // cfg.images:03d}-{i % cfg.images:02d}.png" for i in range(len(drawn))]
    for path, picture in zip(paths, drawn):
        with whole(path) as part:
            picture.save(part, "PNG")
    rows = [(p, [("", i) for i in drawn[k * cfg.images : (k + 1) * cfg.images]]) for k, p in enumerate(prompts)]
    grid([("", [(p, i) for _, i in pictures]) for p, pictures in rows], folder / "picture.png")
    print(f"{len(drawn)} pictures and an overview: {folder / 'picture.png'}")
    return [*paths, folder / "picture.png"]


def run(cfg: DictConfig) -> None:
    generate(cfg, Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir))

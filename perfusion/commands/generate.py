"""perfusion generate: prompts and concept files in, pictures out."""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from perfusion.atomic import whole
from perfusion.config import check
from perfusion.errors import told
from perfusion.learning.models import check_device, check_model, load_pipeline, load_tokenizer
from perfusion.method.concept import Concept
from perfusion.method.gates import check_gate
from perfusion.method.pipeline import load_concepts
from perfusion.method.sampling import Sampling, draw
from perfusion.method.text import add_placeholders, held_tokens
from perfusion.method.text_encoders import text_encoder_of
from perfusion.plots import attempt, grid

ACROSS, DOWN = 12, 40  # pictures of a prompt, and prompts, that the overview shows

log = logging.getLogger(__name__)


def generate(cfg: DictConfig, folder: Path) -> list[Path]:
    """Draw cfg.images pictures of each prompt; returns their paths, the overview last."""
    cfg = check("generate", cfg)
    prompts, gate = list(cfg.prompts), OmegaConf.to_container(OmegaConf.masked_copy(cfg, ["beta", "tau", "lock"]))
    concepts = {trigger: Concept.load(path) for trigger, path in (cfg.concepts or {}).items()}
    check_model(cfg.model, ("path",))
    check_gate(concepts, **gate)
    tokenizer, ids = add_placeholders(load_tokenizer(cfg.model), list(concepts))
    device = check_device(cfg.device)
    pipe = load_pipeline(cfg.model, device)
    if concepts:
        # By its tokens: "teddy*s" and "teddy *" are other words, and of a long prompt the end is cut.
        for prompt, held in zip(prompts, held_tokens(tokenizer, prompts, text_encoder_of(pipe))):
            if not held & set(ids.values()):
                log.warning(f'prompt "{prompt}" holds none of {list(concepts)}, so the base model alone draws it.')
        load_concepts(pipe, concepts).set_gate(**gate)
    repeated = [p for p in prompts for _ in range(cfg.images)]
    seeds = [cfg.seed + i for _ in prompts for i in range(cfg.images)]
    paths = [folder / f"{i // cfg.images:03d}-{i % cfg.images:02d}.png" for i in range(len(repeated))]
    sampling, drawn = Sampling.of(cfg.model), []
    for start in range(0, len(repeated), sampling.batch):  # each is kept, whatever ends the command
        some = slice(start, start + sampling.batch)
        drawn += draw(pipe, repeated[some], seeds[some], sampling, cfg.negative_prompt)
        for path, picture in zip(paths[some], drawn[some]):
            with whole(path) as part:
                picture.save(part, "PNG")
    of = lambda k: drawn[k * cfg.images : (k + 1) * cfg.images][:ACROSS]
    overview = folder / "picture.png"
    if attempt(grid, [("", [(p, i) for i in of(k)]) for k, p in enumerate(prompts[:DOWN])], path=overview):
        paths.append(overview)
    print(f"{len(drawn)} pictures{' and an overview' if overview in paths else ''}: {told(paths[-1])}")
    return paths


def run(cfg: DictConfig) -> None:
    generate(cfg, Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir))

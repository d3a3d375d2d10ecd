"""perfusion evaluate: one concept over prompts x noises x operating points, into result.json, scores.csv and figures.

Perfusion's gate is per sample, so every operating point (lock, tau, beta) of one concept is drawn in the same large
batches; a baseline's strength acts on the whole model, so its points are drawn one after the other.
"""

import itertools
import time
from dataclasses import replace
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from perfusion.config import check, concept_of
from perfusion.errors import UserError
from perfusion.evaluation.fronts import REFERENCE, Bootstrap, axis_of, hypervolume, interval, on_front
from perfusion.evaluation.prompts import Prompt, read_prompts
from perfusion.learning.data import real_pictures
from perfusion.learning.methods import at_points, open_learned, put_on, word_of
from perfusion.learning.models import check_model, load_pipeline
from perfusion.method.concept import Concept
from perfusion.method.sampling import Sampling, draw
from perfusion.results import mean, surroundings, write_csv, write_result
from perfusion.scorers import check_scorer, open_scorer

DEFINITIONS = {
    "text": "raw cosine (never x 2.5) of the CLIP embeddings of a drawn picture and of its prompt, the concept's word "
    "replaced by its super-category's; higher is better",
    "text_deleted": "as text, the concept's word deleted from the prompt instead",
    "image": "raw cosine of the CLIP embeddings of a drawn picture and a real one, mean over all real pictures of the "
    "concept (so that the mean over pictures is that over all pairs); higher is better",
    "dino": "as image, with the embeddings of the scorer that evaluation.dino names",
    "facts": "share of the facts that the prompt names (place, color, accessory, second object, art) which Emojiland's "
    "reader finds in the drawn picture; higher is better",
    "drawing": "1 where Emojiland's reader takes the drawn object for the concept's very drawing out of all drawings, "
    "else 0; not asked of prompts with a second object; higher is better",
    "front": "area that the Pareto front of all points dominates above the reference point (text, image), in squared cosines, "
    "with its 95 % bootstrap interval over prompts; pareto: no other point is at least as good in both and better in one",
    "read_*": "1 where Emojiland's reader finds this fact as the prompt has it, else 0; empty where it is not asked",
    "drift": "difference of pictures of prompts without the concept's word, drawn from the same noise with and without "
    "the concept loaded: mse is the mean squared difference of pixels in [0, 1], cosine_distance 1 - raw CLIP cosine of "
    "the pair; without_word: the word deleted, super_category: replaced by the bare super-category word; loaded: as "
    "users load it (off where its word is absent), always_on: the edit acts on every prompt; 0 is best",
}


def points_of(cfg: DictConfig) -> list[dict]:
    """Operating points: every lock x tau x beta of the evaluation's lists, or a baseline's strengths."""
    if cfg.get("strength"):
        return [{"strength": float(s)} for s in cfg.strength]
    return [{"lock": k, "tau": t, "beta": b} for k, t, b in itertools.product(cfg.lock, cfg.tau, cfg.beta)]


def check_evaluation(cfg: DictConfig, model: DictConfig, lock: str | None) -> list[Prompt]:
    """The prompts. lock: the concept's. Raises UserError, before any weights load, for an evaluation that cannot work."""
    reader = reader_of(cfg)
    prompts = read_prompts(cfg.prompts, cfg.split, reader and reader.FACTS)
    for value in cfg.lock:
        if value not in (None, "global", lock):
            raise UserError(
                f"evaluation.lock holds {value}; allowed are global, the concept's own {lock}, and null for that."
            )
    if cfg.dino:
        check_scorer(cfg.dino)
    if reader and any(p.facts for p in prompts):
        reader.check(cfg.reader, model.resolution)
    return prompts


def reader_of(cfg: DictConfig):
    """The class that evaluation.reads names, such as emojiland.facts.FactReader; None where no facts are asked."""
    if not cfg.reader or not cfg.get("reads"):
        return None
    try:
        reader = hydra.utils.get_class(
            cfg.reads
        )  # not an object: which facts it reads is asked before its weights load
        reader.FACTS, reader.check  # noqa: B018 what a reader has
        return reader
    except Exception as error:  # whatever the import of a module raises
        raise UserError(
            f"evaluation.reads={cfg.reads} cannot be imported ({' '.join(str(error).split())[:200]}); give a reader's class, "
            "such as perfusion.emojiland.facts.FactReader, or null."
        ) from error


class Scores:
    """Every score of a picture; the scorers, the real pictures' embeddings and the prompts' are computed once."""

    def __init__(
        self, prompts: list[Prompt], word: str, artist: str | None, real: list[Image.Image], cfg: DictConfig, clip: str
    ):
        self.prompts = prompts
        self.clip, self.dino = open_scorer(clip), open_scorer(cfg.dino) if cfg.dino else None
        self.real = embed(self.clip, real)
        self.texts = self.clip.texts([p.with_word(word) for p in prompts])
        self.deleted = self.clip.texts([p.without_word() for p in prompts])
        self.real_dino = embed(self.dino, real) if self.dino else None
        asked = reader_of(cfg) and any(p.facts for p in prompts)
        self.reader = reader_of(cfg)(cfg.reader, word, artist) if asked else None

    def of(self, pictures: list[Image.Image], which: list[int]) -> list[dict]:
        """One dict of scores a picture; which: the index of each one's prompt."""
        e = self.clip.images(pictures)
        columns = {
            "text": (e * self.texts[which]).sum(-1),
            "text_deleted": (e * self.deleted[which]).sum(-1),
            "image": (e @ self.real.T).mean(-1),
        }
        if self.dino:
            columns["dino"] = (self.dino.images(pictures) @ self.real_dino.T).mean(-1)
        rows = [{k: round(v[i].item(), 6) for k, v in columns.items()} for i in range(len(pictures))]
        if self.reader:
            facts = [self.prompts[i].facts for i in which]
            for row, said, asked in zip(rows, self.reader.read(pictures, facts), facts):
                row["facts"] = mean([said[f"read_{name}"] for name in asked])
                row |= {k: None if v is None else int(v) for k, v in said.items()}
        return rows


def embed(scorer, pictures: list[Image.Image], batch: int = 32) -> torch.Tensor:
    """[n, D], unit length, some pictures at a time."""
    return torch.cat([scorer.images(pictures[i : i + batch]) for i in range(0, len(pictures), batch)])


def seed_of(cfg: DictConfig, prompt: int, k: int) -> int:
    return cfg.seed + 1000 * k + prompt


@torch.no_grad()
def score_points(
    pipe, concept, scores: Scores, cfg: DictConfig, model: DictConfig
) -> tuple[dict[str, list], list[list[Image.Image]]]:
    """Columns (point, prompt, k, every score) with one row a picture, and the first prompts' pictures, a row a prompt."""
    points = points_of(cfg)
    todo = list(itertools.product(range(len(scores.prompts)), range(cfg.seeds), range(len(points))))
    rows, shown, sampling = [], [[] for _ in scores.prompts[:4]], replace(Sampling.of(model), batch=cfg.batch_size)
    together = [todo] if isinstance(concept, Concept) else [[x for x in todo if x[2] == p] for p in range(len(points))]
    parts = [one[i : i + cfg.batch_size] for one in together for i in range(0, len(one), cfg.batch_size)]
    handle = put_on(pipe, concept)
    try:
        for part in tqdm(parts, desc=f"drawing {concept.trigger}", unit="batch"):
            prompts = [scores.prompts[i].with_word(word_of(concept)) for i, _, _ in part]
            seeds = [seed_of(cfg, i, k) for i, k, _ in part]
            with at_points(handle, [points[p] for *_, p in part]):
                drawn = draw(pipe, prompts, seeds, sampling)
            for (i, k, p), picture, row in zip(part, drawn, scores.of(drawn, [i for i, _, _ in part])):
                rows.append({"point": p, "prompt": i, "k": k} | row)
                if k == 0 and i < len(shown):
                    shown[i].append(picture)
    finally:
        handle.unload()
    rows.sort(key=lambda row: (row["prompt"], row["k"], row["point"]))
    return {name: [row[name] for row in rows] for name in rows[0]}, shown


@torch.no_grad()
def drift(pipe, concept, scores: Scores, cfg: DictConfig, model: DictConfig) -> dict:
    """What loading the concept does to prompts without its word (DEFINITIONS["drift"]), one picture a prompt."""
    prompts = scores.prompts
    seeds = [seed_of(cfg, i, 0) for i in range(len(prompts))]
    sets = {
        "without_word": [p.without_word() for p in prompts],
        "super_category": [p.with_word(concept.super_category) for p in prompts],
    }
    sampling = replace(Sampling.of(model), batch=cfg.batch_size)
    drawn = lambda texts: draw(pipe, texts, seeds, sampling)
    base = {name: drawn(texts) for name, texts in sets.items()}
    result = {name: {} for name in sets}
    for mode in ("loaded", "always_on") if isinstance(concept, Concept) else ("loaded",):
        handle = put_on(pipe, concept, **({"always_on": True} if mode == "always_on" else {}))
        try:
            for name, texts in sets.items():
                changed = drawn(texts)
                x, y = (np.stack([np.asarray(i, np.float32) / 255 for i in part]) for part in (base[name], changed))
                cosine = (embed(scores.clip, base[name]) * embed(scores.clip, changed)).sum(-1).mean().item()
                distance = 0.0 if np.array_equal(x, y) else 1 - cosine
                result[name][mode] = {
                    "mse": round(float(((x - y) ** 2).mean()), 7),
                    "cosine_distance": round(distance, 5),
                }
        finally:
            handle.unload()
    return result


def summary(points: list[dict], columns: dict[str, list]) -> list[dict]:
    """Each operating point with the mean of every score over its pictures, and whether it is on the Pareto front."""
    means = []
    for index, point in enumerate(points):
        here = [i for i, p in enumerate(columns["point"]) if p == index]
        scores = {k: mean([v[i] for i in here]) for k, v in columns.items() if k not in ("point", "prompt", "k")}
        means.append(point | scores)
    return [point | {"pareto": best} for point, best in zip(means, on_front(means))]


def front_of(points: list[dict], columns: dict[str, list], prompts: int) -> dict | None:
    """Hypervolume of the points' front, with its interval; None where one point makes no front."""
    if len(points) < 2:
        return None
    shape = (prompts, -1, len(points))
    drawn = np.stack([np.array(columns[name]).reshape(shape).mean(1) for name in ("text", "image")], -1)
    area = hypervolume(Bootstrap(["one"], prompts)(drawn[None]), REFERENCE)
    return {"reference": REFERENCE, "hypervolume": round(float(area[0]), 6), "interval": interval(area)}


def evaluate(
    pipe,
    concept,
    real: list[Image.Image],
    artist: str | None,
    cfg: DictConfig,
    model: DictConfig,
    folder: Path,
) -> dict:
    """Score a concept (of any method); write pictures.png, scores.csv and front.png to `folder`; return what result.json is to hold.

    One operating point has scores, and no front. real: the concept's pictures; artist: whose drawing it is, for the reader, or None.
    """
    from perfusion.evaluation.figure import concept_figure
    from perfusion.plots import attempt, contact_sheet

    started = time.perf_counter()
    prompts, points = check_evaluation(cfg, model, concept.lock), points_of(cfg)
    scores = Scores(prompts, concept.super_category, artist, real, cfg, model.scorer)
    columns, shown = score_points(pipe, concept, scores, cfg, model)
    result = {
        "concept": concept.trigger,
        "definitions": {k: v for k, v in DEFINITIONS.items() if k in columns or k in ("drift", "front", "read_*")},
        "summary": summary(points, columns),
        "front": front_of(points, columns, len(prompts)),
        "drift": drift(pipe, concept, scores, cfg, model) if cfg.drift else None,
        "trained": {k: getattr(concept, k) for k in ("super_category", "lock", "beta", "tau", "steps", "base_hash")},
        "scorers": {"clip": model.scorer, "dino": cfg.dino, "reader": cfg.reader if scores.reader else None},
        "config": {"evaluation": OmegaConf.to_container(cfg, resolve=True), "concept": concept.config},
        "prompts": [p.text for p in prompts],
        "points": points,
        "seconds": round(time.perf_counter() - started, 1),
        "surroundings": surroundings(),
        "rows": columns,
    }
    attempt(contact_sheet, shown, path=folder / "pictures.png")
    rows = columns | {name: [points[p][name] for p in columns["point"]] for name in points[0]}
    write_csv(folder / "scores.csv", rows)
    if result["front"]:
        attempt(concept_figure, result, shown[0], path=folder / "front.png")
    return result


def report(result: dict) -> str:
    """The points as a small table, followed by the definition of each column."""
    names = [n for n in ("text", "text_deleted", "image", "dino", "facts", "drawing") if n in result["rows"]]
    show = lambda v: "-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v)
    columns = (*result["points"][0], *names, "pareto")
    lines = ["  ".join(f"{n:>12}" for n in columns)]
    for point in result["summary"]:
        lines.append("  ".join(f"{show(point[n]):>12}" for n in columns))
    if result["front"]:
        area, (low, high) = result["front"]["hypervolume"], result["front"]["interval"]
        lines.append(f"hypervolume {area:.4f} [{low:.4f}, {high:.4f}]: {result['definitions']['front']}.")
    else:
        axis = axis_of(result["points"][0])
        lines.append(f"one operating point is no front: give evaluation.{axis} several values for one.")
    lines += [f"{name}: {result['definitions'][name]}." for name in names]
    if result["drift"]:
        lines.append(f"drift: {result['drift']}\ndrift: {result['definitions']['drift']}.")
    return "\n".join(lines)


def run(cfg: DictConfig) -> dict:
    folder = Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir)
    cfg = check("evaluate", cfg)
    concept, beside = open_learned(cfg.method, cfg.concept_file), concept_of(cfg)
    if not concept.super_category:  # a textual inversion of another program
        concept.super_category = beside.super_category
    if concept.super_category != beside.super_category:
        raise UserError(
            f"concept_file={cfg.concept_file} learned a {concept.super_category}, the pictures in {beside.images} show a "
            f"{beside.super_category}; give the concept's own, as in concept={concept.super_category} or "
            "concept.images=FOLDER."
        )
    check_model(cfg.model, ("path", "scorer"))
    check_evaluation(cfg.evaluation, cfg.model, concept.lock)
    real = real_pictures(beside.images)
    pipe = load_pipeline(cfg.model, "cuda" if torch.cuda.is_available() else "cpu")
    result = evaluate(pipe, concept, real, beside.get("artist"), cfg.evaluation, cfg.model, folder)
    write_result(folder / "result.json", result)
    if "wandb" in cfg.logger:
        from perfusion.learning.dashboard import show_front

        show_front(cfg, result, folder)
    print(report(result))
    print(f"written: {folder / 'result.json'}, scores.csv, pictures.png{', front.png' if result['front'] else ''}")
    return result

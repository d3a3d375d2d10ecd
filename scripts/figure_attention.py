"""Figures 2 and 11: where the words are looked at, with locked and with trained keys, and the share inside the object.

python scripts/figure_attention.py                 # results/figures/attention/ -> attention.svg, .png
python scripts/figure_attention.py --from-scratch  # learn every concept twice, unless lock_type has; draw, measure anew
"""

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from perfusion.evaluation.fronts import Bootstrap, holds, interval
from perfusion.experiments import figures
from perfusion.experiments.sweep import CONCEPTS

PROMPT = "a {} next to a car"
MEASURED = ("a {} on a beach", "a {} wearing a hat", "a {} next to a car", "a {} in the snow")
NOISES, FIRST = 4, 5000


def make(overrides: list[str]) -> None:
    from perfusion.evaluation.shares import shares
    from perfusion.method.attention import look
    from perfusion.method.pipeline import load_concepts
    from perfusion.method.sampling import Sampling
    from perfusion.plots import heat_overlay

    pipe, rows, numbers = figures.base_model(overrides), [], {"local": {}, "trained": {}}
    seeds = [FIRST + k for _ in MEASURED for k in range(NOISES)]
    for lock, of_lock in numbers.items():
        for name in tqdm(CONCEPTS, desc=f"lock={lock}", unit="concept"):
            concept, cfg, _ = figures.trained(lock, overrides, name)
            handle = load_concepts(pipe, {concept.trigger: concept})
            looked = look(
                pipe,
                [p.format(concept.trigger) for p in MEASURED for _ in range(NOISES)],
                seeds,
                Sampling.of(cfg.model),
            )
            handle.unload()
            of_lock[concept.trigger] = shares(looked, concept.super_category, concept.trigger, cfg.model.segmenter)
            if name == figures.SHOWN:
                shown = next(one for one in looked if one.prompt == PROMPT.format(concept.trigger))
                about = figures.about(concept, cfg)
        words = [w for w in shown.maps if len(w) > 2]
        rows.append([shown.picture, *(heat_overlay(shown.picture, shown.maps[word]) for word in words)])
    result = {"words": words, "prompt": shown.prompt, "seeds": seeds, "compared": compared(numbers), "shares": numbers}
    figures.keep("attention", about | result, rows)


def compared(numbers: dict) -> dict:
    """Attention's share inside the object over its area, paired. numbers: {lock: {concept: shares.shares}}."""
    concepts = list(numbers["local"])
    ratio = lambda row: row["concept"] / max(row["area"], 1e-3)
    scores = lambda of_lock: np.array([[ratio(r) for r in of_lock[c]["rows"]] for c in concepts]).reshape(
        len(concepts), -1, NOISES
    )
    boot = Bootstrap(concepts, len(MEASURED))
    draws = {lock: boot(scores(of_lock).mean(-1, keepdims=True))[:, 0] for lock, of_lock in numbers.items()}
    difference = draws["local"] - draws["trained"]
    average = lambda of_lock, what: round(float(np.mean([r[what] for c in concepts for r in of_lock[c]["rows"]])), 4)
    plain = {
        lock: {"share": average(of_lock, "concept"), "area": average(of_lock, "area")}
        for lock, of_lock in numbers.items()
    }
    return {
        lock: plain[lock] | {"ratio": round(float(d[0]), 4), "interval": interval(d)} for lock, d in draws.items()
    } | {
        "difference": round(float(difference[0]), 4),
        "interval": interval(difference),
        "holds": holds(interval(difference)),
        "definition": "share of the attention of the concept's word that lies inside the object; area: of the picture that the "
        "object takes; ratio: share over area, picture by picture (1: a map that looks everywhere alike), mean over concepts "
        "and pictures; difference: locked less trained keys, paired; 95 % intervals over concepts and prompts",
    }


def draw() -> list:
    result, rows = figures.kept("attention")
    figure, axes = plt.subplots(2, len(rows[0]), figsize=(figures.WIDTH, 1.9), squeeze=False, layout="constrained")
    for y, (line, row, lock) in enumerate(zip(axes, rows, result["shares"])):
        for axis, picture, above in zip(line, row, ["drawn", *result["words"]]):
            figures.cell(axis, picture, above if y == 0 else "")
        line[0].set_ylabel({"local": "locked K", "trained": "trained K"}[lock], fontsize=6.5)
        ratio = result["compared"][lock]
        low, high = ratio["interval"]
        figures.below(line, f"attention inside the object / its area: {ratio['ratio']:.2f} [{low:.2f}, {high:.2f}]")
    one = result["shares"]["local"]
    said = f'"{result["prompt"]}"; blue: not looked at, yellow: most'
    pictures = sum(len(of_concept["rows"]) for of_concept in one.values())
    said += f"\nnumbers: of the concept's word, {len(one)} concepts, {pictures} pictures;"
    said += f"\nlocked - trained {figures.difference(result['compared'])}"
    figure.supxlabel(said, fontsize=6)
    return figures.save(figure, "attention")


if __name__ == "__main__":
    figures.main(draw, make)

"""The lock types: their fronts, and the same prompts and noises under the global lock, the local one, and trained K.

python scripts/figure_locks.py                 # results/ablations/lock_type.json, results/figures/locks/ -> .svg, .png
python scripts/figure_locks.py --from-scratch  # learn every concept, unless lock_type has; draw them under each lock;
                                               # the fronts: perfusion train -m +experiment=lock_type
"""

from functools import cache

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from perfusion.evaluation.figure import AXES
from perfusion.evaluation.fronts import Bootstrap, holds, interval
from perfusion.experiments import figures
from perfusion.experiments.sweep import CONCEPTS

ROWS = {"global": ("local", "global", 0.75), "local": ("local", None, 0.75), "trained_k": ("trained", None, 0.75)}
NAMES = {"global": "global", "local": "local", "trained_k": "trained K"}
PROMPTS = ("a {} on a beach", "a {} in the snow", "a {} wearing a hat", "a {} next to a car")
SEEDS = (5000, 5001, 5002, 5003)
SHOWN, NOISES = 3, 2  # prompts, and noises of each, in the figure


def make(overrides: list[str]) -> None:
    from perfusion.evaluation.evaluate import embed
    from perfusion.learning.data import real_pictures
    from perfusion.method.pipeline import load_concepts
    from perfusion.method.sampling import Sampling
    from perfusion.method.sampling import draw as draw_pictures
    from perfusion.scorers import open_scorer

    pipe, rows, numbers, opened = figures.base_model(overrides), [], {}, cache(open_scorer)
    for row, (training, lock, beta) in ROWS.items():
        numbers[row] = {}
        for name in tqdm(CONCEPTS, desc=NAMES[row], unit="concept"):
            concept, cfg, beside = figures.trained(training, overrides, name)
            named, seeds = [p.format(concept.trigger) for p in PROMPTS for _ in SEEDS], list(SEEDS) * len(PROMPTS)
            handle = load_concepts(pipe, {concept.trigger: concept})
            with handle.gate(lock=lock, beta=beta):
                drawn = draw_pictures(pipe, named, seeds, Sampling.of(cfg.model))
            handle.unload()
            clip = opened(cfg.model.scorer)
            e, real = embed(clip, drawn).unflatten(0, (len(PROMPTS), -1)), embed(clip, real_pictures(beside.images))
            numbers[row][concept.trigger] = {
                "variability": variability(e),
                "image": [round(v, 6) for v in (e @ real.T).mean((1, 2)).tolist()],
            }
            if name == figures.SHOWN:
                rows.append([drawn[p * len(SEEDS) + k] for p in range(SHOWN) for k in range(NOISES)])
                about = figures.about(concept, cfg)
                prompts = [p.format(concept.trigger) for p in PROMPTS[:SHOWN]]
    betas = {name: beta for name, (*_, beta) in ROWS.items()}
    measured = {"measured": PROMPTS, "compared": compared(numbers), "numbers": numbers}
    figures.keep("locks", about | {"prompts": prompts, "seeds": SEEDS, "betas": betas} | measured, rows)


def variability(e) -> list[float]:
    """1 - cosine, mean over pairs of noises, a prompt each. e: embeddings [prompts, noises, D] of unit length."""
    pairs = np.triu_indices(e.shape[1], 1)
    return [round(1 - one[pairs].mean().item(), 6) for one in e @ e.mT]


def compared(numbers: dict) -> dict:
    """Means of a lock over concepts and prompts, and paired differences. numbers: {lock: {concept: {score: [a prompt's]}}}."""
    concepts = list(numbers["global"])
    boot = Bootstrap(concepts, len(PROMPTS))
    draws = {
        (lock, score): boot(np.array([[[v] for v in of_lock[c][score]] for c in concepts]))[:, 0]
        for lock, of_lock in numbers.items()
        for score in ("variability", "image")
    }
    result = {"definition": "variability: 1 - raw CLIP cosine of two pictures of one prompt from two noises, mean over pairs, "
              "prompts and concepts, higher is more varied; image: as perfusion evaluate's; 95 % intervals over concepts and "
              "prompts; holds: by variability"}  # fmt: skip
    for lock in numbers:
        result[lock] = {score: round(float(draws[lock, score][0]), 6) for score in ("variability", "image")}
    for a, b in (("global", "local"), ("local", "trained_k")):
        claim = result[f"{a} > {b}"] = {}
        for score in ("variability", "image"):
            d = draws[a, score] - draws[b, score]
            claim[score] = [round(float(d[0]), 6), *interval(d)]
        claim["holds"] = holds(claim["variability"][1:])
    return result


def draw() -> list:
    result, rows = figures.kept("locks")
    fronts = figures.ablation("lock_type")
    columns = len(rows[0])
    figure = plt.figure(figsize=(figures.WIDTH, figures.WIDTH * 1.15), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0)
    grid = figure.add_gridspec(4, columns, height_ratios=[3.4, 1, 1, 1])
    axis = figure.add_subplot(grid[0, :])
    kind = figures.kind_of(fronts)
    figures.front(axis, {arm: front["points"] for arm, front in fronts["arms"].items()}, NAMES, kind)
    said = [f"{NAMES[p['better']]} > {NAMES[p['worse']]}: {figures.verdict(p)}" for p in fronts["paired"]]
    axis.set_title("\n".join(said), fontsize=6, loc="left")
    axis.set_xlabel(f"{AXES[kind][0]}, better to the right", fontsize=6.5)
    axis.set_ylabel(AXES[kind][1].replace(" (", "\n("), fontsize=6.5)
    varied = ", ".join(f"{NAMES[name]} {result['compared'][name]['variability']:.3f}" for name in ROWS)
    figure.supxlabel(
        f"1 - CLIP cosine between noises, {len(result['numbers']['local'])} concepts:\n{varied}", fontsize=6
    )
    each = columns // len(result["prompts"])
    for y, (name, row) in enumerate(zip(ROWS, rows), 1):
        for x, picture in enumerate(row):
            cell = figure.add_subplot(grid[y, x])
            left = f"{NAMES[name]}\nβ {result['betas'][name]:g}" if x == 0 else ""
            figures.cell(cell, picture, " \n " if y == 1 else "", left)  # room for a prompt over its noises
            if y == 1 and x % each == 0:
                above = result["prompts"][x // each].replace("* ", "*\n")
                cell.text(0, 1.06, above, transform=cell.transAxes, fontsize=6, va="bottom").set_in_layout(False)
    return figures.save(figure, "locks")


if __name__ == "__main__":
    figures.main(draw, make)

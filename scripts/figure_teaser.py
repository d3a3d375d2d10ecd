"""The teaser: a few pictures of one thing, a small file, and the thing in new prompts.

python scripts/figure_teaser.py                 # results/figures/teaser/ -> teaser.svg, .png
python scripts/figure_teaser.py --from-scratch  # learn the teapot, draw anew
"""

from textwrap import fill

import matplotlib.pyplot as plt

from perfusion.experiments import figures

PROMPTS = ("a {} on a beach", "a {} in the snow", "a {} wearing a hat", "a {} next to a car", "a blue {} in the desert")
SEED = 5000


def make(overrides: list[str]) -> None:
    from PIL import ImageOps

    from perfusion.learning.data import real_pictures
    from perfusion.method.pipeline import load_concepts
    from perfusion.method.sampling import Sampling
    from perfusion.method.sampling import draw as draw_pictures

    pipe, (concept, cfg, beside) = figures.base_model(overrides), figures.by_default(overrides)
    side, seeds = cfg.model.resolution, [SEED + i for i in range(len(PROMPTS))]
    photos = [ImageOps.fit(p, (side, side)) for p in real_pictures(beside.images)]
    draw_all = lambda word: draw_pictures(pipe, [p.format(word) for p in PROMPTS], seeds, Sampling.of(cfg.model))
    base = draw_all(concept.super_category)
    load_concepts(pipe, {concept.trigger: concept})
    rows = [(photos * len(PROMPTS))[: len(PROMPTS)], base, draw_all(concept.trigger)]
    result = {"prompts": PROMPTS, "seeds": seeds, "photos": min(len(photos), len(PROMPTS))}
    figures.keep("teaser", figures.about(concept, cfg) | result, rows)


def draw() -> list:
    result, rows = figures.kept("teaser")
    trained = result["trained"]
    names = (
        f"pictures of\n{trained['trigger']}",
        "base model",
        f"{trained['trigger']} for\n{trained['super_category']}",
    )
    figure, axes = plt.subplots(3, len(rows[0]), figsize=(figures.WIDTH, 2.05), squeeze=False, layout="constrained")
    for y, (line, row, name) in enumerate(zip(axes, rows, names)):
        for x, (axis, picture) in enumerate(zip(line, row)):
            above = fill(result["prompts"][x].format(trained["super_category"]), 11) if y == 1 else ""
            figures.cell(axis, picture if y or x < result["photos"] else None, above, name if x == 0 else "")
    return figures.save(figure, "teaser")


if __name__ == "__main__":
    figures.main(draw, make)

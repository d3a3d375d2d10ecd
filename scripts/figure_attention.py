"""Figures 2 and 11: where the words are looked at, with locked and with trained keys, and the share inside the object.

python scripts/figure_attention.py                 # results/figures/attention/ -> attention.svg, .png
python scripts/figure_attention.py --from-scratch  # learn the teapot twice, draw and measure anew
"""

import matplotlib.pyplot as plt

from perfusion import figures

PROMPT = "a {} next to a car"
MEASURED = ("a {} on a beach", "a {} wearing a hat", "a {} next to a car", "a {} in the snow")
NOISES, FIRST = 4, 5000


def make(overrides: list[str]) -> None:
    from perfusion.pipeline import load_concepts
    from perfusion.where import heat_overlay, look, shares

    rows, numbers = [], {}
    for lock in ("local", "trained"):
        concept, pipe, cfg, _ = figures.trained(lock, overrides)
        load_concepts(pipe, {concept.trigger: concept})
        named = [p.format(concept.trigger) for p in MEASURED for _ in range(NOISES)]
        seeds = [FIRST + k for _ in MEASURED for k in range(NOISES)]
        looked = look(pipe, named, seeds, cfg.model)
        numbers[lock] = shares(looked, concept.super_category, concept.trigger, cfg.model.segmenter)
        shown = next(one for one in looked if one.prompt == PROMPT.format(concept.trigger))
        words = [w for w in shown.maps if len(w) > 2]
        rows.append([shown.picture, *(heat_overlay(shown.picture, shown.maps[word]) for word in words)])
    result = {"words": words, "prompt": shown.prompt, "seeds": seeds, "shares": numbers}
    figures.keep("attention", figures.about(concept, cfg) | result, rows)


def draw() -> list:
    result, rows = figures.kept("attention")
    trigger = result["trained"]["trigger"]
    figure, axes = plt.subplots(2, len(rows[0]), figsize=(figures.WIDTH, 1.75), squeeze=False, layout="constrained")
    for y, (line, row, (lock, found)) in enumerate(zip(axes, rows, result["shares"].items())):
        for axis, picture, above in zip(line, row, ["drawn", *result["words"]]):
            figures.cell(axis, picture, above if y == 0 else "")
        line[0].set_ylabel({"local": "locked K", "trained": "trained K"}[lock], fontsize=6.5)
        said = f"{trigger} {found['concept']:.2f}, other words {found['others']:.2f}; area {found['area']:.2f}"
        figures.below(line, f"share inside the object: {said}")
    said = f'"{result["prompt"]}"; blue: not looked at, yellow: most'
    figure.supxlabel(f"{said}\nshares: means over {len(found['rows'])} pictures", fontsize=6)
    return figures.save(figure, "attention")


if __name__ == "__main__":
    figures.main(draw, make)

"""The lock types: their fronts, and the same prompts and noises under the global lock, the local one, and trained K.

python scripts/figure_locks.py                 # results/ablations/lock_type.json, results/figures/locks/ -> .svg, .png
python scripts/figure_locks.py --from-scratch  # the pictures anew; the fronts: perfusion train -m +experiment=lock_type
"""

import matplotlib.pyplot as plt

from perfusion import figures

ROWS = {"global": ("local", "global", 0.5), "local": ("local", None, 0.75), "trained_k": ("trained", None, 0.75)}
NAMES = {"global": "global", "local": "local", "trained_k": "trained K"}
PROMPTS, SEEDS = ("a {} on a beach", "a {} in the snow", "a {} wearing a hat"), (5000, 5001)


def make(overrides: list[str]) -> None:
    from perfusion.draw import draw as draw_pictures
    from perfusion.pipeline import load_concepts

    rows = []
    for training, lock, beta in ROWS.values():
        concept, pipe, cfg, _ = figures.trained(training, overrides)
        named = [p.format(concept.trigger) for p in PROMPTS for _ in SEEDS]
        with load_concepts(pipe, {concept.trigger: concept}).gate(lock=lock, beta=beta):
            seeds = list(SEEDS) * len(PROMPTS)
            rows.append(draw_pictures(pipe, named, seeds, cfg.model.steps, cfg.model.guidance, batch_size=len(seeds)))
    prompts = [p.format(concept.trigger) for p in PROMPTS]
    betas = {name: beta for name, (*_, beta) in ROWS.items()}
    figures.keep("locks", figures.about(concept, cfg) | {"prompts": prompts, "seeds": SEEDS, "betas": betas}, rows)


def draw() -> list:
    result, rows = figures.kept("locks")
    fronts = figures.ablation("lock_type")
    columns = len(rows[0])
    figure = plt.figure(figsize=(figures.WIDTH, figures.WIDTH * 1.15), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0)
    grid = figure.add_gridspec(4, columns, height_ratios=[3.4, 1, 1, 1])
    axis = figure.add_subplot(grid[0, :])
    figures.front(axis, {arm: found["points"] for arm, found in fronts["arms"].items()}, NAMES)
    said = [f"{NAMES[p['better']]} > {NAMES[p['worse']]}: {figures.verdict(p)}" for p in fronts["paired"]]
    axis.set_title("\n".join(said), fontsize=6, loc="left")
    axis.set_xlabel("text similarity (raw CLIP cosine), better to the right", fontsize=6.5)
    axis.set_ylabel("image similarity", fontsize=6.5)
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

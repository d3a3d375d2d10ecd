"""Figure 7: the effect of the inference bias beta on one prompt and one noise.

python scripts/figure_7.py                     # results/figures/figure_7/ -> results/figures/figure_7.svg, .png
python scripts/figure_7.py --from-scratch      # learn the teapot, draw anew
"""

import matplotlib.pyplot as plt

from perfusion.experiments import figures

BETAS = (0.3, 0.6, 0.8, 0.95, 1.1, 1.25)
PROMPTS, SEED = ("a {} on a beach", "a {} wearing a hat"), 5000


def make(overrides: list[str]) -> None:
    from perfusion.method.pipeline import load_concepts
    from perfusion.method.sampling import Sampling
    from perfusion.method.sampling import draw as draw_pictures

    pipe, (concept, cfg, _) = figures.base_model(overrides), figures.by_default(overrides)
    handle, rows = load_concepts(pipe, {concept.trigger: concept}), []
    named = [p.format(concept.trigger) for p in PROMPTS]
    for prompt in named:
        with handle.gate(beta=list(BETAS)):
            rows.append(draw_pictures(pipe, [prompt] * len(BETAS), [SEED] * len(BETAS), Sampling.of(cfg.model)))
    figures.keep("figure_7", figures.about(concept, cfg) | {"prompts": named, "seed": SEED, "betas": BETAS}, rows)


def draw() -> list:
    result, rows = figures.kept("figure_7")
    betas = result["betas"]
    figure, axes = plt.subplots(
        len(rows), len(betas), figsize=(figures.WIDTH, 0.7 * len(rows) + 0.3), squeeze=False, layout="constrained"
    )
    for y, (line, row, prompt) in enumerate(zip(axes, rows, result["prompts"])):
        for axis, picture, beta in zip(line, row, betas):
            figures.cell(axis, picture, f"β = {beta:g}" if y == 0 else "")
        figures.below(line, f'"{prompt}"')
    figure.supxlabel("← more likeness          inference bias β          more of the prompt →", fontsize=6.5)
    return figures.save(figure, "figure_7")


if __name__ == "__main__":
    figures.main(draw, make)

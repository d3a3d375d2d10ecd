"""Figure 9: the five comparisons of fronts, from results/ablations/*.json.

python scripts/figure_9.py                     # -> results/figures/figure_9.svg, .png
python scripts/figure_9.py --quick             # out of figure_9_quick.json -> figure_9_quick.svg, .png

Its results are made by perfusion train -m +experiment=NAME and perfusion collect experiment=NAME.
"""

import sys

import matplotlib.pyplot as plt

from perfusion.evaluation.figure import AXES
from perfusion.experiments import figures
from perfusion.results import size_of

PANELS = {  # experiment: (title, {arm: label}, {arm in figure_9_quick: label})
    "one_shot": ("(a) pictures", {"all": "all", "one": "one"}, {"base": "all", "one_shot": "one"}),
    "key_locking": (
        "(b) keys",
        {"locked": "locked", "trained_k": "trained"},
        {"base": "locked", "trained_k": "trained"},
    ),
    "zero_shot_mask": ("(c) mask", {"mask": "with", "no_mask": "without"}, {"base": "with", "no_mask": "without"}),
    "sigmoid_bias": (
        "(d) training bias β",
        {"bias_0.60": ".60", "bias_0.75": ".75", "bias_0.90": ".90"},
        {"bias_0.60": ".60", "base": ".75", "bias_0.90": ".90"},
    ),
    "sigmoid_temperature": (
        "(e) inference τ",
        {"tau_0.05": ".05", "tau_0.10": ".10", "tau_0.15": ".15", "tau_0.20": ".20"},
        {"base": ".10", "tau_0.15": ".15"},
    ),
}


def draw(quick: bool = False) -> list:
    results = {name: figures.ablation("figure_9_quick" if quick else name) for name in PANELS}
    kinds = {name: figures.kind_of(result) for name, result in results.items()}
    figure, axes = plt.subplots(3, 2, figsize=(figures.WIDTH, figures.WIDTH * 1.45), layout="constrained")
    for axis, (name, (title, full, short)) in zip(axes.flat, PANELS.items()):
        result, names = results[name], short if quick else full
        figures.front(axis, {arm: front["points"] for arm, front in result["arms"].items()}, names, kinds[name])
        said = [p for p in result["paired"] if {p["better"], p["worse"]} <= set(names)]
        axis.set_title(title, fontsize=7, loc="left")
        lines = [f"{names[p['better']]} > {names[p['worse']]}: {figures.verdict(p, chr(10))}" for p in said]
        axis.set_xlabel("\n".join(lines), fontsize=5.5, loc="left")
    panels = {}  # of each size
    for result, (title, *_) in zip(results.values(), PANELS.values()):
        panels.setdefault(size_of(result), []).append(title[:3])
    sizes = [f"{size}: {' '.join(of)}" for size, of in panels.items()] if len(panels) > 1 else [*panels]
    note = axes.flat[-1]
    note.set_axis_off()
    note.annotate("better", (0.42, 0.98), (0.02, 0.8), arrowprops={"arrowstyle": "->"}, xycoords="axes fraction")
    text = "\n".join([
        *sizes, "a point: one inference bias β,", "filled: on its Pareto front",
        "thin lines: 95 % intervals", "below: the paper's claim, paired", "difference, 95 % interval; area:", "dominated by the front; text, facts:", "at equal likeness to the concept",
    ])  # fmt: skip
    note.text(0.02, 0.7, text, fontsize=6, va="top", transform=note.transAxes)
    said = [AXES[kind] for kind in dict.fromkeys(kinds.values())]  # CLIP's where no reader was asked
    figure.supxlabel(" | ".join(across for across, _ in said), fontsize=6.5)
    figure.supylabel(" | ".join(up for _, up in said), fontsize=6.5)
    return figures.save(figure, "figure_9_quick" if quick else "figure_9")


if __name__ == "__main__":
    quick = "--quick" in sys.argv[1:]
    sys.argv[1:] = [a for a in sys.argv[1:] if a != "--quick"]
    figures.main(lambda: draw(quick), others="--quick")

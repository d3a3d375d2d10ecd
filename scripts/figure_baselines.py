"""Perfusion beside Textual Inversion, DreamBooth-LoRA and Custom Diffusion: fronts, the score over seconds, contact sheets.

python scripts/figure_baselines.py     # -> results/baselines.json, results/figures/baselines.svg and .png, baselines/CONCEPT.png

Out of results/ablations/baselines.json and the jobs in multirun/baselines, which are made by
perfusion train -m +experiment=baselines concept=... evaluation.split=final and perfusion collect experiment=baselines.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from perfusion.evaluation.figure import AXES, COLORS, strength_of
from perfusion.evaluation.fronts import CLIP, READER
from perfusion.experiments import figures
from perfusion.experiments.jobs import read_jobs
from perfusion.plots import cells, grid
from perfusion.results import mean, size_of, write_result

JOBS, RESULT = Path("multirun/baselines"), Path("results/baselines.json")
COSTS = {  # of one trained concept: median over concepts, of the first training seed: one sweep, on one machine
    "file_bytes": "size of the file that the method leaves",
    "trainable": "numbers that are trained",
    "train_seconds": "from pictures to the file, the drawing of the selection's prompts included",
    "peak_mib": "the most memory while training: of the GPU, on a CPU of the whole process",
}
LEVELS = 5  # of the score, whose seconds are told


def curve(runs: list[list[dict]], at: np.ndarray) -> np.ndarray:
    """Best score so far at each second, mean over runs; NaN before every run has one. runs: selections {seconds, score}."""
    scores = np.full((len(runs), len(at)), np.nan)
    for row, run in zip(scores, runs):
        best = np.maximum.accumulate([step["score"] for step in run])
        last = np.searchsorted([step["seconds"] for step in run], at, side="right") - 1
        row[last >= 0] = best[last[last >= 0]]
    return scores.mean(0)


def time_to_quality(runs: dict[str, list[list[dict]]]) -> dict:
    """Every method's `curve` over the same seconds of training, and the seconds at which it reaches LEVELS scores."""
    every = [step["seconds"] for of_method in runs.values() for run in of_method for step in run]
    at = np.geomspace(max(0.1, min(every)), max(every), 60)
    curves = {name: curve(of_method, at) for name, of_method in runs.items()}
    scores = np.concatenate([c[~np.isnan(c)] for c in curves.values()])
    levels = np.linspace(scores.min(), scores.max(), LEVELS)
    rounded = lambda values, digits=5: [None if np.isnan(v) else round(float(v), digits) for v in values]
    reached = lambda c: [
        float(at[np.nanargmax(c >= level)]) if (c >= level - 1e-9).any() else np.nan for level in levels
    ]
    return {
        "what": "mean of CLIP image and text similarity on the selection's prompts, best so far, over seconds of the first seed's training "
        "(regularisation pictures included, the selection's own drawing not)",
        "seconds": rounded(at, 2), "levels": rounded(levels),
        "methods": {name: {"score": rounded(c), "seconds_to_levels": rounded(reached(c), 1)} for name, c in curves.items()},
    }  # fmt: skip


def best_point(points: list[dict]) -> int:
    """The operating point that a contact sheet shows: the best mean of the concept's score and the prompt's, the reader's if asked."""
    scores = READER if all(READER[0] in p for p in points) else CLIP
    return int(np.argmax([sum(p[score] for score in scores) for p in points]))


def sheets(joined: dict, jobs: dict, folder: Path) -> None:
    """Per concept, the first seed's pictures of the first four prompts, a row a method, each at its `best_point` over all concepts."""
    folder.mkdir(parents=True, exist_ok=True)
    for concept in joined["concepts"]:
        rows = []
        for name, arm in joined["arms"].items():
            path, result = jobs[name][concept, joined["seeds"][0]]
            if not (path / "pictures.png").exists():
                continue  # the pictures of a long sweep may have been cleared away
            column, shown = best_point(arm["points"]), min(4, len(result["prompts"]))
            pictures = [cells(path / "pictures.png", shown, len(result["points"]), row)[column] for row in range(shown)]
            label = f"{name.replace('_', ' ')}\n{strength_of(arm['points'][column])[0]}"
            rows.append((label, list(zip([p.replace("{}", concept) for p in result["prompts"]], pictures))))
        if rows:
            grid(rows, folder / f"{concept.strip('*')}.png")


def join(joined: dict, jobs: dict) -> dict:
    """results/baselines.json: what collect found, with costs and the curve of the score over seconds."""
    units = [(c, joined["seeds"][0]) for c in joined["concepts"]]
    methods, runs = {}, {}
    for name, arm in joined["arms"].items():
        trainings = [jobs[name][unit][1]["training"] for unit in units if unit in jobs[name]]
        costs = {cost: mean([float(np.median([t[cost] for t in trainings]))]) for cost in COSTS}
        methods[name] = (
            {
                "front": arm["points"],
                "hypervolume": arm["hypervolume"],
                "interval": arm["hypervolume_interval"],
            }
            | {k: v for k, v in arm.items() if k.startswith("read_hypervolume")}
            | costs
        )
        runs[name] = [t["selection"] for t in trainings]
    kept = ("concepts", "seeds", "units", "paired", "ordering_holds", "reference", "bootstrap", "prompts", "scorers", "trained",
            "commits", "surroundings", "config")  # fmt: skip
    return {"methods": methods, "time_to_quality": time_to_quality(runs)} | {k: joined[k] for k in kept} | {
        "definitions": joined["definitions"] | COSTS}  # fmt: skip


def draw() -> list[Path]:
    joined = figures.ablation("baselines")
    jobs = read_jobs(JOBS)
    result = join(joined, jobs)
    write_result(RESULT, result)
    sheets(joined, jobs, figures.RESULTS / "baselines")
    names = {name: name.replace("_", " ") for name in joined["arms"]}
    points = {name: arm["points"] for name, arm in joined["arms"].items()}
    kinds = [kind for kind in (READER, CLIP) if all(kind[0] in p for of_arm in points.values() for p in of_arm)]
    size = (figures.WIDTH * (1 + len(kinds)) * 0.75, figures.WIDTH * 0.8)
    figure, (*axes, right) = plt.subplots(1, len(kinds) + 1, figsize=size, layout="constrained")
    for axis, kind in zip(axes, kinds):
        figures.front(axis, points, names, kind)
        axis.set_xlabel(AXES[kind][0]), axis.set_ylabel(AXES[kind][1])
    axes[0].set_title(f"along each method's strength; {size_of(joined)}", fontsize=7, loc="left")
    quality = result["time_to_quality"]
    for color, name in zip(COLORS, names):
        score = np.array([np.nan if s is None else s for s in quality["methods"][name]["score"]])
        right.step(quality["seconds"], score, where="post", color=color, linewidth=1, label=names[name])
    right.set_xscale("log")
    right.xaxis.set_major_formatter("{x:g}")
    right.xaxis.set_minor_formatter("")
    right.tick_params(labelsize=5.5, length=2, pad=1)
    right.legend(fontsize=6, labelcolor="linecolor", frameon=False, borderpad=0, handlelength=1.2)
    right.set_xlabel("seconds of training, one machine"), right.set_ylabel("best score so far")
    right.set_title("time to quality (mean of both similarities)", fontsize=7, loc="left")
    right.spines[["top", "right"]].set_visible(False)
    return [RESULT, *figures.save(figure, "baselines"), figures.RESULTS / "baselines"]


if __name__ == "__main__":
    figures.main(draw)

"""Redraw the learning curves of Emojiland's models; with fresh logs on this machine, renew the committed curves first.

python scripts/figure_pretraining.py     # results/pretraining/NAME.csv -> docs/pretraining.png
"""

import csv
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from perfusion.emojiland.cache import home

# model: (column, axis label), the one quantity a reader would follow
SHOWN = {
    "vae": ("loss", "loss"),
    "text": ("retrieved", "captions retrieved of 256"),
    "unet": ("error", "denoising error (v, mean squared)"),
    "segmenter": ("iou", "mask IoU"),
    "judge": ("retrieved", "captions retrieved of 128"),
    "reader": ("loss", "loss"),
}
CURVES = Path("results/pretraining")
POINTS = 200  # rows a committed curve keeps


def renew(name: str) -> None:
    """Join a model's logs, one a sitting, and keep means over equal parts of them."""
    logs = sorted((home() / "emojiland/checkpoints" / name / "log").glob("version_*/metrics.csv"))
    if not logs:
        return
    rows = {int(row["step"]): row for log in logs for row in csv.DictReader(log.open())}
    columns = ["step", *(k for k in rows[min(rows)] if k not in ("step", "epoch"))]
    table = np.array([[float(rows[step][c]) for c in columns] for step in sorted(rows)])
    means = [part.mean(0) for part in np.array_split(table, min(POINTS, len(table)))]
    CURVES.mkdir(parents=True, exist_ok=True)
    np.savetxt(CURVES / f"{name}.csv", means, "%.5g", ",", header=",".join(columns), comments="")


def main() -> None:
    for name in SHOWN:
        renew(name)
    found = [name for name in SHOWN if (CURVES / f"{name}.csv").exists()]
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.2), layout="constrained")
    for axis in axes.flat[len(found) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, found):
        column, label = SHOWN[name]
        curve = np.genfromtxt(CURVES / f"{name}.csv", delimiter=",", names=True)
        near = [curve[column][max(0, i - 4) : i + 5].mean() for i in range(len(curve))]
        axis.plot(curve["step"], curve[column], color="0.75", linewidth=0.8)
        axis.plot(curve["step"], near, color="#0072B2")
        if column in ("loss", "error"):
            axis.set_yscale("log")
        axis.set_title(f"{name}: {near[-1]:.3g} at the end", fontsize=10, loc="left")
        axis.set_xlabel("step", fontsize=9)
        axis.set_ylabel(label, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig("docs/pretraining.png", dpi=110)
    print("written: docs/pretraining.png")


if __name__ == "__main__":
    main()

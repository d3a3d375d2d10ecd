"""The picture a run ends with: the photos, the base model's idea of the word, the concept at several biases."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from perfusion.whole import whole


def grid(rows: list[tuple[str, list[tuple[str, Image.Image]]]], path: Path, cell: float = 1.25) -> None:
    """Labelled rows of captioned pictures, as PNG. rows: (label, [(caption, picture), ...]), not all of one length."""
    columns = max(len(pictures) for _, pictures in rows)
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(cell * columns + 1.1, (cell + 0.32) * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for line, (label, pictures) in zip(axes, rows):
        for axis in line:
            axis.set_axis_off()
        for axis, (caption, picture) in zip(line, pictures):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(_wrapped(caption), fontsize=7, pad=2)
        line[0].text(-0.12, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=160, bbox_inches="tight")
    plt.close(figure)


def _wrapped(text: str, width: int = 22) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)

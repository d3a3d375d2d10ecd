"""Figures a person can read: fronts with direct labels, the better direction marked, real pictures at a few points."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from PIL import Image

from perfusion.atomic import whole
from perfusion.evaluation.fronts import CLIP, READER, axis_of, pareto
from perfusion.plots import plain_text

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")  # Okabe and Ito's
MARKERS = "osD^vPX*"
SYMBOLS = {"beta": "β", "strength": "s"}
SAID = {"beta": "inference bias β", "strength": "strength s"}
CROWDED = 4  # arms: more have their intervals in the JSON alone
AXES = {
    CLIP: ("text similarity (raw CLIP cosine)", "image similarity (raw CLIP cosine)"),
    READER: ("facts of the prompt read right (share)", "read as the very drawing (share)"),
}
# Of a text beside its point, in points.
SIDES = ((7, 4, "left"), (-7, 4, "right"), (5, -9, "left"), (-5, -9, "right"), (9, -3, "left"), (-9, -3, "right"))


@plain_text()
def front_figure(
    arms: dict[str, list[dict]],
    pictures: dict[str, list[tuple[str, Image.Image]]],
    path: Path,
    title: str,
    subtitle: str = "",
    also_pdf: bool = False,
) -> None:
    """Likeness against the prompt, one line an arm, by CLIP and, where it was asked, by the reader; below, each arm's pictures.

    A PNG, and a PDF beside it where asked. Intervals are thin lines, of up to CROWDED arms. Markers are filled where a point
    is on the Pareto front of its kind of score, else hollow. More arms than COLORS are named beside the axes, not in them.
    arms: {label: points with text, image, optional facts and drawing, beta, optional text_interval and the like}, in the order
    of their line, a baseline's with strength in place of beta; pictures: {label: [(caption, picture), ...]}.
    """
    strips = [(label, shown) for label, shown in pictures.items() if shown]
    kinds = [k for k in AXES if all(p.get(s) is not None for points in arms.values() for p in points for s in k)]
    heights = [3.9, *[0.85] * len(strips)]
    figure = plt.figure(figsize=(6.2 + 4.4 * (len(kinds) - 1), sum(heights)), layout="constrained")
    top, *rows = np.atleast_1d(figure.subfigures(len(heights), 1, height_ratios=heights))
    axes = top.subplots(1, len(kinds), squeeze=False)[0]
    colors = COLORS if len(arms) <= len(COLORS) else [plt.get_cmap("turbo")(i) for i in np.linspace(0, 1, len(arms))]
    lines = [_front(axis, arms, kind, colors) for axis, kind in zip(axes, kinds)]
    axes[0].set_title(title, fontsize=9.5, loc="left", pad=14 if subtitle else None)
    axes[0].text(0, 1.005, subtitle, transform=axes[0].transAxes, fontsize=7, color="#555555", va="bottom")
    columns = max([len(shown) for _, shown in strips], default=1)
    for row, (label, shown) in zip(rows, strips):
        name, *cells = row.subplots(1, columns + 1, subplot_kw={"xticks": [], "yticks": []})
        for cell in (name, *cells):
            cell.set_axis_off()
        for cell, (caption, picture) in zip(cells, shown):
            cell.imshow(picture, interpolation="nearest" if picture.width < 128 else "antialiased")
            cell.set_title(caption, fontsize=6.5, pad=2, y=1.0)
        style = {"fontsize": 7, "color": colors[list(arms).index(label)], "weight": "bold"}
        text = name.text(1, 0.5, label.replace("_", " "), transform=name.transAxes, ha="right", va="center", **style)
        text.set_in_layout(False)  # else rows whose names are of other lengths have their pictures elsewhere
    if len(arms) > len(COLORS):
        top.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7, frameon=False)
    figure.draw_without_rendering()  # names find their places in pixels, which the layout decides, once
    figure.set_layout_engine("none")
    for axis, of_axis in zip(axes, lines if len(arms) <= len(COLORS) else []):
        _name_lines(axis, of_axis)
    for kind in (".png", *([".pdf"] if also_pdf else [])):
        with whole(path.with_suffix(kind)) as part:
            undated = {"CreationDate": None} if kind == ".pdf" else None  # so that the same results are the same file
            figure.savefig(part, format=kind[1:], dpi=200, metadata=undated)
    plt.close(figure)


def _front(axis, arms: dict[str, list[dict]], kind: tuple[str, str], colors: Sequence) -> list[tuple]:
    """One axis of `front_figure`; the lines that are still to be named (`_name_lines`)."""
    lines = []
    for index, (label, points) in enumerate(arms.items()):
        color, marker = colors[index], MARKERS[index % len(MARKERS)]
        points = sorted(points, key=lambda p: strength_of(p)[1])
        xy = np.array([[p[score] for score in kind] for p in points])
        axis.plot(*xy.T, color=color, linewidth=1.6, zorder=3)
        axis.plot([], [], marker, color=color, linestyle="-", markersize=5, label=label.replace("_", " "))
        for p, (x, y), best in zip(points, xy, pareto(xy)):
            axis.plot(x, y, marker, color=color, markerfacecolor=color if best else "white", markersize=5, zorder=3)
            if f"{kind[0]}_interval" in p and len(arms) <= CROWDED:
                axis.plot(p[f"{kind[0]}_interval"], [y, y], color=color, linewidth=0.7, alpha=0.5)
                axis.plot([x, x], p[f"{kind[1]}_interval"], color=color, linewidth=0.7, alpha=0.5)
        lines.append((label, xy.tolist(), [strength_of(p)[0] for p in points], color))
    axis.margins(0.12)
    axis.set_xlabel(AXES[kind][0], fontsize=8.5)
    axis.set_ylabel(AXES[kind][1], fontsize=8.5)
    axis.tick_params(labelsize=7.5)
    axis.ticklabel_format(useOffset=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.annotate(
        "better", (1.0, 1.0), (0.95, 0.93), xycoords="axes fraction", fontsize=8, color="#555555",
        ha="right", va="center", arrowprops={"arrowstyle": "->", "color": "#555555"},
    )  # fmt: skip
    return lines


def _name_lines(axis, lines: list[tuple]) -> None:
    """Each line's name beside its point farthest from the others, the bias at its ends; no text over another or a point.

    A bias that finds no room is left out, a name never. lines: (name, [(x, y), ...], biases as they are written, colour).
    """
    pixels, room = axis.transData.transform, axis.bbox
    taken = [Bbox.from_bounds(*(pixels(point) - 6), 12, 12) for _, points, *_ in lines for point in points]

    def place(text: str, points: list, always: bool, **style) -> None:
        places = list(itertools.product(points, SIDES))
        for number, (point, (dx, dy, side)) in enumerate(places, 1):
            note = axis.annotate(
                text, point, textcoords="offset points", xytext=(dx, dy), ha=side, zorder=4,
                path_effects=[withStroke(linewidth=2.5, foreground="white")], **style,
            )  # fmt: skip
            note.set_in_layout(False)
            box = note.get_window_extent()
            free = room.x0 <= box.x0 and box.x1 <= room.x1 and not any(box.overlaps(other) for other in taken)
            if always and number == len(places) or free:
                return taken.append(box)
            note.remove()

    for label, points, _, color in lines:
        others = pixels([p for name, theirs, *_ in lines if name != label for p in theirs] or points)
        gap = lambda point, others=others: ((others - pixels(point)) ** 2).sum(-1).min()
        best = sorted(points, key=gap, reverse=True)
        place(label.replace("_", " "), best, always=True, fontsize=8.5, weight="bold", color=color)
    for _, points, betas, color in lines:
        for i in {0, len(points) - 1}:
            place(betas[i], [points[i]], always=False, fontsize=6.5, color=color)


def strength_of(point: dict) -> tuple[str, float]:
    """An operating point's place along its front, as it is written and as it is ordered: the bias, or a baseline's strength."""
    name = axis_of(point)
    return f"{SYMBOLS[name]} {point[name]:g}", point[name]


def arm_name(point: dict) -> str:
    """An operating point's line in a figure of one concept: its lock and temperature."""
    lock, tau = point.get("lock"), point.get("tau")
    return " ".join([*([f"{lock} lock"] if lock else []), *([f"τ {tau:g}"] if tau else [])])


def concept_figure(result: dict, shown: list[Image.Image], path: Path) -> None:
    """The front of one evaluated concept; `shown`: the first prompt's picture at every point."""
    arms, pictures = {}, {}
    for point, picture in zip(result["summary"], shown):
        label = arm_name(point) or result["concept"]
        arms.setdefault(label, []).append(point)
        pictures.setdefault(label, []).append((strength_of(point)[0], picture))
    keep = lambda cells: cells if len(cells) <= 5 else [cells[round(i * (len(cells) - 1) / 4)] for i in range(5)]
    below = result["prompts"][0].replace("{}", result["concept"])
    count = len(result["prompts"]) * result["config"]["evaluation"]["seeds"]
    front_figure(
        arms,
        {k: keep(v) for k, v in pictures.items()},
        path,
        f"{result['concept']} by {SAID[axis_of(result['summary'][0])]}",
        f'a point: mean over {count} pictures, filled on the Pareto front; below: "{below}"',
    )

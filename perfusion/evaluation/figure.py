"""Figures a person can read: fronts with direct labels, the better direction marked, real pictures at a few points."""

import itertools
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from PIL import Image

from perfusion.atomic import whole
from perfusion.evaluation.fronts import axis_of
from perfusion.plots import plain_text

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")  # Okabe and Ito's
MARKERS = "osD^vPX*"
SYMBOLS = {"beta": "β", "strength": "s"}
SAID = {"beta": "inference bias β", "strength": "strength s"}
CROWDED = 4  # arms: more have their intervals in the JSON alone
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
    """Image against text similarity, one line an arm; below, each arm's pictures. A PNG, and a PDF beside it where asked.

    Intervals are thin lines, of up to CROWDED arms. Markers are filled where a point is on the Pareto front, else hollow.
    arms: {label: points with text, image, beta, pareto, optional text_interval and image_interval}, in the order of their
    line, a baseline's with strength in place of beta; pictures: {label: [(caption, picture), ...]}.
    """
    strips = [(label, shown) for label, shown in pictures.items() if shown]
    columns = max([len(shown) for _, shown in strips], default=1)
    height = 3.9 + 0.85 * len(strips)
    figure = plt.figure(figsize=(6.2, height), layout="constrained")
    grid = figure.add_gridspec(1 + len(strips), columns, height_ratios=[3.9, *[0.85] * len(strips)])
    axis = figure.add_subplot(grid[0, :])
    lines = []
    for index, (label, points) in enumerate(arms.items()):
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        points = sorted(points, key=lambda p: strength_of(p)[1])
        x, y = [p["text"] for p in points], [p["image"] for p in points]
        axis.plot(x, y, color=color, linewidth=1.6, zorder=3)
        for p in points:
            face = color if p["pareto"] else "white"
            axis.plot(p["text"], p["image"], marker, color=color, markerfacecolor=face, markersize=5, zorder=3)
        for p in points:
            if "text_interval" in p and len(arms) <= CROWDED:
                axis.plot(p["text_interval"], [p["image"]] * 2, color=color, linewidth=0.7, alpha=0.5)
                axis.plot([p["text"]] * 2, p["image_interval"], color=color, linewidth=0.7, alpha=0.5)
        lines.append((label, list(zip(x, y)), [strength_of(p)[0] for p in points], color))
    axis.margins(0.12)
    axis.set_xlabel("text similarity (raw CLIP cosine)", fontsize=8.5)
    axis.set_ylabel("image similarity (raw CLIP cosine)", fontsize=8.5)
    axis.tick_params(labelsize=7.5)
    axis.ticklabel_format(useOffset=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.annotate(
        "better", (1.0, 1.09), (0.94, 1.01), xycoords="axes fraction", fontsize=8, color="#555555",
        ha="right", va="bottom", arrowprops={"arrowstyle": "->", "color": "#555555"}, annotation_clip=False,
    )  # fmt: skip
    axis.set_title(title, fontsize=9.5, loc="left")
    if subtitle:
        axis.text(0, 1.005, subtitle, transform=axis.transAxes, fontsize=7, color="#555555", va="bottom")
        axis.set_title(title, fontsize=9.5, loc="left", pad=14)
    order = list(arms)
    for row, (label, shown) in enumerate(strips, 1):
        for column, (caption, picture) in enumerate(shown):
            cell = figure.add_subplot(grid[row, column])
            cell.imshow(picture, interpolation="nearest" if picture.width < 128 else "antialiased")
            cell.set_xticks([]), cell.set_yticks([])
            cell.spines[:].set_visible(False)
            cell.set_title(caption, fontsize=6.5, pad=2)
            if column == 0:
                color = COLORS[order.index(label) % len(COLORS)]
                cell.set_ylabel(
                    label.replace("_", " "), fontsize=7, color=color, rotation=0, ha="right", va="center", weight="bold"
                )
    _name_lines(axis, lines)
    for kind in (".png", *([".pdf"] if also_pdf else [])):
        with whole(path.with_suffix(kind)) as part:
            undated = {"CreationDate": None} if kind == ".pdf" else None  # so that the same results are the same file
            figure.savefig(part, format=kind[1:], dpi=200, metadata=undated)
    plt.close(figure)


def _name_lines(axis, lines: list[tuple]) -> None:
    """Each line's name beside its point farthest from the others, the bias at its ends; no text over another or a point.

    A bias that finds no room is left out, a name never. lines: (name, [(x, y), ...], biases as they are written, colour).
    """
    axis.figure.draw_without_rendering()  # places are in pixels, which the layout decides
    pixels = axis.transData.transform
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
            if always and number == len(places) or not any(box.overlaps(other) for other in taken):
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

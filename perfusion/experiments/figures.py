"""What the paper's figures share: a column's width, colours, files, and the concepts that --from-scratch trains.

python scripts/figure_NAME.py                  # from committed results, in seconds: results/figures/NAME.svg and .png
python scripts/figure_NAME.py --from-scratch [Hydra overrides of perfusion train]
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from perfusion.config import CONF
from perfusion.errors import UserError
from perfusion.evaluation.figure import COLORS, MARKERS, strength_of
from perfusion.evaluation.fronts import CLIP, MEASURES, pareto
from perfusion.experiments.sweep import TRAININGS, made_by, resolved, training
from perfusion.plots import cells, contact_sheet
from perfusion.results import read_result, write_result

WIDTH = 85 / 25.4  # inches: one column
RESULTS, ABLATIONS = Path("results/figures"), Path("results/ablations")
SHOWN = "teapot"  # its colour is seen at once
ARMS = {"local": "local", "trained": "trained_k"}  # of lock_type, by their lock
# Areas above the reference point; the prompt's score at equal likeness.
MEASURED = {"hypervolume": "area", "matched_text": "text", "read_hypervolume": "area read", "matched_facts": "facts"}
STYLE = {"font.size": 6.5, "axes.linewidth": 0.6, "svg.fonttype": "path", "svg.hashsalt": "perfusion"}


def main(draw, make=None, others: str = "none") -> None:
    """A script's command line. draw(): the figure from result files; make(overrides): those files, anew."""
    arguments = sys.argv[1:]
    try:
        if arguments[:1] == ["--from-scratch"] and make:
            make(arguments[1:])
        elif arguments:
            allowed = "--from-scratch, followed by overrides of perfusion train" if make else others
            raise UserError(f"argument {arguments[0]} is unknown; allowed are: {allowed}.")
        with plt.rc_context(STYLE):
            print(f"written: {', '.join(map(str, draw()))}")
    except (UserError, HydraException, OmegaConfBaseException) as error:
        print(f"{Path(sys.argv[0]).stem}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def save(figure, name: str) -> list[Path]:
    """Write results/figures/NAME.svg and .png, whole or not at all."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in ("svg", "png"):
        path = RESULTS / f"{name}.{kind}"
        part = path.with_name(f".{name}.part.{kind}")
        figure.savefig(part, dpi=300, metadata={"Date": None} if kind == "svg" else None)
        part.replace(path)
        written.append(path)
    plt.close(figure)
    return written


def needed(path: Path, command: str) -> dict:
    """A committed result. Raises UserError with the command that makes it."""
    if not path.exists():
        raise UserError(f"{path} does not exist; make it with {command}.")
    return read_result(path)


def ablation(name: str) -> dict:
    """An experiment's joined result. Raises UserError with the commands that make it."""
    return needed(ABLATIONS / f"{name}.json", made_by(name))


def kept(name: str) -> tuple[dict, list[list[Image.Image]]]:
    """What --from-scratch wrote: its numbers and its pictures, row by row."""
    result = needed(
        RESULTS / name / "result.json", f"python scripts/figure_{name.removeprefix('figure_')}.py --from-scratch"
    )
    rows, columns = result["sheet"]
    return result, [cells(RESULTS / name / "pictures.png", rows, columns, row) for row in range(rows)]


def keep(name: str, result: dict, rows: list[list[Image.Image]]) -> None:
    """Write a figure's numbers and its pictures (rows of equal length) to results/figures/NAME/."""
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows, folder / "pictures.png")
    write_result(folder / "result.json", result | {"sheet": [len(rows), len(rows[0])]})


def composed(*overrides: str) -> DictConfig:
    """The configuration of perfusion train."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def learned(experiment: str, arm: str, name: str, overrides: list[str]) -> tuple[Path, DictConfig]:
    """The file of a concept learned as an experiment's jobs learn it, once and beside theirs; its configuration."""
    cfg = resolved(composed(f"+experiment={experiment}", f"concept={name}", f"arm={arm}", *overrides))
    return training(cfg, Path("multirun") / TRAININGS) / "concept.safetensors", cfg


def trained(lock: str, overrides: list[str], name: str):
    """A concept as lock_type learns it, and both configurations."""
    return _opened(*learned("lock_type", ARMS[lock], name, overrides))


def by_default(overrides: list[str], name: str = SHOWN):
    """A concept as perfusion train learns it, once; both configurations."""
    cfg = composed(f"concept={name}", "attention=false", "picture=false", *overrides)
    return _opened(training(cfg, Path("multirun") / TRAININGS) / "concept.safetensors", cfg)


def _opened(file: Path, cfg: DictConfig):
    from perfusion.config import concept_of
    from perfusion.method.concept import Concept

    return Concept.load(file), cfg, concept_of(cfg)


def base_model(overrides: list[str]):
    """The pipeline, once for all the concepts of a figure."""
    from perfusion.learning.models import load_pipeline

    return load_pipeline(composed(*overrides).model)


def about(concept, cfg: DictConfig) -> dict:
    """What a figure's numbers and pictures came from."""
    names = ("trigger", "super_category", "lock", "beta", "tau", "steps", "base_hash", "config")
    trained = {n: getattr(concept, n) for n in names}
    return {"trained": trained, "steps": cfg.model.steps, "guidance": cfg.model.guidance}


def cell(axis, picture: Image.Image | None, above: str = "", left: str = "") -> None:
    """One picture without axes, a caption above, a row's name on its left."""
    axis.set_xticks([]), axis.set_yticks([])
    axis.spines[:].set_visible(False)
    if picture is None:
        return axis.set_visible(False)
    axis.imshow(picture, interpolation="nearest" if picture.width < 128 else "antialiased")
    if above:
        axis.set_title(above, fontsize=6, pad=2)
    if left:
        axis.set_ylabel(left, fontsize=6.5, rotation=0, ha="right", va="center")


def below(line, text: str) -> None:
    """A row's caption, across its pictures; the layout keeps a line's height for it, and no width."""
    line[0].set_xlabel(" ", fontsize=6)
    line[0].text(0, -0.06, text, transform=line[0].transAxes, fontsize=6, va="top").set_in_layout(False)


def kind_of(result: dict) -> tuple[str, str]:
    """The two scores, CLIP or READER, by which an experiment's first claim is decided."""
    return next((MEASURES[p["measure"]] for p in result["paired"]), CLIP)


def front(axis, arms: dict[str, list[dict]], names: dict[str, str], kind: tuple[str, str] = CLIP) -> None:
    """Arms with direct labels: the concept's score against the prompt's, 95 % intervals as thin lines; filled: on the front."""
    across, up = kind
    for index, (arm, label) in enumerate(names.items()):
        color = COLORS[index]
        points = sorted(arms[arm], key=lambda p: strength_of(p)[1])
        xy = np.array([[p[across], p[up]] for p in points])
        axis.plot(*xy.T, color=color, linewidth=1)
        for p, (x, y), best in zip(points, xy, pareto(xy)):
            look = {"markerfacecolor": color if best else "white", "markersize": 2.5, "markeredgewidth": 0.7}
            axis.plot(x, y, MARKERS[index], color=color, **look)
            axis.plot(p[f"{across}_interval"], [y] * 2, color=color, linewidth=0.4, alpha=0.45)
            axis.plot([x] * 2, p[f"{up}_interval"], color=color, linewidth=0.4, alpha=0.45)
        axis.plot([], [], color=color, marker=MARKERS[index], markersize=2.5, linewidth=1, label=label)
    # Names stand together, in their line's colour and with its marker: beside short lines they would overlap.
    axis.legend(loc="best", fontsize=6, labelcolor="linecolor", frameon=False, borderpad=0, handlelength=1.2)
    axis.margins(0.1, 0.12)
    axis.ticklabel_format(useOffset=False)
    axis.locator_params(nbins=4)
    axis.tick_params(labelsize=5.5, length=2, pad=1)
    axis.spines[["top", "right"]].set_visible(False)


def verdict(paired: dict, apart: str = ", ") -> str:
    """A claim's outcome in a few words, with the paired difference of what MEASURED says, and its interval."""
    holds = {True: "holds", False: "does not hold"}.get(paired["holds"], "undecided")
    if None in (paired["difference"], *paired["interval"]):
        return holds
    return f"{holds}{apart}{MEASURED[paired['measure']]} {difference(paired)}"


def difference(paired: dict) -> str:
    """A paired difference with its interval, as text."""
    difference, low, high = (round(v, 3) + 0.0 for v in (paired["difference"], *paired["interval"]))  # 0.0: no -0.000
    return f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"

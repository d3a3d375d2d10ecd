"""perfusion report: a run or an experiment as one HTML page: self-contained, no scripts, nothing loaded from elsewhere."""

import base64
import csv
import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from omegaconf import DictConfig, OmegaConf

from perfusion.atomic import check_place, write_text
from perfusion.config import CONF
from perfusion.errors import UserError
from perfusion.evaluation.figure import SAID
from perfusion.evaluation.fronts import axis_of
from perfusion.evaluation.reading import read_evaluation
from perfusion.experiments.sweep import made_by
from perfusion.plots import plain_text
from perfusion.results import read_result, size_of, undamaged

PARTS = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("report.html").module
CURVES = {  # metrics.csv: what its axis says
    "loss": "loss (masked denoising error)",
    "gate": "gate at the concept's token",
    "i_star_moved": "i*: distance from its start, of its norm",
}
SCORES = ("text", "text_deleted", "image", "dino", "facts", "drawing")


def picture(path: Path, caption: str, kind: str = "") -> str:
    """An inlined PNG, or nothing where there is none."""
    return PARTS.picture(base64.b64encode(path.read_bytes()).decode(), caption, kind) if path.exists() else ""


def table(rows: list[dict], columns: list[str]) -> str:
    """Rows under a heading; columns of numbers to the right, of words to the left."""
    show = lambda v: "" if v is None else f"{v:.4g}" if isinstance(v, float) else v
    heading = [(c.replace("_", " "), any(isinstance(row.get(c), str) for row in rows)) for c in columns]
    return PARTS.table(heading, [[show(row.get(c)) for c in columns] for row in rows])


def configuration(config: dict) -> str:
    """Folded up, as YAML."""
    return PARTS.configuration(OmegaConf.to_yaml(OmegaConf.create(config)))


def section(title: str, *parts: str) -> str:
    """Nothing where all its parts are empty."""
    return PARTS.section(title, parts) if any(parts) else ""


def page(title: str, subtitle: str, sections: list[str]) -> str:
    return PARTS.page(title, subtitle, [s for s in sections if s])


@plain_text()
def curves(metrics: Path, selection: list[dict]) -> str:
    """Training's curves and the selection's scores as one inlined SVG; nothing where there are none."""
    with undamaged(metrics):
        rows = list(csv.DictReader(metrics.open())) if metrics.exists() else []
        lines = {name: [(int(r["step"]), float(r[name])) for r in rows if r.get(name)] for name in CURVES}
    shown = [(label, {"": lines[name]}) for name, label in CURVES.items() if lines[name]]
    if selection and "text" in selection[0]:
        by_score = {k: [(s["step"], s[k]) for s in selection] for k in ("image", "text", "score")}
        shown.append(("selection (raw CLIP cosines)", by_score))
    if not shown:
        return ""
    down = -(-len(shown) // 2)
    figure, axes = plt.subplots(down, 2, figsize=(8.5, 2.4 * down), squeeze=False, layout="constrained")
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, (label, parts) in zip(axes.flat, shown):
        for name, color in zip(parts, ("#0072B2", "#D55E00", "#000000")):
            x, y = zip(*parts[name])
            axis.plot(x, y, color=color, linewidth=1.3, marker="o" if len(x) < 20 else None, markersize=3)
            axis.annotate(name, (x[-1], y[-1]), textcoords="offset points", xytext=(3, 2), fontsize=7, color=color)
        axis.set_title(label, fontsize=8, loc="left")
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    figure.savefig(out, format="svg")
    plt.close(figure)
    svg = out.getvalue()
    return Markup(svg[svg.index("<svg") :])  # without the XML declaration and its address


def of_run(folder: Path) -> str:
    """The page of a training or an evaluation. Raises UserError for a folder of neither, or of another format."""
    file = folder / "result.json"
    finished = "give the folder of a finished perfusion train or perfusion evaluate."
    if not file.is_file():
        raise UserError(f"run={folder} has no result.json; {finished}")
    with undamaged(file):
        result = json.loads(file.read_text())
        if "kept_step" in result:
            return of_training(folder, result)
        if "points" not in read_result(file):
            raise UserError(f"run={folder} holds the result of something else; {finished}")
        return of_evaluation(folder, read_evaluation(file))


def training_sections(folder: Path, result: dict, about: str = "") -> list[str]:
    """What a training's folder shows; about: whose it is, in a page of several things."""
    steps = sorted((folder / "selection").glob("*.png"))
    seen = "where each word is looked at (blue none, yellow most)"
    return [
        section(
            f"Pictures{about}",
            picture(folder / "picture.png", "photos, the base model, the concept from most likeness to least"),
        ),
        section(f"Curves{about}", curves(folder / "metrics.csv", result["selection"])),
        section(f"Masks{about}", picture(folder / "masks.png", "what the loss sees of each picture")),
        section(f"Attention{about}", picture(folder / "attention.png", seen)),
        section(f"Selection, step by step{about}", *(picture(p, f"step {int(p.stem)}", "pixels") for p in steps)),
    ]


def training_of(result: dict) -> list[str]:
    """The sections of the training behind an experiment's job, where its folder still lies there."""
    folder = Path(result.get("training", {}).get("folder", "gone"))
    if not (folder / "result.json").is_file():
        return []
    job = result["job"]
    about = f": {job['concept']}, {job['arm']}, seed {job['seed']}"
    with undamaged(folder / "result.json"):
        return training_sections(folder, json.loads((folder / "result.json").read_text()), about)


def of_training(folder: Path, result: dict) -> str:
    with undamaged(folder / "config.yaml"):
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    facts = [{"what": k.replace("_", " "), "value": v} for k, v in result.items() if k not in ("selection", "concept")]
    return page(
        f"{result['concept']}: training",
        f"{folder.resolve().name}: step {result['kept_step']} kept after {result['train_seconds']} s",
        [
            *training_sections(folder, result),
            section("Numbers", table(facts, ["what", "value"])),
            configuration(config),
        ],
    )


def of_evaluation(folder: Path, result: dict) -> str:
    columns = [*reversed(result["points"][0]), *(c for c in SCORES if c in result["rows"]), "pareto"]
    area = result.get("front")
    meant = [{"score": k, "definition": v} for k, v in result["definitions"].items()]
    return page(
        f"{result['concept']}: evaluation",
        f"{len(result['prompts'])} prompts, {len(result['points'])} operating points, {result['seconds']} s",
        [
            section(
                "Pareto front",
                picture(
                    folder / "front.png", f"image against text similarity, by {SAID[axis_of(result['points'][0])]}"
                ),
            ),
            section("Hypervolume", table([area | {"interval": str(area["interval"])}], ["hypervolume", "interval"]))
            if area
            else "",
            section("Operating points", table(result["summary"], columns)),
            section(
                "Pictures", picture(folder / "pictures.png", "first prompts (rows), every point (columns)", "pixels")
            ),
            section("Definitions", table(meant, ["score", "definition"])),
            *training_of(result),
            configuration(result["config"]),
        ],
    )


def of_experiment(name: str, joined: Path, jobs: Path) -> str:
    """An experiment's joined result, its jobs' fronts and each arm's first training where they still lie in `jobs`."""
    if not joined.exists():
        raise UserError(f"{joined} does not exist; make it with {made_by(name)}.")
    result = read_result(joined)
    claims, equal = [], []
    for p in result["paired"]:
        claims.append(p | {"holds": str(p["holds"]).lower(), "interval": str(p["interval"])})
        for measure, other in p["also"].items():
            claims.append(
                {"claim": "the other measure", "measure": measure} | other | {"interval": str(other["interval"])}
            )
        shown = lambda v: (
            f"{v[0]:+.3f} {[x if x is None else round(x, 3) for x in v[1:]]}" if isinstance(v, list) else v
        )
        equal += [{"better": p["better"], "worse": p["worse"]} | {k: shown(v) for k, v in row.items()}
                  for row in p["at_equal_beta"]]  # fmt: skip
    arms = [{"arm": arm, "hypervolume": a["hypervolume"], "95 %": str(a["hypervolume_interval"])}
            for arm, a in result["arms"].items()]  # fmt: skip
    axes = [
        name
        for name in ("beta", "tau", "lock", "strength")
        if any(name in a["points"][0] for a in result["arms"].values())
    ]
    points = [{"arm": arm} | p for arm, a in result["arms"].items() for p in a["points"]]
    meant = [{"measure": k, "definition": v} for k, v in result["definitions"].items()]
    done = []
    for path in jobs.glob("*/result.json"):
        with undamaged(path):
            evaluated = read_evaluation(path, of_a_job=True)
            done.append((*(evaluated["job"][key] for key in ("concept", "seed", "arm")), path, evaluated))
    fronts, first = [], {}
    for concept, seed, arm, path, evaluated in sorted(done, key=lambda job: job[:2]):
        fronts.append(picture(path.with_name("front.png"), f"{concept}, seed {seed}, {arm}", "half"))
        first.setdefault(arm, evaluated)
    columns = ["better", "worse", "claim", "measure", "difference", "interval", "sign_flip_p", "concepts_better"]
    return page(
        f"Experiment {name}",
        f"{size_of(result)}; ordering holds: {str(result['ordering_holds']).lower()}",
        [
            section("Fronts", picture(joined.with_suffix(".png"), "image against text similarity, by arm")),
            section("Claims", table(claims, [*columns, "holds"])),
            section("At equal bias", table(equal, ["better", "worse", "beta", "text", "image", "facts", "drawing"])),
            section("Arms", table(arms, ["arm", "hypervolume", "95 %"])),
            section("Operating points", table(points, ["arm", *axes, "text", "image", "pareto"])),
            section("Definitions", table(meant, ["measure", "definition"])),
            section("Jobs", *fronts),
            *(part for arm in result["arms"] if arm in first for part in training_of(first[arm])),
            configuration(result["config"]),
        ],
    )


def run(cfg: DictConfig) -> Path:
    """Write the page; returns its path. Raises UserError where there is nothing to report on."""
    if bool(cfg.run) == bool(cfg.name):
        known = ", ".join(sorted(p.stem for p in (CONF / "experiment").glob("*.yaml") if p.stem != "sweep"))
        raise UserError(
            f"run={cfg.run} and experiment={cfg.name}: give one of them, a folder that perfusion train or evaluate wrote, "
            f"or an experiment out of {known}."
        )
    if cfg.name:
        joined = Path(cfg.results) / f"{cfg.name}.json"
        with undamaged(joined):
            text = of_experiment(cfg.name, joined, Path(cfg.multirun) / cfg.name)
        path = joined.with_suffix(".html")
    else:
        text, path = of_run(Path(cfg.run)), Path(cfg.run) / "report.html"
    path = Path(cfg.output) if cfg.output else path
    check_place("output", path, "a page")
    write_text(path, text)
    print(f"written: {path}")
    return path

"""Fronts that lie in results/ and outputs/: what there is to compare, and the pictures behind each point."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from PIL import Image

from perfusion.errors import UserError
from perfusion.evaluation.figure import arm_name, strength_of
from perfusion.evaluation.reading import read_evaluation
from perfusion.experiments.sheets import SHOWN, behind, kept_pictures
from perfusion.results import read_result, size_of, undamaged
from perfusion.web.chart import Point, Series

RESULTS, OUTPUTS = Path("results/ablations"), Path("outputs")


def sources() -> dict[str, Path]:
    """{what it is called: its file}: experiments of `perfusion collect`, runs of `perfusion evaluate`. The page sends names."""
    experiments = {f"experiment {path.stem}": path for path in sorted(RESULTS.glob("*.json"))}
    runs = [p for p in sorted(OUTPUTS.rglob("result.json")) if _is_evaluation(p)]
    return experiments | {f"run {path.parent.relative_to(OUTPUTS)}": path for path in runs}


def _is_evaluation(path: Path) -> bool:
    try:
        return _has_summary(path, path.stat().st_mtime_ns)
    except (OSError, UserError):
        return False


@lru_cache(None)
def _has_summary(path: Path, changed: int) -> bool:
    """Of a file that was last changed then: it is read once, however often the page is looked at."""
    return "summary" in read_result(path)


def fronts(name: str) -> tuple[list[Series], str]:
    """The fronts of a source, and sentences about them. Raises UserError for a name that is not in `sources`, or a damaged file."""
    known = sources()
    if name not in known:
        raise UserError(f"{name} is not here; there are: {', '.join(known) or 'no results yet'}.")
    path = known[name]
    result = read_result(path)
    if "arms" in result:
        with undamaged(path):
            return _of_experiment(name, path, result)
    result = read_evaluation(path)
    concept, prompts, rows = result["concept"], result["prompts"], result["summary"]
    shown, about = _shown(lambda: behind(path.parent, result), {"concept": concept, "prompts": prompts[:SHOWN]})
    arms: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        arms.setdefault(arm_name(row) or concept, []).append(i)
    series = [
        Series(a, _points([rows[i] for i in of], [shown[i] for i in of] if shown else None)) for a, of in arms.items()
    ]
    return series, f"{concept}: {len(prompts)} prompts. {about}"


def _of_experiment(name: str, path: Path, result: dict) -> tuple[list[Series], str]:
    shown, about = _shown(lambda: kept_pictures(path.with_suffix(".jpg"), result), result.get("pictures") or {})
    series = [Series(arm, _points(of["points"], shown.get(arm))) for arm, of in result["arms"].items()]
    return series, f"{name}: {size_of(result)}. {about}"


def _shown(read: Callable, about: dict):
    """`read()`, and a sentence on what its pictures are of, or on why there are none: a front is worth showing without."""
    try:
        shown = read()
    except UserError as error:
        return {}, f"No pictures: {error}"
    if not shown:
        return {}, "Its pictures are not here."
    of = about["concept"] + (f", seed {about['seed']}" if "seed" in about else "")
    said = ", ".join(f'"{prompt.replace("{}", about["concept"])}"' for prompt in about["prompts"])
    return shown, f"Behind each dot, row by row: {said} ({of})."


def _points(rows: list[dict], pictures: list[Image.Image] | None) -> list[Point]:
    """From the lowest bias, or a baseline's lowest strength, to the highest, so that the line goes along the front."""
    both = sorted(zip(rows, pictures or [None] * len(rows)), key=lambda pair: strength_of(pair[0])[1])
    return [Point(row["text"], row["image"], _label(row), picture, bool(row["pareto"])) for row, picture in both]


def _label(row: dict) -> str:
    at = ", ".join(filter(None, (strength_of(row)[0], arm_name(row))))
    read = f"; facts {row['facts']:.3f}, drawing {row['drawing']:.3f}" if {"facts", "drawing"} <= row.keys() else ""
    return f"{at}: text {row['text']:.3f}, image {row['image']:.3f}{read}"

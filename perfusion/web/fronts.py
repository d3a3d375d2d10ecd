"""Fronts that lie in results/ and outputs/: what there is to compare, and the pictures behind each point."""

from pathlib import Path

from PIL import Image

from perfusion.errors import UserError
from perfusion.evaluation.figure import arm_name, strength_of
from perfusion.evaluation.reading import read_evaluation
from perfusion.experiments.jobs import read_jobs
from perfusion.plots import cells
from perfusion.results import read_result, undamaged
from perfusion.web.chart import Point, Series

RESULTS, OUTPUTS, JOBS = Path("results/ablations"), Path("outputs"), Path("multirun")
SHEET = 4  # rows of a job's pictures.png at most: its first prompts


def sources() -> dict[str, Path]:
    """{what it is called: its file}: experiments of `perfusion collect`, runs of `perfusion evaluate`. The page sends names."""
    experiments = {f"experiment {path.stem}": path for path in sorted(RESULTS.glob("*.json"))}
    runs = [p for p in sorted(OUTPUTS.rglob("result.json")) if _is_evaluation(p)]
    return experiments | {f"run {path.parent.relative_to(OUTPUTS)}": path for path in runs}


def _is_evaluation(path: Path) -> bool:
    try:
        return "summary" in read_result(path)
    except UserError:
        return False


def fronts(name: str) -> tuple[list[Series], str]:
    """The fronts of a source, and a sentence about them. Raises UserError for a name that is not in `sources`, or a damaged file."""
    known = sources()
    if name not in known:
        raise UserError(f"{name} is not here; there are: {', '.join(known) or 'no results yet'}.")
    path = known[name]
    if "arms" in read_result(path):
        with undamaged(path):
            return _of_experiment(path.stem, read_result(path))
    result = read_evaluation(path)
    points = _points(result["summary"], _pictures(path.parent, result))
    return [Series(result["concept"], points)], f"{result['concept']}: {len(result['prompts'])} prompts"


def _of_experiment(name: str, result: dict) -> tuple[list[Series], str]:
    try:
        jobs, missing = read_jobs(JOBS / name), ""
    except UserError:
        jobs, missing = {}, f"; its pictures lie in {JOBS / name}, which is not here"
    series = []
    for arm, about in result["arms"].items():
        first = next(iter(jobs[arm].values()), None) if arm in jobs else None
        series.append(Series(arm, _points(about["points"], _pictures(*first) if first else [])))
    return series, f"{name}: {len(result['concepts'])} concepts x {len(result['seeds'])} seeds{missing}"


def _points(rows: list[dict], pictures: list[Image.Image]) -> list[Point]:
    """From the lowest bias, or strength, to the highest, so that the line goes along the front."""
    pictures = pictures if len(pictures) == len(rows) else [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: _place(rows[i]))
    return [
        Point(rows[i]["text"], rows[i]["image"], _label(rows[i]), pictures[i], bool(rows[i]["pareto"])) for i in order
    ]


def _place(row: dict) -> tuple[str, float, float]:
    return str(row.get("lock")), row.get("tau") or 0, strength_of(row)[1]


def _label(row: dict) -> str:
    said = [strength_of(row)[0], *([arm_name(row)] if arm_name(row) else [])]
    return f"{', '.join(said)}: text {row['text']:.3f}, image {row['image']:.3f}"


def _pictures(folder: Path, result: dict) -> list[Image.Image]:
    """Of each point the first prompts' pictures, two by two; nothing where they were cleared away."""
    path = folder / "pictures.png"
    if not path.exists():
        return []
    rows, columns = min(SHEET, len(result["prompts"])), len(result["points"])
    by_prompt = [cells(path, rows, columns, row) for row in range(rows)]
    return [_together([pictures[i] for pictures in by_prompt]) for i in range(columns)]


def _together(pictures: list[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    across = 1 if len(pictures) == 1 else 2
    sheet = Image.new("RGB", (across * width, -(-len(pictures) // across) * height), "white")
    for n, picture in enumerate(pictures):
        sheet.paste(picture, (n % across * width, n // across * height))
    return sheet

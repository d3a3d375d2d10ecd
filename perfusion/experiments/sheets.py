"""The pictures behind an experiment's points, small enough to lie beside its result: NAME.jpg, an arm a row, a point a column."""

import io
import itertools
from pathlib import Path

from PIL import Image

from perfusion.atomic import whole
from perfusion.errors import loading
from perfusion.plots import attempt, cells, tiled

LARGEST = 300_000  # bytes of the file
SIDES, QUALITIES = (96, 64, 48, 32, 24), (92, 85, 75, 60)  # of one picture in pixels, and JPEG's: the first that fit
SHOWN = 4  # prompts of a point, two by two: as many as pictures.png has rows
Jobs = dict[str, dict[tuple[str, int], tuple[Path, dict]]]  # of jobs.read_jobs


def behind(folder: Path, result: dict) -> list[Image.Image]:
    """Of each point of an evaluation its first prompts' pictures, two by two; nothing where they were cleared away.

    Raises UserError where its pictures.png is damaged.
    """
    path = folder / "pictures.png"
    if not path.exists():
        return []
    rows, columns = min(SHOWN, len(result["prompts"])), len(result["points"])
    with loading(f"{path} is damaged", f"remove it, or remove {folder} and run the job again"):
        points = zip(*(cells(path, rows, columns, row) for row in range(rows)))
        return [tiled([p[:1]] if rows == 1 else [p[i : i + 2] for i in range(0, rows, 2)]) for p in points]


def keep_pictures(jobs: Jobs, path: Path) -> dict | None:
    """Write one concept's and seed's pictures at the points of every arm; returns which they are, for `kept_pictures`.

    Of the concepts and seeds that all arms have, the first with pictures in the most arms. Where no job has its pictures any
    more, or they cannot be written, none are kept: not those of an older result either.
    """
    has = lambda arm, unit: (jobs[arm][unit][0] / "pictures.png").exists()
    units = sorted(set.intersection(*(set(of_arm) for of_arm in jobs.values())))
    unit = max(units, key=lambda unit: sum(has(arm, unit) for arm in jobs))
    arms = [arm for arm in jobs if has(arm, unit)]
    if arms and attempt(_write, [jobs[arm][unit] for arm in arms], path=path):
        prompts = jobs[arms[0]][unit][1]["prompts"][:SHOWN]
        return {"concept": unit[0], "seed": unit[1], "prompts": prompts, "arms": arms}
    path.unlink(missing_ok=True)
    return None


def kept_pictures(path: Path, result: dict) -> dict[str, list[Image.Image]]:
    """{arm: a picture for each of its points} of a joined result; nothing where none are kept.

    Raises UserError for a damaged file.
    """
    if not result.get("pictures") or not path.exists():
        return {}
    with loading(f"{path} is damaged", "restore it, or run perfusion collect again"):
        points = {arm: len(result["arms"][arm]["points"]) for arm in result["pictures"]["arms"]}
        rows = [cells(path, len(points), max(points.values()), row) for row in range(len(points))]
        return {arm: row[:count] for (arm, count), row in zip(points.items(), rows)}


def _write(jobs: list[tuple[Path, dict]], path: Path) -> None:
    rows = [behind(folder, result) for folder, result in jobs]
    for side, quality in itertools.product(SIDES, QUALITIES):
        out = io.BytesIO()
        small = tiled([[_within(picture, 2 * side) for picture in row] for row in rows])
        small.save(out, "JPEG", quality=quality, subsampling=0)
        if out.tell() <= LARGEST:
            break
    else:
        raise ValueError(f"{sum(map(len, rows))} points are too many for {LARGEST} bytes")
    with whole(path) as part:
        part.write_bytes(out.getvalue())


def _within(picture: Image.Image, side: int) -> Image.Image:
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small

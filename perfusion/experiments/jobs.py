"""An experiment's finished jobs, read back and held against one another: what may be joined, as arrays."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perfusion.errors import UserError
from perfusion.evaluation.fronts import check_front
from perfusion.evaluation.reading import read_evaluation
from perfusion.experiments.sweep import NOT_KEYED, PRECISIONS
from perfusion.results import undamaged

# What no number depends on, beside NOT_KEYED.
NOT_COMPARED = (
    "trainer.enable_progress_bar",
    *map(".".join, PRECISIONS),
    "evaluation.batch_size",
    "evaluation.drift",
    "model.draw_batch",
    "evaluation.reads",
)


@dataclass
class Arm:
    """One condition's scores on units (concept x training seed) that every arm has. scores: {name: [U, points, P, K]}."""

    points: list[dict]
    scores: dict[str, np.ndarray]
    folders: list[Path]


def read_jobs(folder: Path) -> dict[str, dict[tuple[str, int], tuple[Path, dict]]]:
    """{arm: {(concept, seed): (job folder, result)}}. Raises UserError where there are none, or of two base models."""
    jobs, hashes = defaultdict(dict), set()
    for path in sorted(folder.glob("*/result.json")):
        result = read_evaluation(path, of_a_job=True)
        about = result["job"]
        other = jobs[about["arm"]].get((about["concept"], about["seed"]))
        hashes.add(result["trained"]["base_hash"])
        if other:
            raise UserError(
                f"{path.parent} and {other[0]} are both {about['arm']} of {about['concept']}, seed {about['seed']}, with "
                "different settings; remove the folder of the settings that are not meant."
            )
        jobs[about["arm"]][about["concept"], about["seed"]] = (path.parent, result)
    if not jobs:
        raise UserError(
            f"{folder} has no result of a job; run perfusion train -m +experiment={folder.name} first, from this folder."
        )
    if len(hashes) > 1:
        raise UserError(
            f"{folder} holds jobs of {len(hashes)} base models ({', '.join(sorted(hashes))}); remove those of the old one."
        )
    return dict(jobs)


def failures(folder: Path, jobs: dict) -> list[dict]:
    """What error.txt says of jobs (arm, concept, seed) that have no result under any settings."""
    failed = []
    for path in sorted(folder.glob("*/error.txt")):
        with undamaged(path):
            job = json.loads(path.read_text().splitlines()[0])
            if (job["concept"], job["seed"]) not in jobs.get(job["arm"], {}):
                failed.append(job)
    return failed


def arm_of(name: str, jobs: list[tuple[Path, dict]]) -> Arm:
    """The jobs of one arm as arrays. Raises UserError where points differ, or a front has one point."""
    points, prompts = jobs[0][1]["points"], jobs[0][1]["prompts"]
    check_front(name, points)
    scores = defaultdict(list)
    for folder, result in jobs:
        if result["points"] != points:
            raise UserError(f"{folder} was evaluated at other points than {jobs[0][0]}; remove the older one.")
        shape, rows = (len(prompts), -1, len(points)), result["rows"]
        for column in rows.keys() - {"point", "prompt", "k"}:
            values = np.array([np.nan if v is None else v for v in rows[column]], float).reshape(shape)
            scores[column].append(values.transpose(2, 0, 1))
    return Arm(points, {c: np.stack(v) for c, v in scores.items()}, [folder for folder, _ in jobs])


def settings_of(jobs: dict, arms: dict) -> tuple[dict, dict[str, dict]]:
    """The settings {key: value} that all jobs have alike, and those that each arm has of its own.

    arms: {arm: what its file sets}. Within an arm all must agree; between arms, all but what any arm sets. Of concepts,
    seeds and NOT_COMPARED nothing is asked. Raises UserError where two jobs differ, or had other prompts: they are no pair.
    """
    left_out = ("concept", "seed", *NOT_KEYED, *NOT_COMPARED)
    set_by_arms = {key for arm in arms.values() for key in flat(arm or {})}
    if any(key.split(".")[0] == "method" for key in set_by_arms):  # all of its settings, and its own axis
        set_by_arms |= {"method", "evaluation.strength"}
    within = lambda key, keys: any(key == k or key.startswith(f"{k}.") for k in keys)
    how = lambda r: {k: v for k, v in flat(r["config"]).items() if not within(k, left_out)} | {"prompts": r["prompts"]}
    shared, own = None, {}
    for arm, of_arm in jobs.items():
        (first, result), *others = of_arm.values()
        mine = how(result)
        for folder, other in others:
            _check_alike(first, mine, folder, how(other))
        own[arm] = {k: v for k, v in mine.items() if within(k, set_by_arms)}
        rest = {k: v for k, v in mine.items() if k not in own[arm]}
        if shared:
            _check_alike(shared[0], shared[1], first, rest)
        shared = shared or (first, rest)
    return {k: v for k, v in shared[1].items() if k != "prompts"}, own


def _check_alike(first: Path, expected: dict, folder: Path, settings: dict) -> None:
    differ = [k for k in expected | settings if _named(settings.get(k)) != _named(expected.get(k))]
    if differ:
        raise UserError(
            f"{folder} was made with other {', '.join(differ)} than {first}, so their pictures are no pairs; "
            "remove the folders of the settings that are not meant, and run the sweep again."
        )


def flat(config: dict, before: str = "") -> dict:
    """{"model.steps": 10} of {"model": {"steps": 10}}."""
    parts = [flat(v, f"{before}{k}.") if isinstance(v, dict) and v else {before + k: v} for k, v in config.items()]
    return {k: v for part in parts for k, v in part.items()}


def _named(value):
    """A path by its name: a sweep may go on in another checkout."""
    return Path(value).name if isinstance(value, str) and value.removeprefix("local-dir:").startswith("/") else value

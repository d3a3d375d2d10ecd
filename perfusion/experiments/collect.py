"""perfusion collect: an experiment's jobs joined into one table, its fronts with intervals, and which claims hold.

Writes results/ablations/NAME.json, NAME.csv (a row an arm x concept x seed x operating point), NAME.png and NAME.pdf, and
NAME.jpg: pictures at every point, which the page of perfusion web shows (sheets.py).
"""

from collections import Counter
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from perfusion.atomic import check_place
from perfusion.errors import UserError
from perfusion.evaluation.evaluate import DEFINITIONS
from perfusion.evaluation.figure import CROWDED, front_figure, strength_of
from perfusion.evaluation.fronts import (
    CLIP,
    MEASURES,
    READER,
    WITHOUT_READER,
    Bootstrap,
    all_hold,
    compared,
    holds,
    hypervolume,
    interval,
    on_front,
    pareto,
    sign_flip,
)
from perfusion.experiments.jobs import Arm, arm_of, failures, read_jobs, settings_of
from perfusion.experiments.sheets import keep_pictures
from perfusion.experiments.sweep import experiments
from perfusion.plots import attempt, cells
from perfusion.results import mean, read_result, size_of, write_csv, write_result

OTHERS = {
    "sign_flip_p": "two-sided p of a sign-flip test on the concepts' own differences, each of its own fronts (their mean: "
    "mean_over_concepts; the difference beside it is of the fronts of all concepts together, which its interval is about)",
    "concepts_better": "how many of the concepts' own differences are above 0",
    "defined": "share of the bootstrap's draws in which the measure exists; the interval is None below .95",
    "at_equal_beta": "every score's paired difference, better less worse, at each bias that both arms have, and its interval",
    "median_seconds": "a job's, which trains unless another job has, and evaluates; and its training's own",
}
MEASURED = {
    "hypervolume": "area that the front dominates above the reference point, in squared cosines; higher is better",
    "matched_text": "text similarity of one front minus that of the other at the same image similarity, mean over the "
    "image similarities that both reach",
    "read_hypervolume": "as hypervolume, of the reader's scores: prompt facts read right against pictures read as the very drawing",
    "matched_facts": "as matched_text, of the reader's scores: facts read right at the same share of pictures read as the very drawing",
}


def collect(jobs: dict, comparisons: list[dict], cfg: DictConfig) -> tuple[dict, dict[str, Arm]]:
    """Points, fronts, intervals and claims of an experiment. jobs: of `read_jobs`."""
    settings, own = settings_of(jobs, OmegaConf.to_container(cfg.arms))
    first = next(iter(next(iter(jobs.values())).values()))[1]
    prompts = len(first["prompts"])
    units = sorted(set.intersection(*(set(of_arm) for of_arm in jobs.values())))
    if not units:
        raise UserError(f"no concept and seed has a result in every arm of {cfg.name}; finish the sweep first.")
    left_out = {arm: sorted(f"{c} seed {s}" for c, s in of_arm.keys() - set(units)) for arm, of_arm in jobs.items()}
    arms = {name: arm_of(name, [jobs[name][u] for u in units]) for name in jobs}
    boot = Bootstrap([concept for concept, _ in units], prompts, cfg.draws, cfg.seed)
    described, fronts, drawn = {}, {}, {}
    for name, arm in arms.items():
        by_column = {c: boot(_over_noises(s).transpose(0, 2, 1)) for c, s in arm.scores.items()}
        drawn[name] = by_column
        fronts[name] = {
            scores: np.stack([by_column[s] for s in scores], -1)  # [1 + draws, points, 2]
            for scores in (CLIP, READER)
            if set(scores) <= by_column.keys()
        }
        best = pareto(fronts[name][CLIP][0])
        rows = []
        for i, point in enumerate(arm.points):
            row = dict(point) | {c: mean([float(d[0, i])]) for c, d in sorted(by_column.items()) if d[0, i] == d[0, i]}
            row |= {f"{c}_interval": interval(d[:, i]) for c, d in sorted(by_column.items()) if c in row}
            rows.append(row | {"pareto": bool(best[i])})
        described[name] = {"settings": own[name], "points": rows, "left_out": left_out[name]}
        for measure in ("hypervolume", "read_hypervolume"):
            if MEASURES[measure] in fronts[name]:
                area = hypervolume(fronts[name][MEASURES[measure]], tuple(cfg.reference))
                described[name] |= {measure: mean([area[0]]), f"{measure}_interval": interval(area)}
    paired = [
        _compared(c, arms, fronts, units, cfg) | {"at_equal_beta": _at_equal_beta(c, arms, drawn)} for c in comparisons
    ]
    result = {
        "experiment": cfg.name,
        "ordering_holds": all_hold([p["holds"] for p in paired]),
        "paired": paired,
        "concepts": sorted({c for c, _ in units}),
        "seeds": sorted({s for _, s in units}),
        "units": len(units),
        "arms": described,
        "reference": list(cfg.reference),
        "bootstrap": {"draws": cfg.draws, "seed": cfg.seed, "level": 0.95, "resampled": "concepts, seeds, prompts"},
        "definitions": DEFINITIONS | MEASURED | OTHERS | {"ordering_holds": " ".join(holds.__doc__.split())},
        "prompts": first["prompts"],
        "scorers": first["scorers"],
        "config": settings,
    }
    return result, arms


def _over_noises(scores: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is known; NaN where nothing is (a fact that no prompt asks)."""
    known = ~np.isnan(scores)
    return np.where(known, scores, 0).sum(-1) / np.where(known.any(-1), known.sum(-1), np.nan)


def _compared(claim: dict, arms: dict[str, Arm], fronts: dict, units: list, cfg: DictConfig) -> dict:
    """The paired difference of two arms, its interval and test, and whether the claim holds (fronts.holds)."""
    for arm in (claim["better"], claim["worse"]):
        if arm not in arms:
            raise UserError(f"arm {arm} of {cfg.name} has no result yet; run its jobs first.")
    a, b = fronts[claim["better"]], fronts[claim["worse"]]
    both = [m for m, scores in MEASURES.items() if scores in a and scores in b]
    draws = {m: compared(m, a[MEASURES[m]], b[MEASURES[m]], tuple(cfg.reference)) for m in both}
    measure = claim["measure"] if claim["measure"] in draws else WITHOUT_READER[claim["measure"]]
    # The test is over concepts, each one's own fronts (means over its seeds, prompts and noises).
    concepts = sorted({c for c, _ in units})
    rows = [[i for i, (c, _) in enumerate(units) if c == concept] for concept in concepts]
    own = lambda arm: np.stack(
        [np.stack([np.nanmean(arms[arm].scores[n][r], (0, 2, 3)) for n in MEASURES[measure]], -1) for r in rows]
    )
    each = compared(measure, own(claim["better"]), own(claim["worse"]), tuple(cfg.reference))
    known = each[~np.isnan(each)]
    bounds = interval(draws[measure])
    return dict(claim) | {
        "measure": measure,
        "difference": None if np.isnan(draws[measure][0]) else mean([draws[measure][0]]),
        "interval": bounds,
        "holds": holds(bounds),
        "defined": mean([(~np.isnan(draws[measure])).mean()]),
        "mean_over_concepts": mean([known.mean()]) if len(known) else None,
        "sign_flip_p": round(sign_flip(known), 5) if len(known) else None,
        "concepts_better": f"{int((known > 0).sum())} of {len(known)}",
        "also": {m: {"difference": None if np.isnan(d[0]) else mean([d[0]]), "interval": interval(d)}
                 for m, d in draws.items() if m != measure},
    }  # fmt: skip


def _at_equal_beta(claim: dict, arms: dict[str, Arm], drawn: dict) -> list[dict]:
    """Every score's paired difference, better less worse, at each bias that both arms have once: [difference, low, high]."""
    a, b = claim["better"], claim["worse"]
    betas = {name: [p["beta"] for p in arms[name].points if "beta" in p] for name in (a, b)}
    at = {name: {v: i for i, v in enumerate(values) if values.count(v) == 1} for name, values in betas.items()}
    rows = []
    for beta in sorted(at[a].keys() & at[b].keys()):
        row = {"beta": beta}
        for column in sorted(drawn[a].keys() & drawn[b].keys()):
            d = drawn[a][column][:, at[a][beta]] - drawn[b][column][:, at[b][beta]]
            if not np.isnan(d[0]):
                row[column] = [round(float(d[0]), 6), *interval(d)]
        rows.append(row)
    return rows


def table(jobs: dict) -> dict[str, list]:
    """Every job's operating points, a row each, as columns."""
    rows = []
    for arm, of_arm in sorted(jobs.items()):
        for (concept, seed), (folder, result) in sorted(of_arm.items()):
            about = {"arm": arm, "concept": concept, "seed": seed, "job": folder.name}
            best = on_front(result["summary"])
            rows += [about | point | {"pareto": on} for point, on in zip(result["summary"], best)]
    return {name: [row.get(name) for row in rows] for name in {k: None for row in rows for k in row}}


def draw_figure(result: dict, arms: dict[str, Arm], path: Path) -> None:
    """Every arm's front with its intervals; below, the first concept's first prompt at three biases of each arm."""
    pictures, prompt = {}, None
    for name, arm in arms.items():
        if not (arm.folders[0] / "pictures.png").exists():
            continue  # the pictures of a long sweep may have been cleared away
        wanted = sorted(range(len(arm.points)), key=lambda i: strength_of(arm.points[i])[1])
        wanted = [wanted[round(i * (len(wanted) - 1) / 4)] for i in range(5)] if len(wanted) > 5 else wanted
        first = read_result(arm.folders[0] / "result.json")
        shown = cells(arm.folders[0] / "pictures.png", min(4, len(first["prompts"])), len(arm.points))
        pictures[name] = [(strength_of(arm.points[i])[0], shown[i]) for i in wanted]
        prompt = first["prompts"][0].replace("{}", first["concept"])
    front_figure(
        {name: described["points"] for name, described in result["arms"].items()},
        pictures,
        path,
        f"{result['experiment']}: {size_of(result)}",
        ("lines through a point: 95 % intervals; " if len(arms) <= CROWDED else "")
        + "filled: on its arm's Pareto front"
        + (f'; below: "{prompt}"' if prompt else ""),
        also_pdf=True,
    )


def check_kept(path: Path, result: dict) -> None:
    """Raises UserError where `result` would be written over one of more concepts and seeds, or of other settings."""
    if not path.exists():
        return
    way_out = f"give another folder, as in results=outputs/ablations, or move {path} away."
    try:
        before = read_result(path)
    except UserError as error:
        raise UserError(f"{path} cannot be read, so it is not written over; {way_out}") from error
    if before.get("units", 0) > result["units"]:
        raise UserError(f"{path} joins {before['units']} concepts x seeds, these jobs are {result['units']}; {way_out}")
    differ = [k for k in ("prompts", "config") if before.get(k) != result[k]]
    if differ:
        raise UserError(f"{path} is of other {' and '.join(differ)} than these jobs; {way_out}")


def run(cfg: DictConfig) -> dict:
    if not cfg.name:
        raise UserError(f"experiment is not given; allowed are: {', '.join(experiments())}.")
    jobs = read_jobs(Path(cfg.multirun) / cfg.name)
    jobs = {arm: jobs[arm] for arm in cfg.arms if arm in jobs} | jobs  # in the experiment's order
    result, arms = collect(jobs, OmegaConf.to_container(cfg.comparisons), cfg)
    result["failed"] = failures(Path(cfg.multirun) / cfg.name, jobs)
    done = [r for of_arm in jobs.values() for _, r in of_arm.values()]
    result["trained"] = {"base_hash": done[0]["trained"]["base_hash"]}
    result["commits"] = dict(Counter(r["surroundings"]["commit"] for r in done).most_common())
    result["surroundings"] = {k: v for k, v in done[-1]["surroundings"].items() if k != "commit"}
    result["seconds"] = round(sum(r["job_seconds"] for r in done), 1)
    for arm, of_arm in jobs.items():
        seconds = {
            "job": [r["job_seconds"] for _, r in of_arm.values()],
            "training": [r["training"]["train_seconds"] for _, r in of_arm.values()],
        }
        result["arms"][arm]["median_seconds"] = {
            what: mean([float(np.median(values))]) for what, values in seconds.items()
        }
    folder = Path(cfg.results)
    check_place("results", folder / f"{cfg.name}.json", "a table of results")
    check_kept(folder / f"{cfg.name}.json", result)
    write_csv(folder / f"{cfg.name}.csv", table(jobs))
    attempt(draw_figure, result, arms, path=folder / f"{cfg.name}.png")
    result["pictures"] = keep_pictures(jobs, folder / f"{cfg.name}.jpg")
    write_result(folder / f"{cfg.name}.json", result)
    print(report(result))
    print(f"written: {folder / cfg.name}.json, .csv, .png, .pdf{', .jpg' if result['pictures'] else ''}")
    return result


def report(result: dict) -> str:
    """Fronts and claims as a person reads them."""
    lines = [f"{result['experiment']}: {size_of(result)}"]
    for name, arm in result["arms"].items():
        low, high = arm["hypervolume_interval"]
        lines.append(f"  {name:16} hypervolume {arm['hypervolume']:.4f}  [{low}, {high}]")
        if "read_hypervolume" in arm:
            low, high = arm["read_hypervolume_interval"]
            lines.append(f"  {'':16} of the reader {arm['read_hypervolume']:.4f}  [{low}, {high}]")
        lines += [f"    left out, as another arm lacks it: {', '.join(arm['left_out'])}"] * bool(arm["left_out"])
    for p in result["paired"]:
        lines.append(
            f"  {p['better']} > {p['worse']} ({p['claim']}): {p['measure']} difference {p['difference']} "
            f"{p['interval']}, {p['concepts_better']} concepts (sign-flip p {p['sign_flip_p']}): {str(p['holds']).lower()}"
        )
    lines.append(f"  ordering holds: {str(result['ordering_holds']).lower()}")
    lines += [f"  {m}: {result['definitions'][m]}." for m in (*MEASURED, "concepts_better", "sign_flip_p")]
    return "\n".join(lines)

"""How many concepts, seeds, prompts and noises decide a difference of .01, from the spread of a pilot's paired differences.

perfusion train -m +experiment=key_locking name=pilot concept=one_place/cat,one_place/robot seed=0,1 evaluation.split=dev evaluation.seeds=2
python scripts/measure_power.py multirun/pilot     # -> results/power.json; the jobs: tar xf results/jobs/pilot.tar.xz

The pilot is an experiment of two arms on dev concepts and dev prompts, with at least two concepts, seeds and noises. At each
operating point that both arms have, a score's difference d = concept + seed within it + prompt + the rest; the spreads are the
usual estimates of a balanced analysis of variance, and the half-width of a 95 % interval of the mean difference is 1.96 times
sqrt(concept / C + seed / (C S) + prompt / P + rest / (C S P K)).
"""

import itertools
import sys
from pathlib import Path

import numpy as np

from perfusion.errors import UserError
from perfusion.experiments.jobs import arm_of, read_jobs
from perfusion.results import write_result

WANTED, SCORES = 0.01, ("facts", "drawing", "text", "image")
# Concepts, seeds, prompts, noises.
DESIGNS = ((12, 1, 32, 1), (12, 3, 32, 1), (12, 3, 32, 4), (12, 1, 128, 1), (48, 1, 32, 1))


def spreads(d: np.ndarray) -> dict[str, float]:
    """Variances of the parts of d [concepts, seeds, prompts, noises]; one that comes out below 0 is 0."""
    C, S, P, K = d.shape
    units, prompts, grand = d.mean((2, 3)), d.mean((0, 1, 3)), d.mean()
    rest = ((d - units[:, :, None, None] - prompts[:, None] + grand) ** 2).sum() / (C * S * P * K - C * S - P + 1)
    of_seeds = units.var(1, ddof=1).mean()  # seed + rest / (P K)
    of_concepts = units.mean(1).var(ddof=1)  # concept + seed / S + rest / (S P K)
    parts = {
        "concept": of_concepts - of_seeds / S,
        "seed": of_seeds - rest / (P * K),
        "prompt": prompts.var(ddof=1) - rest / (C * S * K),
        "rest": rest,
    }
    return {name: max(float(value), 0.0) for name, value in parts.items()}


def half_width(parts: dict[str, float], C: float, S: int, P: int, K: int) -> float:
    """Of the 95 % interval of a mean over C concepts x S seeds x P prompts x K noises."""
    variance = parts["concept"] / C + parts["seed"] / (C * S) + parts["prompt"] / P + parts["rest"] / (C * S * P * K)
    return 1.96 * float(np.sqrt(variance))


def cheapest(parts: dict[str, float]) -> dict[str, int]:
    """The fewest jobs x prompts, at one seed and one noise, whose interval is no wider than WANTED to either side."""
    allowed, of_jobs = (WANTED / 1.96) ** 2, parts["concept"] + parts["seed"]
    designs = []
    for C in range(int(of_jobs / allowed) + 1, 10_001):
        P = max(1, int(np.ceil((parts["prompt"] + parts["rest"] / C) / (allowed - of_jobs / C))))
        designs.append((C * P, C, P))
    _, concepts, prompts = min(designs)
    return {"concepts": concepts, "prompts": prompts}


def main(folder: Path) -> None:
    jobs = read_jobs(folder)
    if len(jobs) != 2:
        raise UserError(f"{folder} has the arms {', '.join(jobs)}; two are wanted.")
    units = sorted(set.intersection(*(set(of_arm) for of_arm in jobs.values())))
    concepts, seeds = sorted({c for c, _ in units}), sorted({s for _, s in units})
    if set(units) != set(itertools.product(concepts, seeds)) or min(len(concepts), len(seeds)) < 2:
        raise UserError(f"{folder} lacks jobs: both arms need every one of two or more concepts at two or more seeds.")
    a, b = (arm_of(name, [jobs[name][unit] for unit in units]) for name in jobs)
    result = {}
    for score in SCORES:
        d = (a.scores[score] - b.scores[score]).mean(1)  # [units, prompts, noises], mean over the operating points
        d = d[:, ~np.isnan(d).any((0, 2))]  # prompts of which it is asked
        parts = spreads(d.reshape(len(concepts), len(seeds), *d.shape[1:]))
        designs = [dict(zip(("concepts", "seeds", "prompts", "noises"), n)) | {"half_width": round(half_width(parts, *n), 5)}
                   for n in DESIGNS]  # fmt: skip
        result[score] = {
            "spread": {k: round(v**0.5, 5) for k, v in parts.items()},
            "designs": designs,
            "needed": cheapest(parts),
        }
        print(score, result[score])
    pilot = {"arms": list(jobs), "concepts": concepts, "seeds": seeds, "prompts": d.shape[1], "noises": d.shape[2]}
    what = "standard deviations of the parts of a paired difference, and half-widths of the 95 % interval of its mean"
    write_result(Path("results/power.json"), {"what": what, "wanted": WANTED, "pilot": pilot, "scores": result})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

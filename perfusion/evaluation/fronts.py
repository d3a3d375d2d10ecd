"""Likeness against what the prompt asks: Pareto fronts, hypervolumes, hierarchical bootstrap, paired tests. numpy only.

A point is (prompt, concept) of the same kind of score, CLIP or READER, both better when higher; arrays of points are [..., n, 2].
"""

import itertools

import numpy as np

from perfusion.errors import UserError

REFERENCE = (0.0, 0.0)  # of hypervolumes, unless another is given
CLIP, READER = ("text", "image"), ("facts", "drawing")  # the two scores of a point: of the prompt, of the concept
MEASURES = {"hypervolume": CLIP, "matched_text": CLIP, "read_hypervolume": READER, "matched_facts": READER}
WITHOUT_READER = {
    "read_hypervolume": "hypervolume",
    "matched_facts": "matched_text",
}  # what decides where none was asked


def pareto(points: np.ndarray) -> np.ndarray:
    """Which of points [n, 2] no other point beats in both coordinates, bool [n]."""
    at_least = (points[None] >= points[:, None]).all(-1)
    above = (points[None] > points[:, None]).any(-1)
    return ~(at_least & above).any(1)


def on_front(points: list[dict]) -> list[bool]:
    """`pareto` of operating points with text and image."""
    return pareto(np.array([[p["text"], p["image"]] for p in points])).tolist()


def hypervolume(points: np.ndarray, reference: tuple[float, float]) -> np.ndarray:
    """Area that points [..., n, 2] dominate, above and right of the reference point; [...]."""
    p = np.clip(points - np.asarray(reference), 0, None)
    order = np.argsort(-p[..., 0], axis=-1, kind="stable")
    x, y = (np.take_along_axis(p[..., i], order, -1) for i in (0, 1))
    widths = x - np.concatenate([x[..., 1:], np.zeros_like(x[..., :1])], -1)
    return (widths * np.maximum.accumulate(y, -1)).sum(-1)


def matched(a: np.ndarray, b: np.ndarray, levels: int = 32) -> float:
    """The prompt's score on front a minus that on front b at the same score of the concept, mean over what both reach.

    a, b: [n, 2]. Between two points a front is taken as straight. NaN where no score of the concept is reached by both.
    """
    low, high = max(a[:, 1].min(), b[:, 1].min()), min(a[:, 1].max(), b[:, 1].max())
    if not low < high:
        return float("nan")
    at = np.linspace(low, high, levels)
    heights = []  # of each front, at the same places
    for points in (a, b):
        points = points[np.argsort(points[:, 1])]
        best = np.maximum.accumulate(points[::-1, 0])[::-1]  # at this image similarity or a higher one
        heights.append(np.interp(at, points[:, 1], best))
    return float((heights[0] - heights[1]).mean())


def compared(measure: str, a: np.ndarray, b: np.ndarray, reference: tuple[float, float] = REFERENCE) -> np.ndarray:
    """[R]: by how much fronts a are better than fronts b [R, n, 2] of the measure's scores (MEASURES)."""
    if measure.endswith("hypervolume"):
        return hypervolume(a, reference) - hypervolume(b, reference)
    return np.array([matched(x, y) for x, y in zip(a, b)])


def axis_of(point: dict) -> str:
    """What an operating point is placed by along its front: the bias, or a baseline's strength."""
    return "beta" if "beta" in point else "strength"


def check_front(name: str, points: list[dict]) -> None:
    """Raises UserError where a front would be a single point."""
    if len(points) < 2:
        values = {"beta": "[0.6,0.75,0.9]", "strength": "[0.5,0.75,1.0]"}[axis_of(points[0])]
        raise UserError(
            f"the front of {name} has {len(points)} point; at least 2 operating points are needed: give evaluation."
            f"{axis_of(points[0])} several values, as in evaluation.{axis_of(points[0])}={values}, and run it again."
        )


class Bootstrap:
    """Hierarchical resampling of concepts x training seeds x prompts, as weights shared by every arm (so paired).

    concepts: the concept of every unit (a unit is one trained concept: concept x training seed) [U]; prompts: P.
    Concepts are drawn with replacement; within every drawn concept its training seeds, each time anew; prompts, with
    their pictures, across all concepts alike. Draw 0 is the data itself.
    """

    def __init__(self, concepts: list, prompts: int, draws: int = 2000, seed: int = 0):
        rng = np.random.default_rng(seed)
        names, self.of = np.unique(np.asarray(concepts), return_inverse=True)
        counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)  # [R, C]
        self.units = np.zeros((draws, len(concepts)))
        for c in range(len(names)):
            mine = np.flatnonzero(self.of == c)
            # A concept drawn k times has k resamples of its n seeds: together k n draws among them.
            drawn = rng.multinomial(counts[:, c] * len(mine), np.full(len(mine), 1 / len(mine)))
            self.units[:, mine] = drawn / len(mine)
        self.units = np.concatenate([self._even()[None], self.units]) / len(names)
        even = np.full((1, prompts), 1 / prompts)
        self.prompts = np.concatenate([even, rng.multinomial(prompts, even[0], size=draws) / prompts])

    def _even(self) -> np.ndarray:
        return 1 / np.bincount(self.of)[self.of]

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Means of scores [U, P, ...] under every draw, [1 + draws, ...]; NaN scores weigh nothing."""
        known = ~np.isnan(scores)
        flat = lambda x: x.reshape(*x.shape[:2], -1)
        total = np.einsum("ru,upk,rp->rk", self.units, flat(np.where(known, scores, 0.0)), self.prompts, optimize=True)
        weight = np.einsum("ru,upk,rp->rk", self.units, flat(known.astype(float)), self.prompts, optimize=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (total / weight).reshape(-1, *scores.shape[2:])


def interval(draws: np.ndarray, level: float = 0.95) -> list[float | None]:
    """Percentile interval over the draws [1 + R]; draw 0, the data itself, is left out.

    [None, None] where the data, or more than `1 - level` of the draws, have no value: it would be about some of them only.
    """
    known = draws[1:][~np.isnan(draws[1:])]
    if np.isnan(draws[0]) or len(known) < max(1, level * len(draws[1:])):
        return [None, None]
    return [round(float(v), 6) for v in np.quantile(known, [(1 - level) / 2, (1 + level) / 2])]


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p of a paired sign-flip test on differences [n]: exact up to 14 pairs, else 20,000 random flips."""
    n = len(differences)
    if n <= 14:
        signs = np.array(list(itertools.product((1, -1), repeat=n)))
    else:
        signs = np.random.default_rng(0).choice((1, -1), size=(20_000, n))
        signs[0] = 1
    return float((np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).mean())


def holds(bounds: list[float | None]) -> bool | str:
    """What `ordering_holds` says of one claim "a is better than b".

    The measure is the paired difference, a minus b, on the same concepts, training seeds, prompts and noise, of
    either the fronts' hypervolumes (`hypervolume`, `read_hypervolume`) or the prompt's scores at the same score of the concept
    (`matched_text`, `matched_facts`); the experiment's file names which. With its 95 % bootstrap interval (`Bootstrap`):

    true where the whole interval is above 0, false where the whole interval is below 0, else "undecided", which
    includes fronts that reach no common score of the concept. Of several claims together: false if any is false, true if all
    are true, else "undecided" (`all_hold`).
    """
    low, high = bounds
    if low is None or low <= 0 <= high:
        return "undecided"
    return low > 0


def all_hold(verdicts: list[bool | str]) -> bool | str | None:
    """Of several claims together, see `holds`; None where nothing is claimed."""
    if not verdicts:
        return None
    return False if False in verdicts else True if all(v is True for v in verdicts) else "undecided"

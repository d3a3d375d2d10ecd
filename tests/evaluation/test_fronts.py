"""Fronts and their statistics against plain definitions and known answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from perfusion.errors import UserError
from perfusion.evaluation.fronts import (
    Bootstrap,
    all_hold,
    check_front,
    holds,
    hypervolume,
    interval,
    matched,
    pareto,
    sign_flip,
)

clouds = arrays(float, st.tuples(st.integers(1, 6), st.just(2)), elements=st.integers(-4, 20).map(lambda v: v / 20))


@given(clouds)
@settings(deadline=None, max_examples=60)
def test_hypervolume_counts_the_dominated_cells(points):
    centres = (np.arange(20) + 0.5) / 20
    grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2)
    dominated = (points[:, None] > grid[None]).all(-1).any(0)
    assert hypervolume(points, (0.0, 0.0)) == pytest.approx(dominated.sum() / 400)
    assert hypervolume(points[pareto(points)], (0.0, 0.0)) == pytest.approx(hypervolume(points, (0.0, 0.0)))


def test_pareto_and_shapes():
    points = np.array([[0.1, 0.9], [0.5, 0.5], [0.4, 0.4], [0.9, 0.1], [0.5, 0.5]])
    assert pareto(points).tolist() == [True, True, False, True, True]
    assert hypervolume(np.stack([points, points + 0.1]), (0, 0)).shape == (2,)
    for point, key in [({"beta": 0.6, "tau": None}, "beta"), ({"strength": 1.0}, "strength")]:
        with pytest.raises(UserError, match=f"has 1 point; .* several values, as in evaluation.{key}=.0"):
            check_front("locked", [point])
        check_front("locked", [point, point])


def test_matched_is_a_shift():
    a = np.array([[0.3, 0.5], [0.2, 0.7], [0.1, 0.8]])
    assert matched(a + [0.05, 0], a) == pytest.approx(0.05)
    assert matched(a, a + [0.05, 0]) == pytest.approx(-0.05)
    assert np.isnan(matched(a, a + [0, 1]))


def test_bootstrap_against_loops():
    rng = np.random.default_rng(1)
    concepts = ["a", "a", "a", "b", "c", "c"]
    scores = rng.normal(size=(6, 4, 2))
    boot = Bootstrap(concepts, 4, draws=500)
    means = boot(scores)
    by_concept = np.stack([scores[:3].mean(0), scores[3:4].mean(0), scores[4:].mean(0)])
    assert means[0] == pytest.approx(by_concept.mean(0).mean(0))  # concepts weigh alike, whatever their seeds
    for r in (1, 77, 500):
        assert means[r] == pytest.approx(np.einsum("u,upk,p->k", boot.units[r], scores, boot.prompts[r]))
    assert boot.units.sum(1) == pytest.approx(np.ones(501)) and boot.prompts.sum(1) == pytest.approx(np.ones(501))
    scores[:, :, 1] = np.nan
    assert np.isnan(boot(scores)[:, 1]).all() and boot(scores)[:, 0] == pytest.approx(means[:, 0])


def test_seeds_are_resampled_within_their_concept():
    """Known answers: the mean of n seeds varies by their variance / n, and a mean over concepts by that of its parts."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, 6), rng.normal(0, 2, 3)
    one = Bootstrap(["a"] * 6, 1, 20_000)(a[:, None, None])[1:, 0]
    assert one.std() == pytest.approx(a.std() / np.sqrt(6), rel=0.05)
    assert Bootstrap(["a", "b"], 1, 100)(np.ones((2, 1, 1))).std() == 0
    scores = np.concatenate([a - a.mean(), b - b.mean()])[:, None, None]  # concepts alike: only their seeds vary
    both = Bootstrap(["a"] * 6 + ["b"] * 3, 1, 20_000)(scores)[1:, 0]
    # Two draws of concepts: each a's or b's, so E[var] = (var_a / 6 + var_b / 3) / 2 / 2
    assert both.var() == pytest.approx((a.var() / 6 + b.var() / 3) / 4, rel=0.05)


def test_interval_covers_the_truth():
    """Concepts vary most: an interval over pooled pictures would cover far less."""
    rng, covered = np.random.default_rng(2), 0
    for trial in range(60):
        scores = rng.normal(0, 1, (12, 1, 1)) + rng.normal(0, 0.3, (12, 8, 1))
        low, high = interval(Bootstrap(list(range(12)), 8, 400, seed=trial)(scores)[:, 0])
        covered += low <= 0 <= high
    assert covered / 60 > 0.85


def test_orderings():
    assert holds([0.1, 0.2]) is True and holds([-0.2, -0.1]) is False
    assert holds([-0.1, 0.2]) == "undecided" == holds([None, None])
    assert all_hold([True, True]) is True and all_hold([True, False, "undecided"]) is False
    assert all_hold([True, "undecided"]) == "undecided" and all_hold([]) is None
    assert interval(np.full(11, np.nan)) == [None, None]
    draws = np.arange(101.0)
    draws[1:4] = np.nan
    assert interval(draws) != [None, None]
    draws[4:8] = np.nan  # an interval about some draws only
    assert interval(draws) == [None, None]


def test_sign_flips():
    assert sign_flip(np.ones(6)) == 2 / 64 and sign_flip(np.array([1.0, -1.0])) == 1.0
    assert sign_flip(np.ones(30)) < 0.001

"""The power of a design against simulated experiments of known spread."""

import numpy as np
import pytest
from measure_power import cheapest, half_width, spreads

KNOWN = {"concept": 0.04, "seed": 0.01, "prompt": 0.02, "rest": 0.25}


def simulated(rng, C: int, S: int, P: int, K: int) -> np.ndarray:
    of = lambda name, *shape: rng.normal(0, KNOWN[name] ** 0.5, shape)
    return of("concept", C, 1, 1, 1) + of("seed", C, S, 1, 1) + of("prompt", 1, 1, P, 1) + of("rest", C, S, P, K)


def test_spreads_are_found_again():
    rng = np.random.default_rng(0)
    parts = [spreads(simulated(rng, 60, 3, 40, 2)) for _ in range(20)]
    for name, value in KNOWN.items():
        assert np.mean([p[name] for p in parts]) == pytest.approx(value, rel=0.15)


def test_half_width_is_that_of_the_mean():
    rng, size = np.random.default_rng(1), (12, 3, 16, 2)
    means = [simulated(rng, *size).mean() for _ in range(4000)]
    assert half_width(KNOWN, *size) == pytest.approx(1.96 * np.std(means), rel=0.05)


def test_the_cheapest_design_is_just_enough():
    design = cheapest(KNOWN)
    width = lambda C, P: half_width(KNOWN, C, 1, P, 1)
    C, P = design["concepts"], design["prompts"]
    assert width(C, P) <= 0.01 < min(width(C - 1, P), width(C, P - 1))
    for factor in (0.5, 2):  # no other split of as many is
        other = int(C * factor)
        assert width(other, int(C * P / other)) > 0.01

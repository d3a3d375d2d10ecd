"""The power of a design against simulated experiments of known spread."""

import numpy as np
import pytest
from measure_power import concepts_for, half_width, spreads

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


def test_enough_concepts():
    alone = {"concept": 0.01, "seed": 0.0, "prompt": 0.0, "rest": 0.0}
    assert concepts_for(alone, 3, 32, 1) == 385  # (1.96 * .1 / .01)^2 = 384.2
    assert concepts_for(alone | {"prompt": 1.0}, 3, 32, 1) is None

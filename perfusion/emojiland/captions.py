"""Captions of the world without its pictures: what the covariance C is measured on."""

from functools import cache

import numpy as np

from perfusion.emojiland.scenes import describe, sample_facts

SEED = 3


@cache  # 100,000 take eight seconds, and every job of a sweep asks for them
def captions(count: int, seed: int = SEED) -> tuple[str, ...]:
    """The first `count` captions of the scene stream `seed` (held-out drawings apart), without drawing it."""
    found = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        found.append(describe(sample_facts(rng), rng))
    return tuple(found)

"""Captions of the world without its pictures: what the covariance C is measured on."""

import numpy as np

from perfusion.emojiland.scenes import describe, sample_facts

SEED = 3


def captions(count: int) -> list[str]:
    """`count` captions of pretraining scenes, the same every time."""
    found = []
    for index in range(count):
        rng = np.random.default_rng([SEED, index])
        found.append(describe(sample_facts(rng), rng))
    return found

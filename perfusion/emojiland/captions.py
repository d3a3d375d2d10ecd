"""Captions of the world without its pictures: what the covariance C is measured on."""

import numpy as np

from perfusion.emojiland.scenes import describe, sample_facts

SEED = 3
EDITION = "2"  # another one wherever a caption changes: a covariance of them is known by it


def captions(count: int, seed: int = SEED) -> list[str]:
    """The first `count` captions of the scene stream `seed` (held-out drawings apart), without drawing it."""
    texts = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        texts.append(describe(sample_facts(rng), rng))
    return texts

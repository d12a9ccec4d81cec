"""Checks of what stands around the mathematics, each a function that returns an error, which planted bugs share."""

import math

import numpy as np

from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.training.schedules import warmup_cosine
from minicompress.trees import flatten
from minicompress.verification.oracles import relative_error


def random_tree(rng):
    return {"w": rng.standard_normal((4, 3)), "deep": {"b": rng.standard_normal(5), "w": rng.standard_normal((2, 2))}}


def textbook_adamw(p, grads, rates, betas, eps, decay):
    """Algorithm 2 of Loshchilov & Hutter 2019 for one number, with decay in units of the learning rate."""
    (b1, b2), m, v = betas, 0.0, 0.0
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p -= lr * (m / (1 - b1**t) / (math.sqrt(v / (1 - b2**t)) + eps) + decay * p)
    return p


def adamw_error(decay=0.1, betas=(0.9, 0.999), eps=1e-8):
    """Twelve steps at falling rates, every number of a tree against the textbook's."""
    rng, rates = np.random.default_rng(0), [0.1 / t for t in range(1, 13)]
    params, steps = random_tree(rng), [random_tree(rng) for _ in rates]
    state, expected = adamw_init(params), {}
    for name, p in flatten(params).items():
        told = [[flatten(grads)[name][i] for grads in steps] for i in np.ndindex(p.shape)]
        rate = decay if p.ndim > 1 else 0.0
        numbers = [textbook_adamw(x, g, rates, betas, eps, rate) for x, g in zip(p.flat, told, strict=True)]
        expected[name] = np.reshape(numbers, p.shape)
    for grads, lr in zip(steps, rates, strict=True):
        adamw_step(params, grads, state, lr, betas, eps, decay)
    return max(relative_error(p, expected[name]) for name, p in flatten(params).items())


def schedule_error():
    """Four steps up to 0.8, eight down to a tenth of it: the cosine's quarters, and what lies beyond the end."""
    half = math.sqrt(0.5)
    by_hand = {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 4: 0.8, 6: 0.08 + 0.36 * (1 + half), 8: 0.44,
               10: 0.08 + 0.36 * (1 - half), 12: 0.08, 13: 0.08, 1000: 0.08}  # fmt: skip
    rates = [warmup_cosine(step, 12, 0.8, warmup=4, final=0.1) for step in by_hand]
    return relative_error(rates, list(by_hand.values()))

"""Generation the slow way, sampling by its definition, and how far `generate` and `sample` are from them."""

import math
from itertools import product
from unittest import mock

import numpy as np

from helpers import TINY, random_params
from minicompress.gpt2 import forward, generate
from minicompress.gpt2.model import positions
from minicompress.gpt2.prefix import Prefix, read_slots, read_tokens
from minicompress.verification.oracles import relative_error

FRONTS = ["nothing", "text", "slots"]
RAGGED = [[3, 1, 4, 1, 5], [9], [2, 6], [5, 3, 5, 8, 9]]
LOGITS = np.array([[0.3, 2.0, -1.0, 1.1, 0.0, 1.9], [1.0, 1.0, 0.0, 1.0, -2.0, 0.0], [-9.0, 7.0, 7.0, -30.0, 0.0, 6.5]])


class Draws:
    """Stands in for a Generator: evenly spaced numbers of [0, 1), so that the draws spell out a distribution."""

    def random(self, shape):
        return ((np.arange(math.prod(shape)) + 0.5) / math.prod(shape)).reshape(shape)


def in_front(kind, model, rng):
    """What stands before the rows: as embeddings (P, C) to read at once, and as the Prefix of them."""
    wte = model[0]["wte"]["weight"]
    if kind == "nothing":
        return wte[:0], Prefix()
    if kind == "text":
        ids = rng.integers(len(wte), size=5)
        return wte[ids], read_tokens(*model, ids)
    slots = rng.standard_normal((4, wte.shape[1]))
    return slots, read_slots(*model, slots)[0]


def read_at_once(params, config, front, ids, watch=None):
    """One row behind front (P, C), without a past and without padding -> logits (P + T, V), and the cache."""
    x = np.concatenate([front, params["wte"]["weight"][ids]]) + positions(params, len(front) + len(ids))
    hidden, _, cache = forward(params, config, x[None], watch=watch)
    return hidden[0] @ params.get("lm_head", params["wte"])["weight"].T, cache


def written_anew(model, row, steps, front):
    """Greedy, everything read again for each token -> new ids, the logits (steps, V) they were chosen from."""
    ids, seen = list(row), []
    for _ in range(steps):
        seen.append(read_at_once(*model, front, ids)[0][-1])
        ids.append(int(seen[-1].argmax()))
    return ids[len(row) :], np.array(seen)


def watched(model, rows, steps, prefix=None, **options):
    """`generate` -> new ids of each row, the logits (steps, B, V) they were chosen from."""
    seen, choose = [], generate.sample

    def sample(logits, **sampling):
        seen.append(logits)
        return choose(logits, **sampling)

    with mock.patch.object(generate, "sample", sample):
        return generate.generate(*model, rows, steps, prefix, **options), np.array(seen)


def generation_error(kind, rows=RAGGED, steps=8, seed=0, config=TINY):
    """A ragged batch with a cache against each row alone without one: 1 where a token differs, else of the logits."""
    rng = np.random.default_rng(seed)
    model = random_params(config, rng), config
    front, prefix = in_front(kind, model, rng)
    new, seen = watched(model, rows, steps, prefix)
    alone, truth = zip(*[written_anew(model, row, steps, front) for row in rows], strict=True)
    return relative_error(seen, np.stack(truth, 1)) if new == list(alone) else 1.0


def distribution(logits, temperature, top_k=None, top_p=None):
    """Probabilities (V,) of one row of logits: temperature, then the k likeliest, then the nucleus."""
    weights = [math.exp(x / temperature) for x in logits]
    if top_k is not None:
        least = sorted(weights)[-min(top_k, len(weights))]
        weights = [w if w >= least else 0.0 for w in weights]  # equals of the k-th are kept too
    probs = [w / sum(weights) for w in weights]
    if top_p is not None:
        nucleus, mass = [], 0.0
        for token in sorted(range(len(probs)), key=lambda i: -probs[i]):  # of equals, the first comes first
            if mass < top_p:
                nucleus.append(token)
                mass += probs[token]
        probs = [p if token in nucleus else 0.0 for token, p in enumerate(probs)]
    return np.array(probs) / sum(probs)


def sample_error(draws=1009):
    """The share of evenly spaced draws that give another token than the definition does, the worst of all settings."""
    errors = []
    for row, T, k, p in product(LOGITS, (0.5, 1.0, 2.0), (None, 1, 2, 3, 6, 9), (None, 0.05, 0.5, 0.8, 1.0)):
        found = generate.sample(np.tile(row, (draws, 1)), Draws(), T, k, p)
        sums = distribution(row, T, k, p).cumsum()
        expected = (sums[None] <= Draws().random((draws, 1)) * sums[-1]).sum(-1)
        errors.append((found != expected).mean())
    return max(errors)


CHECKS = {f"generation after {kind}": lambda kind=kind: generation_error(kind) for kind in FRONTS}
CHECKS["sample"] = sample_error

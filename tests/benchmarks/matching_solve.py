"""One layer of Attention Matching: keys by attention, masses by non-negative least squares, values by ridge.

GPT-2 124M's 12 heads of 64; 3,072 queries (128 reference rows of 24 tokens), 512 keys, of which 64 are kept. Ours
is `matched` for each head: normal equations, the active sets on them, one solve. The peer writes the two
problems down as they are and gives them to `scipy.optimize.nnls` and `numpy.linalg.lstsq`, damping and all as
rows below the queries'; its softmax is SciPy's.

Fair, because both choose the same keys and solve the same two problems; masses and values are the same
numbers. What each chooses differs: normal equations square the condition, which damping bounds here, and make
a problem of 3,136 rows one of 64. The masses are fitted in float64 on both sides, the values in float32.
"""

from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from sides import Benchmark, time_and_memory

from minicompress.compression.matching import matched

RIDGE = 1e-2


class Size(NamedTuple):
    heads: int
    queries: int
    keys: int
    width: int
    slots: int


FULL, TINY = Size(12, 3072, 512, 64, 64), Size(3, 40, 20, 8, 5)


def data(size):
    """Queries (H, N, D), scaled as attention scales them, keys and values (H, T, D), in float32."""
    rng = np.random.default_rng(0)
    draw = lambda n: rng.standard_normal((size.heads, n, size.width), np.float32)
    return 2 * draw(size.queries) / np.sqrt(np.float32(size.width)), draw(size.keys), draw(size.keys)


@contextmanager
def ours(size):
    heads = list(zip(*data(size), strict=True))
    yield lambda: [matched(q, k, v, size.slots, "rms", RIDGE) for q, k, v in heads]


@contextmanager
def scipy(size):
    from scipy.optimize import nnls
    from scipy.special import softmax

    heads = list(zip(*data(size), strict=True))

    def match(q, k, v):
        probs = softmax(q @ k.T, axis=-1)
        chosen = np.sort(np.argsort(-(probs * probs).mean(0), kind="stable")[: size.slots])
        own, damping = probs[:, chosen].astype(float), np.sqrt(RIDGE * len(q) / size.slots)
        below = damping * np.eye(size.slots)
        w, _ = nnls(np.concatenate([own, below]), np.r_[np.ones(len(q)), damping * np.ones(size.slots)])
        with np.errstate(divide="ignore"):
            beta = np.log(w.astype(np.float32))
        keys, values = k[chosen], v[chosen]
        shares = softmax(q @ keys.T + beta, axis=-1)
        wanted = np.concatenate([probs @ v, damping.astype(np.float32) * values])
        return keys, np.linalg.lstsq(np.concatenate([shares, below.astype(np.float32)]), wanted, rcond=None)[0], beta

    yield lambda: [match(*head) for head in heads]


def facts(heads):
    """Of each head the lengths of its values and of its masses, and which keys it has."""
    return [float(x) for k, v, beta in heads for x in (np.linalg.norm(v), np.linalg.norm(np.exp(beta)), abs(k).sum())]


BENCHMARK = Benchmark(
    "matching-solve", "Attention Matching, one layer: 12 heads, 3,072 queries, 64 of 512 keys", FULL, TINY,
    {"ours": ours, "scipy": scipy},
    time_and_memory("scipy"),
    facts,
)  # fmt: skip

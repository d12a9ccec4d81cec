"""Checks of compressors that read segment by segment: each gives an error, which planted bugs must raise."""

from dataclasses import replace

import numpy as np

from helpers import TINY, directional_error, random_params, tree_errors
from minicompress.compression.amortised import Asked, Example, ask_all, compressor_gradient
from minicompress.compression.compressor import Compressor, begin, weights_of
from minicompress.compression.queries import Query, pad
from minicompress.compression.segments import METHODS, merge, read_segment, states, states_backward
from minicompress.gpt2 import embed, forward
from minicompress.gpt2.prefix import predictors
from minicompress.training.shards import Shards
from minicompress.trees import tree_map
from minicompress.verification.oracles import complex_step, relative_error

CONFIG = replace(TINY, n_positions=32)
K = 2


def queries(rng, n=2, longest=5, start=2):
    rows = [rng.integers(CONFIG.vocab_size, size=rng.integers(start + 1, longest + 1)).tolist() for _ in range(n)]
    return [Query(row, start) for row in rows]


class Case:
    """A random teacher, raw arrays away from where training begins, and examples of one to three segments."""

    def __init__(self, kind, seed=0, segments=3):
        rng = self.rng = np.random.default_rng(seed)
        self.kind, self.method = kind, METHODS[kind]
        self.teacher = random_params(CONFIG, rng), CONFIG
        raw = begin(kind, self.teacher, K, rng, rank=2)
        self.raw = tree_map(lambda x: x + 0.1 * rng.standard_normal(x.shape), raw)
        self.examples = [self.example(n) for n in (segments, 1)]

    def example(self, n):
        cut = [self.rng.integers(CONFIG.vocab_size, size=size).tolist() for size in self.rng.integers(2, 5, n)]
        asked = [Asked(n - 1, queries(self.rng)), Asked(n - 1, queries(self.rng), "likelihood", 0.5)]
        return Example(cut, asked + ([Asked(0, queries(self.rng), "likelihood")] if n > 1 else []))

    def gradient(self, **options):
        with Shards(2) as shards:
            return compressor_gradient(self.raw, self.teacher, self.method, self.examples, shards, **options)

    def loss(self, raw, slots=None):
        """The mean that `compressor_gradient` gives, written down once more, and for complex numbers too."""
        weights, reader, _ = weights_of(raw, self.teacher[0], self.method)
        total, used = 0, raw["slots"][:slots]
        scale = 1 / sum(asked.mass for example in self.examples for asked in example.asked)
        for example in self.examples:
            found, _ = states(weights, CONFIG, self.method, used, example.segments)
            total = total + ask_all(found, (reader, CONFIG), self.teacher, self.method, example, len(used), scale, None)[0]
        return np.asarray(total)[None]


def gradient_error(kind, seed=0, oracle=complex_step, slots=None, segments=3):
    case = Case(kind, seed, segments)
    mean, draw = case.gradient(slots=slots)
    f = lambda raw: case.loss(raw, slots)
    return max(relative_error(mean, f(case.raw)[0]), *tree_errors(oracle, f, case.raw, draw, np.ones(1), case.rng).values())


def weights_error(seed=0):
    """The mean over all that is asked, against the means of each alone, put together by weight and number of places."""
    case = Case("500x", seed)
    mean, _ = case.gradient()
    parts = [(example.segments, asked) for example in case.examples for asked in example.asked]
    total = mass = 0
    for segments, asked in parts:
        case.examples = [Example(segments, [asked._replace(weight=1.0)])]
        total, mass = total + asked.mass * case.gradient()[0], mass + asked.mass
    return relative_error(mean, total / mass)


def state_loss(weights, method, slots, segments, cotangents, horizon=None):
    """Σ <cotangent, state>, where before every horizon-th segment the state is replaced by its real value, held fast."""
    state, total = slots if method.writes == "state" else None, 0
    for count, ids in enumerate(segments, 1):
        if horizon and count > 1 and (count - 1) % horizon == 0:
            state = state.real
        left, _ = read_segment(weights, CONFIG, method, state if method.writes == "state" else slots, ids, state)
        state = merge(state if count > 1 else None, left, method.merge, count)
        total = total + (state * cotangents[count - 1]).sum()
    return np.asarray(total)[None]


def horizon_case(kind, seed=0, n=4):
    case = Case(kind, seed)
    weights, _, cache = weights_of(case.raw, case.teacher[0], case.method)
    segments = [case.rng.integers(CONFIG.vocab_size, size=2).tolist() for _ in range(n)]
    found, caches = states(weights, CONFIG, case.method, case.raw["slots"], segments, keep="grads")
    cotangents = [case.rng.standard_normal(state.shape) for state in found]
    return case, weights, segments, caches, cotangents


def horizon_error(kind, horizon, seed=0, oracle=complex_step):
    """The gradient of slots, cut by a horizon, against that of the loss in which the states there are constants."""
    case, weights, segments, caches, cotangents = horizon_case(kind, seed)
    dslots = states_backward(cotangents, caches, CONFIG, case.method, horizon=horizon)
    f = lambda slots: state_loss(weights, case.method, slots, segments, cotangents, horizon)
    return directional_error(oracle, f, case.raw["slots"], dslots, np.ones(1), case.rng)


def masked_gist_error(seed=0):
    """The gist's cached keys and values, against one pass over context, slots and row under the paper's mask."""
    case = Case("gist", seed)
    params, (ids,) = case.raw["params"], [case.examples[1].segments[0]]
    asked = queries(case.rng)
    row, scored = pad(asked)
    prompt = Compressor("gist", case.raw, segment=99).compress(case.teacher, ids)
    behind, _ = predictors(params, CONFIG, prompt.prefix(params, CONFIG), row, scored)
    n, T, B = len(ids), row.shape[1], len(row)
    mask = gist_mask(n, K, T)
    x = embed(params, np.concatenate([np.tile(ids, (B, 1)), np.zeros((B, K), int), row], 1))
    x[:, n : n + K] += case.raw["slots"] - params["wte"]["weight"][0]
    hidden, _, _ = forward(params, CONFIG, x, key_mask=np.broadcast_to(mask, (B, *mask.shape)), keep="nothing")
    return relative_error(behind, hidden[:, n + K - 1 : -1].reshape(-1, CONFIG.n_embd)[np.flatnonzero(scored)])


def gist_mask(n, k, T):
    """(n + k + T, n + k + T): what stands behind the k slots does not see the n tokens before them (Mu et al. 2023)."""
    mask = np.ones((n + k + T,) * 2, bool)
    mask[n + k :, :n] = False
    return mask


CHECKS = {f"gradient, {kind}": lambda kind=kind: gradient_error(kind) for kind in METHODS}
CHECKS |= {f"gradient of the first slot, {kind}": lambda kind=kind: gradient_error(kind, slots=1) for kind in ("gist", "rmt")}
CHECKS |= {
    f"horizon {h}, {kind}": lambda kind=kind, h=h: horizon_error(kind, h)
    for kind in ("autocompressor", "rmt", "ccm", "ccm-mean")
    for h in (1, 2, 4, None)
}
CHECKS |= {"mask and cache": masked_gist_error, "weights": weights_error}

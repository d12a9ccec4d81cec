"""A tiny random GPT-2, the way of a gradient through it, and how an error is measured."""

import numpy as np

from minicompress.arrays import array_module
from minicompress.gpt2 import Config, backward, embed, embed_backward, forward, head_loss
from minicompress.gpt2.model import positions
from minicompress.layers import losses
from minicompress.trees import flatten, tree_map, unflatten
from minicompress.verification.cases import random_params as random_params
from minicompress.verification.oracles import leaning_direction

TINY = Config(vocab_size=17, n_positions=24, n_embd=12, n_layer=2, n_head=3)


def random_ids(config, rng, B, T):
    return rng.integers(config.vocab_size, size=(B, T))


def zeros_like(tree):
    return tree_map(lambda w: array_module(w).zeros_like(w), tree)


def read_only(tree):
    """The same arrays, which from now on raise when written to."""
    return tree_map(lambda w: (w.setflags(write=False), w)[1], tree)


def log_normalised(rng, *shape):
    """Log-probabilities of random distributions."""
    return losses.log_softmax(rng.standard_normal(shape))


def token_objective(targets, weights):
    """Cross-entropy per row; `weights` are each row's share in the total."""

    def objective(logits, rows):
        loss, cache = losses.cross_entropy(logits, targets[rows])
        return loss, losses.cross_entropy_backward(weights[rows], cache)

    return objective


def teacher_objective(teacher_logp, weights, temperature=1.0):
    """KL to a teacher per row; `weights` are each row's share in the total."""

    def objective(logits, rows):
        loss, cache = losses.kl_divergence(logits, teacher_logp[rows], temperature)
        return loss, losses.kl_divergence_backward(weights[rows], cache)

    return objective


def read_prompted(params, config, slots, ids, keep="dx"):
    """slots (P, C), read once for all rows, then ids (B, T) -> the hidden states that predict ids (B T, C).

    The last slot predicts the first token, so every token is predicted.
    """
    P, (B, T) = len(slots), ids.shape
    first, past, slot_cache = forward(params, config, slots[None] + positions(params, P), keep=keep)
    hidden, _, cache = forward(params, config, embed(params, ids, P), past, keep=keep)
    xp = array_module(hidden)
    first_rows = xp.concatenate([first[:, -1:]] * B)  # (B, 1, C)
    rows = xp.concatenate([first_rows, hidden[:, :-1]], axis=1)
    return rows.reshape(B * T, -1), (first, hidden, slot_cache, cache)


def read_prompted_backward(drows, cache, params, ids, grads=None):
    """drows (B T, C) -> dslots (P, C). The gradient crosses from tokens to slots through their keys and values."""
    first, hidden, slot_cache, cache = cache
    xp, (B, T, C) = array_module(hidden), hidden.shape
    drows = drows.reshape(B, T, C)
    dfirst, dhidden = xp.zeros_like(first), xp.zeros_like(hidden)
    dfirst[:, -1] = drows[:, 0].sum(0)
    dhidden[:, :-1] = drows[:, 1:]
    dx, dpast = backward(dhidden, cache, grads=grads)
    dslots, _ = backward(dfirst, slot_cache, dpast, grads)
    if grads is not None:
        P = dslots.shape[1]
        embed_backward(dx, ids, grads, P)
        grads["wpe"]["weight"][:P] += dslots[0]
    return dslots[0]


def prompt_step(params, config, slots, ids, objective, grads=None):
    """Losses (B T,) of the tokens behind a prompt, and dslots (P, C): everything in one call."""
    rows, cache = read_prompted(params, config, slots, ids, "dx" if grads is None else "grads")
    losses, drows = head_loss(params, rows, objective, grads, chunk=5)
    return losses, read_prompted_backward(drows, cache, params, ids, grads)


def prompt_losses(params, config, slots, ids, objective):
    """The losses of `prompt_step` alone."""
    return head_loss(params, read_prompted(params, config, slots, ids, "nothing")[0], objective)[0]


def directional_error(oracle, f, x, gradient, cotangent, rng, directions=2, floor=1e-3):
    """How far <gradient, u> is from the oracle's d/dh <cotangent, f(x + h u)>, relative; the worst of some u.

    Where the truth is zero, `floor` stands in for it.
    """
    errors = []
    for _ in range(directions):
        u = leaning_direction(rng, gradient)
        truth = oracle(f, x, u, cotangent)
        errors.append(abs((gradient * u).sum() - truth) / max(abs(truth), floor))
    return max(errors, key=lambda error: (np.isnan(error), error))


def tree_errors(oracle, f, tree, gradients, cotangent, rng):
    """{name: error} of every array in the tree, each moved alone. f takes the tree."""
    flat, slopes = flatten(tree), flatten(gradients)

    def moved(name):
        return lambda x: f(unflatten({n: x if n == name else a.astype(x.dtype) for n, a in flat.items()}))

    return {n: directional_error(oracle, moved(n), a, slopes[n], cotangent, rng) for n, a in flat.items()}

"""P-tuning's encoder as in its paper (Liu et al. 2021, *GPT Understands, Too*): the slots read one another.

Embedding(P, d), LSTM layers that read in both directions, Linear(2h, 2h), ReLU, Linear(2h, d). The
paper's code takes h = d/2, PEFT h = C unless told; neither drops anything out by default.
"""

import math

import numpy as np

from minicompress.arrays import array_module
from minicompress.layers.activations import relu, relu_backward
from minicompress.layers.lstm import lstm, lstm_backward
from minicompress.prompts.parameterisations.mlp import mlp, mlp_backward, mlp_init
from minicompress.trees import tree_map


def init(rng, slots, width, hidden, layers=2, dtype=np.float32):
    """For P = slots, d = C = width; the embedding is normal, LSTM weights uniform in ±1/√h, the head as `mlp_init`."""
    bound = 1 / math.sqrt(hidden)

    def direction(n_in):
        shapes = {"weight_ih": (4 * hidden, n_in), "weight_hh": (4 * hidden, hidden)}
        shapes |= {"bias_ih": (4 * hidden,), "bias_hh": (4 * hidden,)}
        return {name: rng.uniform(-bound, bound, shape).astype(dtype) for name, shape in shapes.items()}

    embedding = rng.standard_normal((slots, width)).astype(dtype)
    inputs = [width] + (layers - 1) * [2 * hidden]  # a later layer reads both directions
    lstm_head = {str(n): {"onward": direction(i), "reverse": direction(i)} for n, i in enumerate(inputs)}
    mlp_head = mlp_init(rng, (2 * hidden, 2 * hidden, width), dtype)
    return {"embedding": {"weight": embedding}, "lstm_head": lstm_head, "mlp_head": mlp_head}


def bake(raw):
    """raw {embedding, lstm_head, mlp_head} -> slots (P, C)."""
    x, caches = raw["embedding"]["weight"][None], []  # (1, P, d): the slots are one sequence
    for n in range(len(raw["lstm_head"])):
        x, cache = both_directions(x, raw["lstm_head"][str(n)])
        caches.append(cache)
    slots, cache = mlp(x[0], raw["mlp_head"], relu)
    return slots, (raw, caches, cache)


def bake_backward(dslots, cache):
    raw, caches, cache = cache
    draw = tree_map(array_module(dslots).zeros_like, raw)
    dx = mlp_backward(dslots, cache, relu_backward, draw["mlp_head"])[None]
    for n in reversed(range(len(caches))):
        dx = both_directions_backward(dx, caches[n], draw["lstm_head"][str(n)])
    draw["embedding"]["weight"] += dx[0]
    return draw


def both_directions(x, params):
    """x (B, T, I) -> (B, T, 2h): what each step knows from before it, then what it knows from after it."""
    onward, cache = lstm(x, **params["onward"])
    back, reverse_cache = lstm(x, **params["reverse"], reverse=True)
    return array_module(x).concatenate([onward, back], axis=-1), (cache, reverse_cache)


def both_directions_backward(dout, cache, grads):
    """dout (B, T, 2h) -> dx (B, T, I): both directions read the same x, so their gradients add."""
    h = dout.shape[-1] // 2
    dx = lstm_backward(dout[..., :h], cache[0], grads["onward"])
    dx += lstm_backward(dout[..., h:], cache[1], grads["reverse"])
    return dx

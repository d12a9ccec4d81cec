"""The answers to the pages' exercises. The pages show them from here; `test_exercises.py` holds them right."""

import math

import numpy as np

from minicompress.compression.segments import METHODS
from minicompress.layers.losses import log_softmax


def reversed_slots(slots, wpe):
    """Slots (P, C) in the other order, each meeting the model as the same vector as before."""
    return (slots + wpe[: len(slots)])[::-1] - wpe[: len(slots)]


def rmsnorm(x, weight, eps=1e-5):
    """x (..., C) -> weight * x / sqrt(mean(x²) + eps)."""
    r = ((x * x).mean(-1, keepdims=True) + eps) ** -0.5
    return x * r * weight, (x * r, r, weight)


def rmsnorm_backward(dout, cache):
    """dout (..., C) -> dx (..., C)."""
    xhat, r, weight = cache
    g = dout * weight
    return r * (g - xhat * (g * xhat).mean(-1, keepdims=True))


def weights_of(V, positions, C, L, tied=True):
    """The number of weights of a GPT-2 whose MLP is 4C wide."""
    block = 12 * C * C + 13 * C
    return V * C * (1 if tied else 2) + positions * C + L * block + 2 * C


def products(n):
    """Query-key products of one head that writes n tokens: with a cache, and without."""
    return n * (n + 1) // 2, n * (n + 1) * (n + 2) // 6


def numbers_kept(B, T, P, C, H, frozen=True):
    """How many numbers one block's backward keeps, weights and the past not counted."""
    layernorms, qkv, probabilities, gelu = 2 * (C + 1), 3 * C, H * (P + T), 4 * C
    inputs = 0 if frozen else 7 * C
    return B * T * (layernorms + qkv + probabilities + gelu + inputs)


def grouped_kl(logits, teacher_logp, groups):
    """KL of the groups' masses. logits, teacher_logp (N, V), groups (V,): the number of each token's group -> (N,)."""
    q, member = np.exp(log_softmax(logits)), np.eye(groups.max() + 1)[groups]  # (V, G)
    P, Q = np.exp(teacher_logp) @ member, q @ member  # (N, G)
    return (P * np.log(P / Q)).sum(-1), (q, (P / Q)[:, groups])


def grouped_kl_backward(dout, cache):
    """dout (N,) -> dlogits (N, V)."""
    q, ratio = cache
    return q * (1 - ratio) * dout[:, None]


def gap_and_mean_of_ratios(kl_none, kl_slots):
    """Gap closed as it is defined, and as the mean over queries, which it is not."""
    return 1 - sum(kl_slots) / sum(kl_none), sum(1 - s / n for n, s in zip(kl_none, kl_slots, strict=True)) / len(kl_none)


def queries_to_break_even(seconds, per_query_full, per_query_slots):
    """After how many queries making the slots has paid for itself; None where it never does."""
    saved = per_query_full - per_query_slots
    return seconds / saved if saved > 0 else None


def shrunk(scores, P, beta=0.0):
    """The factor on a head's output from P zero keys and values of log-mass beta. scores (..., S) of all other keys."""
    Z = np.exp(scores).sum(-1)
    return Z / (Z + P * np.exp(beta))


def directions(P, C, L):
    """In how many directions a prefix of P slots can move, by carrier."""
    return {"embeddings": P * (C - 1), "hidden": L * P * (C - 1), "kv": 2 * L * P * C}


def low_rank_step(a, b, g, rate):
    """How far one step of descent on a (P, r) and b (r, width) moves the slots, whose gradient is g (P, width)."""
    first_order = a @ (a.T @ g) + g @ b.T @ b
    return -rate * first_order + rate**2 * g @ b.T @ a.T @ g


def tied_template(n, C):
    """Of `[a 2]{text}[3][a]` with a text of n tokens: the row's places, the numbers trained, and the places of slot 0;
    the query-key products of a head for the whole row, and for what stands behind the first two slots.
    """
    places = n + 7
    return places, 5 * C, [0, n + 5], places * (places + 1) // 2, places * (places + 1) // 2 - 3


def keys_of_a_batch(prefixes, tokens):
    """Lengths of the rows' prefixes and texts -> how many keys a layer keeps for the batch, and how many are looked at."""
    return len(tokens) * (max(prefixes) + max(tokens)), sum(prefixes) + sum(tokens)


def steps_to_shrink(spread, target, rate):
    """How many steps of Adam, each of at most the rate, bring a number from one size to another."""
    return round((spread - target) / rate)


def four_point_difference(f, x, direction, cotangent, step=7e-4):
    """(8 (φ(h) - φ(-h)) - (φ(2h) - φ(-2h))) / 12h, with φ(h) = <cotangent, f(x + h u)>: right to about h⁴."""
    odd = lambda h: float((cotangent * (f(x + h * direction) - f(x - h * direction))).sum())
    return (8 * odd(step) - odd(2 * step)) / (12 * step)


def least_seen(curvature, h=1e-3, halvings=4, rate=1.9):
    """The smallest error of a slope that `taylor_test` sees, where φ'' is `curvature` and φ''' nothing."""
    return curvature * (h / 2 ** (halvings - 1)) / 2**rate


def of_the_rate(gradient, eps):
    """The share of the learning rate by which Adam's first step moves a number."""
    return abs(gradient) / (abs(gradient) + eps)


def positions_needed(n, T, k, anew=False):
    """Of n slots, a row of T tokens, and k written behind it; anew: the slots are read before every later token too."""
    return n + T + (k - 1) * (n + 1 if anew else 1)


def of_all_places(lengths):
    """What a mean over all places of a padded batch is of the mean over its tokens."""
    return sum(lengths) / (len(lengths) * max(lengths))


def least_planted(width, depth, bytes_of_a_number):
    """The smallest relative error that the tolerance of a tensor lets be seen, `depth` blocks down the way."""
    u = {4: 2.0**-24, 8: 2.0**-53}[bytes_of_a_number]
    return u * width**0.5 * (1 + depth)


def cannot_be_told(rows, slots):
    """Which of three mistakes leave every number right, by the lengths of the rows and the number of slots."""
    same = {"mean-of-row-means": len(set(rows)) == 1, "left-padding": len(set(rows)) == 1, "slots-scored": slots < 2}
    return {name for name, silent in same.items() if silent}


def slots_and_longest(kind, tokens, segment, K):
    """Of a compressor -> how many slots it ends with, and the longest sequence of state, tokens and slots it reads."""
    method, longest, state = METHODS[kind], 0, K * (METHODS[kind].writes == "state")
    for start in range(0, tokens, segment):
        seen = state if method.sees else 0
        longest = max(longest, seen + min(segment, tokens - start) + K)
        state = state + K if method.merge == "concatenate" else K
    return state, longest


def one_slot(attention, values, own, kept=0):
    """attention (T,) over a context, values (T,), the own token's share -> w, value, and that share with β and without."""
    w, value = 1 / attention[kept], sum(p * v for p, v in zip(attention, values, strict=True))
    mass = (1 - own) * attention[kept]
    return w, value, own / (own + w * mass), own / (own + mass)


def two_heads(heads, slots):
    """Attention over the keys, the greatest first, of each head -> keys by need, what is lost so, and evenly."""
    own = max(slots // 2, min(2, slots))
    pooled = sorted((p, h) for h, head in enumerate(heads) for p in head[own : 2 * slots])
    given = [h for _, h in pooled[-(slots - own) * len(heads) :]]
    counts = [own + given.count(h) for h in range(len(heads))]
    lost = lambda kept: sum(sum(head[k:]) for head, k in zip(heads, kept, strict=True))
    return counts, lost(counts), lost([slots] * len(heads))


def received_evenly(T):
    """What each token receives of T queries that share their attention evenly: in all, and of each that sees it."""
    received = [sum(1 / (t + 1) for t in range(j, T)) for j in range(T)]
    return received, [total / (T - j) for j, total in enumerate(received)]


def of_a_long_context(L, C, positions, segment, K, itemsize=4, piece=64):
    """Bytes of a token's keys and values; the length at which attention costs as much as the weights; an
    autocompressor's longest context.
    """
    return 2 * L * C * itemsize, 12 * C - piece, (positions - segment) // K * segment


def pays_after(training, each, others):
    """After how many contexts a compressor's training, in seconds, has paid for itself against the other ways."""
    return [math.ceil(training / (other - each)) for other in others]

"""Selecting: k tokens of the context, or k means over it, stand for all of it; nothing is learned.

Every selector is f(pair, ids, slots, rng) -> SoftPrompt. Chosen tokens keep their order, and the model reads them anew
at positions 0..k-1: what a context cut to that size would be worth. Means of keys and values, and those that eviction
leaves, are of the context's own reading, and the rows stand behind all of it.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from minicompress.arrays import array_module, like, to_host
from minicompress.gpt2 import embed, forward, logits
from minicompress.gpt2.block import block
from minicompress.gpt2.prefix import read_tokens
from minicompress.layers.attention import probabilities
from minicompress.layers.losses import cross_entropy
from minicompress.prompts.carriers import lift
from minicompress.prompts.soft_prompt import SoftPrompt


def self_information(pair, ids):
    """-log2 p(token | all before it), in bits (T,), by the model itself; ∞ for the first, which nothing predicts.

    What a reader could have guessed need not be kept (Selective-Context, Li et al. 2023).
    """
    params, config = pair
    if len(ids) == 1:
        return np.array([np.inf])
    hidden, _, _ = forward(params, config, embed(params, np.asarray(ids[:-1])[None]), keep="nothing")
    losses, _ = cross_entropy(logits(params, hidden)[0], like(np.asarray(ids[1:]), hidden))
    return np.concatenate([[np.inf], to_host(losses) / np.log(2)])


def places(name, pair, ids, k, rng):
    """Which k of the context's tokens are kept, in their order."""
    n = len(ids)
    if name == "selective":
        return np.sort(np.argsort(-self_information(pair, ids), kind="stable")[:k])
    if name == "random":
        return np.sort(rng.choice(n, k, replace=False))
    head = {"first": k, "last": 0, "first-last": (k + 1) // 2}[name]
    return np.r_[:head, n - (k - head) : n]


def tokens(name, pair, ids, slots, rng):
    """The chosen tokens, as the keys and values that the model makes of them alone."""
    check(ids, slots, pair[1].n_positions if name == "selective" else None)
    wte = pair[0]["wte"]["weight"]
    chosen = wte[like(np.asarray(ids)[places(name, pair, ids, slots, rng)], wte)]
    return SoftPrompt(lift(*pair, chosen, "kv"), "kv")


def pooled_embeddings(pair, ids, slots, rng):
    """The mean embedding of each of k consecutive parts of the context."""
    check(ids, slots)
    wte = pair[0]["wte"]["weight"]
    return SoftPrompt(means(wte[like(np.asarray(ids), wte)], slots, axis=0))


def pooled_kv(pair, ids, slots, rng):
    """The mean keys and values of each of k consecutive parts of the context, as it was read; the rows follow it."""
    check(ids, slots, pair[1].n_positions)
    past = read_tokens(*pair, ids).past
    xp = array_module(past[0][0])
    kv = xp.stack([xp.stack([k[0], v[0]]) for k, v in past])  # (L, 2, H, T, D)
    return SoftPrompt(means(kv, slots, axis=3), "kv", "logical", len(ids))


def means(x, k, axis):
    """The means of k consecutive parts along an axis, as even as can be."""
    xp, n = array_module(x), x.shape[axis]
    cuts = [n * i // k for i in range(1, k)]
    return xp.concatenate([part.mean(axis, keepdims=True) for part in xp.split(x, cuts, axis=axis)], axis=axis)


def evicted(choose, pair, ids, slots, rng):
    """What an eviction leaves: in each layer and head k of the context's own keys and values; the rows follow it.

    choose(probs (H, T, T), k) -> places (H, k), of one layer's attention at a time. It is asked once, when all has been
    read: the published ways evict while they read or write, so that what is read later never sees what is gone.
    """
    check(ids, slots, pair[1].n_positions)
    (params, config), left = pair, []
    x = embed(params, np.asarray(ids)[None])
    xp = array_module(x)
    for layer in range(config.n_layer):
        x, present, cache = block(x, params["h"][str(layer)], config)
        chosen = choose(probabilities(cache["attn"]["attention"])[0], slots)
        at = like(chosen[..., None], x)
        left.append(xp.stack([xp.take_along_axis(part[0], at, axis=1) for part in present]))  # (2, H, k, D)
    return SoftPrompt(xp.stack(left), "kv", "logical", len(ids))


def heavy_hitters(probs, k):
    """Half of the k for the last tokens, half for those before that all queries together attend to most: (H, k).

    H2O (Zhang et al. 2023), here of the whole reading at once, not greedily at each token.
    """
    recent = k // 2
    received = to_host(probs.sum(-2))[:, : probs.shape[-1] - recent]
    return greatest(received, received, k - recent, recent)


def observed(probs, k, window=16, width=5):
    """The last w tokens, and those before that these attend to most, or that stand beside such a one: (H, k).

    SnapKV (Li et al. 2024); w is half of the k, at most `window`.
    """
    w = min((k + 1) // 2, window)
    return greatest(*looked_at(probs, w, width), k - w, w)


def looked_at(probs, w, width=5):
    """What each token before the last w receives from them in the mean, pooled by the greatest of `width` neighbours,
    and not pooled: (H, T - w) each. A pool makes ties, which the second tells apart.
    """
    n, half = probs.shape[-1] - w, width // 2
    mean = to_host(probs[:, n:, :n].mean(-2))
    padded = np.pad(mean, ((0, 0), (half, half)))
    return np.stack([padded[:, i : i + n] for i in range(width)]).max(0), mean


def greatest(scores, ties, k, last):
    """The places of the k greatest scores (H, n), in their order, then the `last` places from n on: (H, k + last).

    Of equal scores that of the greater `ties`, of equal ones the earlier.
    """
    H, n = scores.shape
    best = np.sort(np.lexsort((-ties, -scores))[:, :k])
    return np.concatenate([best, np.broadcast_to(np.arange(n, n + last), (H, last))], axis=1)


def check(ids, slots, room=None):
    """Raises ValueError where there are more slots than tokens; or, where all must be read at once, no room for it."""
    if slots > len(ids):
        raise ValueError(f"the context has {len(ids):,} tokens, of which {slots:,} cannot be selected")
    if room is not None and len(ids) >= room:
        words = f"{len(ids):,} context tokens and one behind them need {len(ids) + 1:,}"
        raise ValueError(f"n_positions is {room:,}; {words}: this selector reads all of them at once")


TOKENS = ("first", "last", "first-last", "random", "selective")
SELECTORS: dict[str, Callable] = {name: partial(tokens, name) for name in TOKENS}
SELECTORS |= {"pooled-embeddings": pooled_embeddings, "pooled-kv": pooled_kv}
SELECTORS |= {"h2o": partial(evicted, heavy_hitters), "snapkv": partial(evicted, observed)}

"""Attention Matching: keys, masses and values in closed form, a layer after the other (2026).

In each layer and head the k slots are to do for the queries of some reference rows what the whole context did: take
the same mass of attention, and give the same output. Keys are chosen among the context's own; the masses e^β are a
non-negative least squares fit, and the values an ordinary one. A layer's queries come from rows that have read the
layers before it as they are already compacted.
"""

import math

import numpy as np

from minicompress.arrays import array_module, like, pad_rows, to_host
from minicompress.compression.nnls import nnls
from minicompress.gpt2 import embed
from minicompress.gpt2.block import block
from minicompress.gpt2.prefix import read_tokens
from minicompress.layers.attention import softmax
from minicompress.layers.layernorm import layernorm
from minicompress.layers.linear import linear
from minicompress.prompts.soft_prompt import SoftPrompt


def repeat_prefill(ids, config):
    """The context itself as reference rows, cut so that each fits behind it. Raises ValueError where none does."""
    room = config.n_positions - len(ids)
    if room < 1:
        raise ValueError(f"n_positions is {config.n_positions:,}; behind {len(ids):,} context tokens none can be asked")
    return [ids[i : i + room] for i in range(0, len(ids), room)]


def attention_matching(pair, ids, slots, rows, choose="rms", ridge=1e-2, budget="even"):
    """-> SoftPrompt of `slots` keys and values a layer and head, with β; rows: reference rows of token ids behind ids.

    Tokens stand where they would after the context. ridge: how firmly masses keep to 1 and values to the context's own;
    with as many slots as tokens all are kept, and nothing is lost. budget: of BUDGETS; where heads differ `slots` is
    their mean, and the prompt as wide as the widest. Raises ValueError for more slots than tokens.
    """
    if slots > len(ids):
        raise ValueError(f"the context has {len(ids):,} tokens, of which {slots:,} keys cannot be chosen")
    (params, config), lengths = pair, np.array([len(row) for row in rows])
    context, heads, H = read_tokens(params, config, ids).past, [], config.n_head
    real = np.flatnonzero(np.arange(lengths.max()) < lengths[:, None])
    x = embed(params, pad_rows(rows), len(ids), lengths=lengths)
    for layer, (keys, values) in enumerate(context):
        weights = params["h"][str(layer)]
        queries = queries_of(x, weights, config)[:, like(real, keys)]  # (H, N, D)
        counts = BUDGETS[budget](queries, keys[0], slots)
        each = zip(queries, keys[0], values[0], counts, strict=True)
        heads += [matched(q, k, v, int(count), choose, ridge) for q, k, v, count in each]
        x, _, _ = block(x, weights, config, tuple(part[None] for part in side_by_side(heads[-H:])))
    k, v, beta = (part.reshape(-1, H, *part.shape[1:]) for part in side_by_side(heads))  # (L, H, P, D) twice, (L, H, P)
    return SoftPrompt(array_module(k).stack([k, v], axis=1), "kv", "logical", len(ids), beta)


def queries_of(x, weights, config):
    """x (B, T, C), the stream before a block -> its queries (H, B T, D), scaled as attention scales them."""
    a, _ = layernorm(x, **weights["ln_1"], eps=config.layer_norm_epsilon)
    qkv, _ = linear(a, **weights["attn"]["c_attn"], frozen=True)
    q = qkv[..., : config.n_embd].reshape(-1, config.n_head, config.n_embd // config.n_head)
    return q.swapaxes(0, 1) * (1 / math.sqrt(q.shape[-1]))


def matched(q, k, v, slots, choose, ridge):
    """One head: q (N, D), k and v (T, D) -> keys (P, D), values (P, D), β (P,).

    With p the attention over the context alone, Σ_j w_j p_ij ≈ 1 is the fit of the mass, that of the context divided
    out of each query's row: so no exponential can overflow, and each query weighs the same.
    """
    probs = softmax(q @ k.T)  # (N, T)
    chosen = CHOOSE[choose](probs, slots, ridge)
    xp, own, keys, values = array_module(k), probs[:, like(chosen, k)], k[like(chosen, k)], v[like(chosen, k)]
    with np.errstate(divide="ignore"):  # a mass of 0 is a β of -∞: the slot is not there
        beta = xp.log(masses(own, ridge).astype(k.dtype))  # (P,)
    shares = softmax(q @ keys.T + beta)  # (N, P); of the scores, since all of `own` may be too small for its dtype
    damped = shares.T @ shares + ridge * len(q) / slots * xp.eye(slots, dtype=k.dtype)
    return keys, values + xp.linalg.solve(damped, shares.T @ (probs @ v - shares @ values)), beta


def masses(own, ridge, start=None):
    """The w >= 0 of least |own w - 1|² + ridge N/P |w - 1|², own (N, P): with all keys w = 1 is exact."""
    own, (N, P) = own.astype(np.float64), own.shape
    damping = ridge * N / P
    return nnls(own.T @ own + damping * array_module(own).eye(P), own.sum(0) + damping, start)


def mean_square(probs):
    """probs (N, T) -> (T,), on the host: which keys are read, and how much."""
    return to_host((probs * probs).mean(0))


def by_rms(probs, slots, ridge):
    """The keys of greatest root mean square attention, in their order."""
    return np.sort(np.argsort(-mean_square(probs), kind="stable")[:slots])


def by_pursuit(probs, slots, ridge):
    """Orthogonal matching pursuit of the mass: each time the key that points most along what is still missing."""
    probs = to_host(probs).astype(np.float64)
    length, chosen, missing = np.sqrt((probs * probs).sum(0)), [], np.ones(len(probs))
    w = np.ones(0)
    for _ in range(slots):
        gain = probs.T @ missing / np.maximum(length, np.finfo(float).tiny)
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        w = masses(probs[:, chosen], ridge, start=np.append(w > 0, True))
        missing = 1 - probs[:, chosen] @ w
    return np.sort(chosen)


CHOOSE = {"rms": by_rms, "omp": by_pursuit}


def evenly(queries, keys, slots):
    """As many keys in each head."""
    return np.full(len(keys), slots)


def by_need(queries, keys, slots):
    """queries (H, N, D), keys (H, T, D) -> how many keys each head keeps (H,), on the host: slots H in all.

    They go to the greatest mean squares of attention in any head of the layer (Ada-KV, Feng et al. 2024). But half of
    `slots` are each head's own, two at least, since a lone key tells all queries the same; none has more than twice.
    """
    H, least, most = len(keys), max(slots // 2, min(2, slots)), 2 * slots
    squares = np.stack([mean_square(softmax(q @ k.T)) for q, k in zip(queries, keys, strict=True)])
    ranked = np.sort(-squares, axis=1)[:, least:most].T  # (ranks, H): of equals, the better in its own head goes first
    taken = np.argsort(ranked.ravel(), kind="stable")[: (slots - least) * H]
    return least + np.bincount(taken % H, minlength=H)


BUDGETS = {"even": evenly, "by-need": by_need}


def side_by_side(heads):
    """Heads of keys (k, D), values (k, D) and β (k,) -> (H, P, D), (H, P, D) and (H, P), for P the greatest k.

    Behind a head's last key β is -∞, a key of no mass; keys and values there are 0, since no mass makes NaN harmless.
    """
    P, xp = max(len(keys) for keys, *_ in heads), array_module(heads[0][0])
    pad = lambda x, fill: xp.pad(x, [(0, P - len(x))] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    parts = zip(zip(*heads, strict=True), (0, 0, -math.inf), strict=True)
    return tuple(xp.stack([pad(x, fill) for x in part]) for part, fill in parts)

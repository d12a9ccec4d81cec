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


def attention_matching(pair, ids, slots, rows, choose="rms", ridge=1e-2):
    """-> SoftPrompt of `slots` keys and values a layer and head, with β; rows: reference rows of token ids behind ids.

    Tokens stand where they would after the context. ridge: how firmly masses keep to 1 and values to the context's own;
    with as many slots as tokens all are kept, and nothing is lost. Raises ValueError for more slots than tokens.
    """
    if slots > len(ids):
        raise ValueError(f"the context has {len(ids):,} tokens, of which {slots:,} keys cannot be chosen")
    (params, config), lengths = pair, np.array([len(row) for row in rows])
    context, past = read_tokens(params, config, ids).past, []
    real = np.flatnonzero(np.arange(lengths.max()) < lengths[:, None])
    x = embed(params, pad_rows(rows), len(ids), lengths=lengths)
    for layer, (keys, values) in enumerate(context):
        weights, xp = params["h"][str(layer)], array_module(keys)
        queries = queries_of(x, weights, config)[:, like(real, keys)]  # (H, N, D)
        heads = [matched(q, k, v, slots, choose, ridge) for q, k, v in zip(queries, keys[0], values[0], strict=True)]
        past.append(tuple(xp.stack(part)[None] for part in zip(*heads, strict=True)))  # (1, H, P, D) twice, (1, H, P)
        x, _, _ = block(x, weights, config, past[-1])
    kv = xp.stack([xp.stack([k[0], v[0]]) for k, v, _ in past])
    return SoftPrompt(kv, "kv", "logical", len(ids), xp.stack([beta[0] for *_, beta in past]))


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
        beta = xp.log(like(masses(own, ridge).astype(to_host(k).dtype), k))  # (P,)
    shares = softmax(q @ keys.T + beta)  # (N, P); of the scores, since all of `own` may be too small for its dtype
    damped = shares.T @ shares + ridge * len(q) / slots * xp.eye(slots, dtype=k.dtype)
    return keys, values + xp.linalg.solve(damped, shares.T @ (probs @ v - shares @ values)), beta


def masses(own, ridge, start=None):
    """The w >= 0 of least |own w - 1|² + ridge N/P |w - 1|², own (N, P): with all keys w = 1 is exact."""
    own = to_host(own).astype(np.float64)
    N, P = own.shape
    damping = ridge * N / P
    return nnls(own.T @ own + damping * np.eye(P), own.sum(0) + damping, start)


def by_rms(probs, slots, ridge):
    """The keys of greatest root mean square attention, in their order."""
    return np.sort(np.argsort(-to_host((probs * probs).mean(0)), kind="stable")[:slots])


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

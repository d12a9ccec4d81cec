"""All blocks in a row: from embeddings to the last hidden states, and back.

A sequence may be read in pieces. `forward` returns each piece's keys and values, `present`; the
next piece takes them as its `past`, and `backward` carries the gradient over the same bridge:
a piece's `dpast` is the earlier piece's `dpresent`. A soft prompt, a cached context and a
half-generated text are all such earlier pieces; that is why there is one door for all of them.
"""

import numpy as np

from minicompress.arrays import add_at, array_module, like
from minicompress.gpt2.block import block, block_backward
from minicompress.layers.embedding import embedding, embedding_backward
from minicompress.layers.layernorm import layernorm, layernorm_backward
from minicompress.trees import child


def embed(params, ids, offset=0, slots=None, lengths=None):
    """Token ids (B, T) on the host -> x (B, T, C): wte[id] + wpe[position].

    `offset` is the position of the first column: a number, or one for each row (B,). Where slots
    (P, C) are given, the id -1-j stands for slots[j]: a template's soft tokens among its hard ones;
    of a list, each row has its own, or None. Behind a row's first `lengths` (B,) tokens stands padding.
    Raises ValueError for ids, or positions of tokens, outside their tables.
    """
    ids = np.asarray(ids)
    return look_up(params["wte"]["weight"], ids, slots) + positions(params, ids.shape[1], offset, lengths)


def look_up(wte, ids, slots=None):
    """The rows of wte (V, C), or the slots, that ids (B, T) name: (B, T, C)."""
    if isinstance(slots, list):
        rows = [look_up(wte, row[None], own) for row, own in zip(ids, slots, strict=True)]
        return array_module(wte).concatenate(rows)
    check_ids(ids, len(wte), 0 if slots is None else len(slots))
    x, _ = embedding(like(np.maximum(ids, 0), wte), wte)
    if slots is None:
        return x
    soft = like(ids < 0, wte)[..., None]
    return array_module(wte).where(soft, slots[like(np.maximum(-1 - ids, 0), wte)], x)


def check_ids(ids, vocabulary, slots=0):
    """Raises ValueError where an id is neither a token's, nor -1-j of one of the slots."""
    if ids.size and not -slots <= ids.min() <= ids.max() < vocabulary:
        placed = f", and -{slots}..-1 are slots" if slots else ""
        raise ValueError(f"token ids span {ids.min()}..{ids.max()}; the vocabulary is 0..{vocabulary - 1}{placed}")


def embed_backward(dx, ids, grads, offset=0):
    """Adds dx (B, T, C) to grads["wte"], but where a slot stands, and to grads["wpe"]."""
    ids = np.asarray(ids)
    hard = dx if ids.min() >= 0 else dx * like(ids >= 0, dx)[..., None]
    embedding_backward(hard, like(np.maximum(ids, 0), dx), grads["wte"])
    grads["wpe"]["weight"][offset : offset + dx.shape[1]] += dx.sum(0)


def embed_slots_backward(dx, ids, slots):
    """dx (B, T, C) -> dslots (P, C): a slot that stands in several places, or rows, receives their sum.

    Where each row has its own slots, or None, so are dslots.
    """
    if isinstance(slots, list):
        rows = zip(dx, ids, slots, strict=True)
        return [None if own is None else embed_slots_backward(d[None], row[None], own) for d, row, own in rows]
    dslots, soft = array_module(dx).zeros(slots.shape, dx.dtype), np.flatnonzero(ids < 0)
    add_at(dslots, like(-1 - ids.reshape(-1)[soft], dx), dx.reshape(-1, dx.shape[-1])[like(soft, dx)])
    return dslots


def positions(params, T, offset=0, lengths=None):
    """The rows of wpe for positions offset .. offset + T - 1: (T, C), or (B, T, C) for offsets (B,).

    Where a row's `lengths` (B,) say that it is shorter, positions past the last one do no harm.
    """
    wpe = params["wpe"]["weight"]
    where = np.asarray(offset)[..., None] + np.arange(T)
    if where.size and where.max() >= len(wpe) and lengths is not None:
        where = np.where(np.arange(T) < lengths[:, None], where, 0)
    if where.size and where.min() < 0:
        raise ValueError(f"position {where.min()} is negative")
    if where.size and where.max() >= len(wpe):
        raise ValueError(f"n_positions is {len(wpe)}; {where.max() + 1:,} positions are needed")
    return wpe[like(where, wpe)]


def forward(params, config, x, past=None, key_mask=None, keep="dx", watch=None, attended=None):
    """x (B, T, C) -> hidden (B, T, C) after ln_f, present, cache.

    past: for each layer a pair of keys and values, each (1 or B, H, P, D), or None.
    key_mask: (B, P + T), False where a row must not look.
    keep: what the cache is for: "nothing" (no backward), "dx" (frozen weights), "grads" (all).
    watch: a list that receives the residual stream before each block and after the last.
    attended: a list that receives what attention adds to that stream in each block.
    """
    presents, caches = [], []
    for layer in range(len(params["h"])):
        if watch is not None:
            watch.append(x)
        weights, before = params["h"][str(layer)], past and past[layer]
        x, present, cache = block(x, weights, config, before, key_mask, keep != "grads", attended)
        presents.append(present)
        if keep != "nothing":
            caches.append(cache)
    if watch is not None:
        watch.append(x)
    hidden, cache_f = layernorm(x, **params["ln_f"], eps=config.layer_norm_epsilon)
    return hidden, presents, None if keep == "nothing" else (caches, cache_f)


def backward(dhidden, cache, dpresent=None, grads=None, watch=None, dstream=None, dattended=None):
    """dhidden (B, T, C) -> dx (B, T, C), dpast (as `past`, or a list of None).

    dpresent: for each layer the gradient of its keys and values, from whoever read them.
    grads: as the params, and added to; None where the weights are frozen.
    watch: a list that receives the gradient of the residual stream, from the last block's output down to x.
    dstream, dattended: what is asked of everything that forward's `watch` and `attended` receive, in their order.
    """
    caches, cache_f = cache
    dx = layernorm_backward(dhidden, cache_f, child(grads, "ln_f"))
    dpasts = []
    dx = dx if dstream is None else dx + dstream[-1]
    for layer in reversed(range(len(caches))):
        if watch is not None:
            watch.append(dx)
        block_grads = child(child(grads, "h"), str(layer))
        asked = dattended and dattended[layer]
        dx, dpast = block_backward(dx, caches[layer], dpresent and dpresent[layer], block_grads, asked)
        dx = dx if dstream is None else dx + dstream[layer]
        dpasts.append(dpast)
    if watch is not None:
        watch.append(dx)
    return dx, dpasts[::-1]

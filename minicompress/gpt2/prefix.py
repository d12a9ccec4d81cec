"""What stands before the rows of a batch: nothing, a text, or a soft prompt, read once for all of them.

With targets counted from the first token of a row, the state that predicts target t is the
prefix's last state for t = 0 and the state after token t-1 for the others. That one shift is made
here, and laid open once more in `verification/trace.py`, which shows every state.
"""

from typing import Any, NamedTuple

import numpy as np

from minicompress.arrays import array_module, like
from minicompress.gpt2.model import backward, embed, forward, positions


class Prefix(NamedTuple):
    """Keys and values of `length` positions, and the hidden state after the last of them."""

    past: Any = None  # for each layer (k, v), each (1, H, P, D)
    last: Any = None  # (1, 1, C); None where nothing predicts the first token
    length: int = 0


def read_tokens(params, config, ids):
    """The prefix of a text: ids (T,) of a list or array, at positions 0..T-1."""
    if not len(ids):
        return Prefix()
    hidden, past, _ = forward(params, config, embed(params, np.asarray(ids)[None]), keep="nothing")
    return Prefix(past, hidden[:, -1:], len(ids))


def read_slots(params, config, slots, keep="nothing"):
    """The prefix of a soft prompt: slots (P, C) stand where token embeddings would, at positions 0..P-1."""
    hidden, past, cache = forward(params, config, slots[None] + positions(params, len(slots)), keep=keep)
    return Prefix(past, hidden[:, -1:], len(slots)), cache


def read_slots_backward(dpast, dlast, cache):
    """What the rows asked of the prefix -> dslots (P, C). dlast (1, 1, C) falls on the last slot's state."""
    _, (xhat, *_) = cache
    dhidden = array_module(dlast).zeros_like(xhat)
    dhidden[:, -1:] = dlast
    dx, _ = backward(dhidden, cache, dpast)
    return dx[0]


def predictors(params, config, prefix, ids, scored, keep="nothing"):
    """The states that predict the scored targets.

    ids (B, T) on the host, rows padded on the right; scored (B, T), True where ids[b, t] is a
    target. Returns hidden (N, C) for the N scored targets, row by row, and the cache. Raises
    ValueError where a first token is scored and nothing stands before it.
    """
    if prefix.last is None and scored[:, 0].any():
        raise ValueError("the first token of a row is scored, but nothing stands before it to predict it")
    if ids.shape[1] == 1:  # a column of padding, so that there is something to read
        ids, scored = (np.pad(a, ((0, 0), (0, 1))) for a in (ids, scored))
    x = embed(params, ids[:, :-1], prefix.length)  # the last token predicts nothing
    hidden, _, cache = forward(params, config, x, prefix.past, keep=keep)
    xp, (B, _, C) = array_module(x), x.shape
    first = prefix.last if prefix.last is not None else xp.zeros_like(x[:1, :1])
    hidden = xp.concatenate([xp.broadcast_to(first, (B, 1, C)), hidden], axis=1)  # (B, T, C), t predicts t
    index = like(np.flatnonzero(scored), x)
    return hidden.reshape(-1, C)[index], (cache, index, hidden.shape)


def predictors_backward(dhidden, cache):
    """dhidden (N, C) -> dpast, dlast (1, 1, C), both summed over the rows."""
    cache, index, (B, T, C) = cache
    dall = array_module(dhidden).zeros((B * T, C), dhidden.dtype)
    dall[index] = dhidden
    dall = dall.reshape(B, T, C)
    _, dpast = backward(dall[:, 1:], cache)
    return dpast, dall[:, :1].sum(0, keepdims=True)

"""What stands before the rows of a batch: nothing, a text, or a soft prompt, read once for all of them.

With targets counted from the first token of a row, the state that predicts target t is the
prefix's last state for t = 0 and the state after token t-1 for the others. That one shift is made
here, and laid open once more in `verification/trace.py`, which shows every state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minicompress.arrays import array_module, like
from minicompress.gpt2.model import backward, embed, embed_backward, embed_slots_backward, forward, positions
from minicompress.layers.attention import shared
from minicompress.trees import child


class Prefix(NamedTuple):
    """Keys and values of `length` positions, the hidden state after the last of them, and where the rows begin.

    One prefix serves all rows; with B in place of 1, each row has its own.
    """

    past: Any = None  # for each layer (k, v) or (k, v, β), each (1 or B, H, P, D), β (1 or B, H, P)
    last: Any = None  # (1 or B, 1, C); None where nothing predicts the first token
    length: int = 0  # P
    start: Any = 0  # position of a row's first token: a number, or one for each row (B,)
    mask: Any = None  # (B, P), False where a row's own prefix is shorter; None where none is
    slots: Any = None  # (P, C) that the rows themselves place, by negative ids; a list where each has its own
    predicts: Any = None  # (B,) on the host, whether a row's first token is predicted; None: whether `last` is there

    def key_mask(self, rows, T):
        """(B, P + T) for rows of T tokens, or None where every key may be seen."""
        if self.mask is None:
            return None
        xp = array_module(self.mask)
        return xp.concatenate([self.mask, xp.ones((rows, T), bool)], axis=1)


class Door(NamedTuple):
    """How slots of one kind enter the model.

    read(params, config, slots, keep) -> Prefix, cache. read_backward(asked, cache, grads=None) ->
    dslots, where `asked` are the gradients (dpast, dlast, dslots) that `predictors_backward` gives,
    and grads, if wanted, receive what the slots' own reading asks of the weights.
    """

    read: Callable
    read_backward: Callable


def read_tokens(params, config, ids):
    """The prefix of a text: ids (T,) of a list or array, at positions 0..T-1."""
    if not len(ids):
        return Prefix()
    hidden, past, _ = forward(params, config, embed(params, np.asarray(ids)[None]), keep="nothing")
    return Prefix(past, hidden[:, -1:], len(ids), len(ids))


def read_slots(params, config, slots, keep="nothing", watch=None):
    """The prefix of a soft prompt: slots (P, C) stand where token embeddings would, at positions 0..P-1."""
    P = len(slots)
    hidden, past, cache = forward(params, config, slots[None] + positions(params, P), keep=keep, watch=watch)
    return Prefix(past, hidden[:, -1:], P, P), cache


def read_slots_backward(asked, cache, grads=None):
    """What the rows asked of the prefix -> dslots (P, C). dlast (1, 1, C) falls on the last slot's state."""
    (dpast, dlast, _), (_, (xhat, *_)) = asked, cache
    dhidden = array_module(dlast).zeros_like(xhat)
    dhidden[:, -1:] = dlast
    dx, _ = backward(dhidden, cache, dpast, grads)
    if grads is not None:
        grads["wpe"]["weight"][: dx.shape[1]] += dx[0]
    return dx[0]


EMBEDDINGS = Door(read_slots, read_slots_backward)


def check_first(scored, predicts):
    """Raises ValueError where a row's first token is scored, but not predicted; predicts: of all rows, or each (B,)."""
    if len(rows := np.flatnonzero(scored[:, 0] & ~np.asarray(predicts))):
        raise ValueError(f"row {rows[0]}: its first token is scored, but nothing stands before it to predict it")


def predictors(params, config, prefix, ids, scored, keep="nothing", watch=None, attended=None):
    """The states that predict the scored targets.

    ids (B, T) on the host, rows padded on the right; scored (B, T), True where ids[b, t] is a
    target. Returns hidden (N, C) for the N scored targets, row by row, and the cache. Raises
    ValueError where a first token is scored and nothing stands before it. What stands behind a
    row's last target predicts nothing: it is padding, whatever it is. watch, attended: as in `forward`.
    """
    check_first(scored, (prefix.last is not None) if prefix.predicts is None else prefix.predicts)
    if ids.shape[1] == 1:  # a column of padding, so that there is something to read
        ids, scored = (np.pad(a, ((0, 0), (0, 1))) for a in (ids, scored))
    read, ends = ids[:, :-1], (scored * np.arange(scored.shape[1])).max(1)  # the last token predicts nothing
    x = embed(params, read, prefix.start, prefix.slots, ends)
    hidden, _, cache = forward(params, config, x, prefix.past, prefix.key_mask(*read.shape), keep, watch, attended)
    xp, (B, _, C) = array_module(x), x.shape
    first = prefix.last if prefix.last is not None else xp.zeros_like(x[:1, :1])
    hidden = xp.concatenate([xp.broadcast_to(first, (B, 1, C)), hidden], axis=1)  # (B, T, C), t predicts t
    index = like(np.flatnonzero(scored), x)
    return hidden.reshape(-1, C)[index], (cache, index, hidden.shape, first, read, prefix)


def predictors_backward(dhidden, cache, grads=None, dstream=None, dattended=None):
    """dhidden (N, C) -> what the rows ask of the prefix: dpast, dlast (1 or B, 1, C), dslots where they place any.

    grads: as in `backward`, and dstream, dattended; of the embeddings too, where it has them and all rows begin at one
    position.
    """
    cache, index, (B, T, C), first, read, prefix = cache
    dall = array_module(dhidden).zeros((B * T, C), dhidden.dtype)
    dall[index] = dhidden
    dall = dall.reshape(B, T, C)
    dx, dpast = backward(dall[:, 1:], cache, None, grads, None, dstream, dattended)
    if child(grads, "wte") is not None:
        embed_backward(dx, read, grads, prefix.start)
    dslots = None if prefix.slots is None else embed_slots_backward(dx, read, prefix.slots)
    return dpast, shared(dall[:, :1], first), dslots

"""A context read segment by segment, each leaving a few slots behind: every trained compressor in one recurrence.

    σ_i = merge(σ_{i-1}, read(segment_i, σ_{i-1}))

The methods differ in what a segment leaves behind, whether it saw what the ones before it left, how the
two become one state, and which weights are the compressor's own. METHODS is all of that. A state is an
array of slots as a SoftPrompt has them: embeddings (P, C) or keys and values (L, 2, H, P, D).
"""

from dataclasses import dataclass

import numpy as np

from minicompress.arrays import array_module
from minicompress.gpt2 import backward, embed, embed_backward, forward
from minicompress.gpt2.model import positions
from minicompress.gpt2.prefix import Prefix
from minicompress.prompts.carriers import DOORS
from minicompress.prompts.soft_prompt import SLOT_AXIS
from minicompress.trees import child


@dataclass(frozen=True)
class Method:
    """One way to compress, as a point on the axes that trained compressors have."""

    carrier: str  # what slots behind a segment are read out as: their last states as `embeddings`, or their `kv`
    adapts: str  # what is trained: `all`, the reader's weights too; `lora` in the compressor; `slots`, LoRA there alone
    sees: bool  # whether a segment is read behind the state so far
    merge: str  # the old state and what a segment left: `concatenate`, `overwrite`, or `mean`
    writes: str = "own"  # the slots behind a segment begin as embeddings of their own, or as the `state` (RMT)
    advances: bool = True  # of kv: whether tokens after the slots stand behind them, or as if these were not there


METHODS = {
    "gist": Method("kv", "all", sees=False, merge="concatenate"),  # Mu et al. 2023
    "icae": Method("embeddings", "lora", sees=False, merge="concatenate"),  # Ge et al. 2024
    "500x": Method("kv", "lora", sees=False, merge="concatenate"),  # Li et al. 2024
    "autocompressor": Method("embeddings", "all", sees=True, merge="concatenate"),  # Chevalier et al. 2023
    "autocompressor-overwrite": Method("embeddings", "all", sees=True, merge="overwrite"),  # its other form
    "rmt": Method("embeddings", "all", sees=True, merge="overwrite", writes="state"),  # Bulatov et al. 2022
    "ccm": Method("kv", "slots", sees=True, merge="concatenate", advances=False),  # Kim et al. 2024
    "ccm-mean": Method("kv", "slots", sees=True, merge="mean", advances=False),
}


def read_segment(weights, config, method, slots, ids, state, keep="nothing"):
    """Tokens `ids` behind a state, then slots (K, C) behind them -> what these leave, as the carrier has it; cache.

    weights: the params that read tokens, and those that read the slots; the two differ where only slots are adapted.
    """
    of_tokens, of_slots = weights
    prefix, back = Prefix(), None
    if state is not None and method.sees:
        prefix, back = DOORS[method.carrier].read(of_tokens, config, state, keep)
    start = prefix.start if method.carrier == "embeddings" else 0  # keys and values keep the positions they have
    x = embed(of_tokens, np.asarray(ids)[None], start)
    _, present, cache = forward(of_tokens, config, x, prefix.past, keep=keep)
    before, start = behind(prefix.past, present), start + len(ids)
    x = slots[None] + positions(of_slots, len(slots), start)
    hidden, written, cache_slots = forward(of_slots, config, x, before, keep=keep)
    cache = ids, prefix, back, present, cache, cache_slots, start, x.shape
    return (hidden[0] if method.carrier == "embeddings" else as_slots(written)), cache


def read_segment_backward(dleft, cache, config, method, grads=(None, None)):
    """dleft, as the carrier has it -> dslots (K, C), dstate or None. grads: of the two weights, and added to."""
    ids, prefix, back, present, cache, cache_slots, start, shape = cache
    xp, embeds = array_module(dleft), method.carrier == "embeddings"
    dhidden = dleft[None] if embeds else xp.zeros(shape, dleft.dtype)
    dx, dbefore = backward(dhidden, cache_slots, None if embeds else as_past(dleft), grads[1])
    if child(grads[1], "wpe") is not None:
        grads[1]["wpe"]["weight"][start : start + shape[1]] += dx[0]
    P = prefix.length
    dstate = [tuple(d[:, :, :P] for d in layer) for layer in dbefore]
    dpresent = [tuple(d[:, :, P:] for d in layer) for layer in dbefore]
    silent = xp.zeros((1, len(ids), shape[2]), dleft.dtype)  # no state of a segment's own tokens is read
    dtokens, dpast = backward(silent, cache, dpresent, grads[0])
    if child(grads[0], "wte") is not None:
        embed_backward(dtokens, np.asarray(ids)[None], grads[0], start - len(ids))
    if not P:
        return dx[0], None
    asked = [tuple(a + b for a, b in zip(*pair, strict=True)) for pair in zip(dstate, dpast, strict=True)]
    dlast = None if prefix.last is None else xp.zeros_like(prefix.last)
    return dx[0], DOORS[method.carrier].read_backward((asked, dlast, None), back, grads[0])


def merge(state, left, how, count):
    """The state before (None before the first segment), and what the segment number `count` (from 1) left."""
    if state is None or how == "overwrite":
        return left
    if how == "mean":
        return state + (left - state) / count
    return array_module(left).concatenate([state, left], axis=axis_of(left))


def merge_backward(dmerged, how, count, length):
    """-> dstate or None, dleft; `length` is the number of slots of the state before, 0 of none."""
    if not length or how == "overwrite":
        return None, dmerged
    if how == "mean":
        return dmerged * (1 - 1 / count), dmerged / count
    return array_module(dmerged).split(dmerged, [length], axis=axis_of(dmerged))


def each_state(weights, config, method, slots, segments, keep="nothing", within=None):
    """Yields for each of the segments (any iterable of lists of ids) the state after it, the segment, and the cache.

    within: the numbers of the segments whose activations are kept; None: of all.
    """
    state = slots if method.writes == "state" else None
    for count, ids in enumerate(segments, 1):
        length = 0 if state is None else state.shape[axis_of(state)]
        begins = state if method.writes == "state" else slots
        kept = keep if within is None or count - 1 in within else "nothing"
        left, cache = read_segment(weights, config, method, begins, ids, state, kept)
        state = merge(state if count > 1 else None, left, method.merge, count)
        yield state, ids, (cache, length)


def states(weights, config, method, slots, segments, keep="nothing", within=None):
    """The states after all segments, and the caches, as two lists."""
    found, _, caches = zip(*each_state(weights, config, method, slots, segments, keep, within), strict=True)
    return list(found), list(caches)


def gone_through(steps, horizon):
    """The segments through which the gradient of the states after these steps goes back: up to each one's cut."""
    return {i for step in steps for i in range(step - step % horizon if horizon else 0, step + 1)}


def states_backward(dstates, caches, config, method, grads=(None, None), horizon=None):
    """dstates: for each state its gradient, or None -> dslots (K, C).

    Before every `horizon`-th segment the state counts as a constant, as in truncated backpropagation
    through time: nothing passes there, and with a horizon of all segments nothing is cut.
    """
    some = next(d for d in dstates if d is not None)
    (*_, shape), _ = caches[0]
    dslots, carried = array_module(some).zeros(shape[1:], some.dtype), None  # (K, C)
    for number in reversed(range(len(caches))):
        cache, length = caches[number]
        dstate = add(dstates[number], carried)
        carried = None
        if dstate is None:
            continue
        before, dleft = merge_backward(dstate, method.merge, number + 1, length if number else 0)
        dbegins, dseen = read_segment_backward(dleft, cache, config, method, grads)
        if method.writes == "state":
            carried = add(dbegins, dseen)
        else:
            dslots, carried = add(dslots, dbegins), add(before, dseen)
        if number and horizon and number % horizon == 0:
            carried = None
    return add(dslots, carried)  # what the first segment asks of a state is asked of the slots it began as


def add(a, b):
    """The sum of two gradients, either of which may be None: nothing was asked."""
    return b if a is None else a if b is None else a + b


def axis_of(state):
    return SLOT_AXIS["embeddings" if state.ndim == 2 else "kv"]


def as_slots(present):
    """Keys and values of each layer, each (1, H, K, D) -> (L, 2, H, K, D)."""
    xp = array_module(present[0][0])
    return xp.stack([xp.stack([k[0], v[0]]) for k, v in present])


def as_past(slots):
    return [(k[None], v[None]) for k, v in slots]


def behind(past, present):
    """Keys and values of what stands before, and of what follows it, in one."""
    if past is None:
        return present
    xp = array_module(present[0][0])
    join = lambda *pair: xp.concatenate(pair, axis=2)
    return [tuple(map(join, old, new)) for old, new in zip(past, present, strict=True)]

"""Writing: one token at a time, with the keys and values of all before it kept."""

import numpy as np

from minicompress.arrays import array_module, like, pad_rows, to_host
from minicompress.gpt2.head import logits
from minicompress.gpt2.model import embed, forward
from minicompress.gpt2.prefix import Prefix


def sample(logits, rng=None, temperature=0.0, top_k=None, top_p=None):
    """logits (B, V) on the host -> ids (B,). Temperature 0 is greedy.

    top_k keeps the k likeliest tokens, top_p the fewest likeliest whose probabilities reach p
    (Holtzman et al. 2020); both apply after the temperature.
    """
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits.astype(np.float64) / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        scores = np.where(scores < np.partition(scores, -top_k)[..., [-top_k]], -np.inf, scores)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    if top_p is not None:
        order = np.argsort(-probs, -1, kind="stable")
        falling = np.take_along_axis(probs, order, -1)
        beyond = falling.cumsum(-1) - falling >= top_p  # the tokens before already reach p
        np.put_along_axis(probs, order, np.where(beyond, 0, falling), -1)
    sums = probs.cumsum(-1)
    draws = rng.random((len(sums), 1)) * sums[:, -1:]
    return np.minimum((sums <= draws).sum(-1), sums.shape[-1] - 1)


def generate(params, config, rows, steps, prefix=None, stop=None, watch=None, **sampling):
    """Continues each row of ids by at most `steps` tokens -> list of lists of new ids.

    rows: lists of token ids, of any lengths >= 1; prefix: what all of them read first.
    stop(row number, new ids): True where a row is finished, its last token included.
    watch: a list that receives each step's logits (B, V) on the host.
    sampling: rng, temperature, top_k, top_p of `sample`; one draw a row and step, so a row's
    text does not depend on when the others end. Raises ValueError past n_positions.
    """
    prefix, lengths = prefix or Prefix(), np.array([len(row) for row in rows])
    if not lengths.all():
        raise ValueError("a row to continue is empty; give it at least one token")
    check_room(config, prefix.start, lengths, steps)
    hidden, memory = prefill(params, config, rows, lengths, prefix, steps)
    written, running = [[] for _ in rows], np.ones(len(rows), bool)
    for step in range(steps):
        expected = to_host(logits(params, hidden))
        if watch is not None:
            watch.append(expected)
        new = sample(expected, **sampling)
        for row in np.flatnonzero(running):
            written[row].append(int(new[row]))
            running[row] = not (stop and stop(row, written[row]))
        if step + 1 == steps or not running.any():
            break
        x = embed(params, new[:, None], prefix.start + lengths + step)
        hidden, present, _ = forward(params, config, x, memory.past(), memory.key_mask(), keep="nothing")
        memory.add(present)
        hidden = hidden[:, -1]
    return written


def check_room(config, start, lengths, steps):
    """Raises ValueError where one of the rows of `lengths` (B,) that begin at `start` has no room for so many steps."""
    row = int(np.argmax(start + lengths))
    begins, length = int(np.broadcast_to(start, len(lengths))[row]), int(lengths[row])
    if (need := begins + length + steps) > config.n_positions:
        raise ValueError(
            f"n_positions is {config.n_positions:,}; {begins:,} of prefix + {length:,} of text"
            f" + {steps:,} new tokens need {need:,}"
        )


def prefill(params, config, rows, lengths, prefix, steps):
    """Reads the rows at once -> the last real state of each (B, C), and the memory with room for `steps` more."""
    ids = pad_rows(rows)
    x = embed(params, ids, prefix.start, prefix.slots, lengths)
    hidden, present, _ = forward(params, config, x, prefix.past, prefix.key_mask(*ids.shape), keep="nothing")
    memory = Memory(prefix, present, lengths, steps)
    ends = like(lengths - 1, hidden)
    return hidden[array_module(hidden).arange(len(rows)), ends], memory


class Memory:
    """Keys and values of everything read, in arrays as long as they will ever be.

    Rows are padded on the right, and so are prefixes, where each row has its own. So between a short
    row's text and its new tokens lie keys of padding; `key_mask` hides them. Where all are equally
    long there is nothing to hide. A prefix's log-masses go on as zeros for the tokens after it.
    """

    def __init__(self, prefix, present, lengths, room):
        P, T = prefix.length, int(lengths.max())
        self.size = P + T
        self.layers = []
        for layer, new in enumerate(present):
            past = prefix.past[layer] if P else ()
            xp, (B, H, _, D) = array_module(new[0]), new[0].shape
            shapes = [(B, H, P + T + room, D)] * 2 + [(B, H, P + T + room)] * (len(past) == 3)
            arrays = [xp.zeros(shape, new[0].dtype) for shape in shapes]
            for array, before in zip(arrays, past, strict=False):
                array[:, :, :P] = before
            for array, read in zip(arrays, new, strict=False):
                array[:, :, P : P + T] = read
            self.layers.append(arrays)
        self.seen = None
        if prefix.mask is not None or not (lengths == T).all():
            before = np.ones((len(lengths), P), bool) if prefix.mask is None else to_host(prefix.mask)
            text = np.arange(T) < lengths[:, None]
            self.seen = like(np.concatenate([before, text, np.ones((len(lengths), room), bool)], 1), self.layers[0][0])

    def past(self):
        return [tuple(array[:, :, : self.size] for array in arrays) for arrays in self.layers]

    def key_mask(self):
        return None if self.seen is None else self.seen[:, : self.size + 1]

    def add(self, present):
        for (keys, values, *_), (new_keys, new_values) in zip(self.layers, present, strict=True):
            keys[:, :, self.size : self.size + 1] = new_keys
            values[:, :, self.size : self.size + 1] = new_values
        self.size += 1

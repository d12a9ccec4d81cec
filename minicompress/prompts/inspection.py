"""What each slot of a soft prompt has become: how far it moved, what attends to it, and what is lost without it.

Everything is read from the frozen model as it reads some texts with the prompt in place. Nothing here
says what a slot *means*: it is no token, and need not be near one.
"""

from typing import Any, NamedTuple

import numpy as np

from minicompress.arrays import array_module, like, pad_rows, to_host
from minicompress.gpt2 import embed, forward, logits
from minicompress.gpt2.block import block
from minicompress.gpt2.head import CHUNK
from minicompress.gpt2.model import positions
from minicompress.layers.attention import probabilities
from minicompress.layers.layernorm import layernorm
from minicompress.layers.losses import log_softmax
from minicompress.prompts.nearest import cosine, norm
from minicompress.prompts.soft_prompt import SLOT_AXIS

BITS = 1 / np.log(2)
TOKENS = 1024  # of the rows at a time


def moved(prompt):
    """How far each slot is from where it began, over everything the slot has: {"distance", "relative", "cosine"}: (P,).

    relative is the distance over the first slot's own length, ∞ where that was zero. None where the
    prompt does not know how it began.
    """
    if prompt.initial is None:
        return None
    rows = lambda x: np.moveaxis(to_host(x), SLOT_AXIS[prompt.carrier], 0).reshape(prompt.length, -1)
    now, then = rows(prompt.slots), rows(prompt.initial)
    distance, before = norm(now - then), norm(then)
    relative = np.divide(distance, before, out=np.where(distance > 0, np.inf, 0.0), where=before > 0)
    return {"distance": distance, "relative": relative, "cosine": cosine(now, then)}


class Rows(NamedTuple):
    """Rows of tokens with a prompt's slots in place: as columns of the rows, or as keys and values before them."""

    x: Any  # (B, T, C)
    ids: np.ndarray  # (B, T) on the host: the token of each column, or -1-j where it is slot j
    text: np.ndarray  # (B, T), True where a token stands, not a slot or padding
    places: np.ndarray  # (N,) of the B T columns: those whose state predicts a scored token, the next column's
    past: Any = None  # keys and values of the slots, for each layer, where they are no columns
    before: int = 0  # how many these are

    @property
    def keys(self):
        """(B, S): the slot that each key belongs to, -1 where it is none's."""
        own = np.where(self.ids < 0, -1 - self.ids, -1)
        return np.concatenate([np.broadcast_to(np.arange(self.before), (len(own), self.before)), own], axis=1)


def place_rows(params, config, prompt, rows, starts):
    """Lists of token ids -> Rows. In row b the tokens from number starts[b] on are scored, where a state predicts them.

    Embeddings in front become columns of every row; a template's rows have theirs already, as ids -1-j.
    """
    P, lengths = prompt.length, np.array([len(row) for row in rows])
    ids = pad_rows(rows)
    x = embed(params, ids, prompt.start, prompt.slots if prompt.in_rows else None, lengths)
    text = (np.arange(ids.shape[1]) < lengths[:, None]) & (ids >= 0)
    scored = text & (np.arange(ids.shape[1]) >= np.array(starts)[:, None])
    if prompt.carrier == "embeddings" and not prompt.in_rows:
        xp, shape = array_module(x), (len(rows), P, config.n_embd)
        x = xp.concatenate([xp.broadcast_to(prompt.slots + positions(params, P), shape), x], axis=1)
        front = lambda a, fill: np.pad(a, ((0, 0), (P, 0)), constant_values=fill)
        ids, text, scored = front(ids, 0), front(text, False), front(scored, False)
        ids[:, :P] = -1 - np.arange(P)
    scored[:, 0] = False
    places, deep = np.flatnonzero(scored) - 1, prompt.carrier != "embeddings"
    return Rows(x, ids, text, places, prompt.prefix(params, config).past if deep else None, P if deep else 0)


def attention_received(params, config, rows, slots):
    """The attention that the rows' tokens pay to each slot, summed over the tokens: (L, H, P) on the host."""
    x, total = rows.x, []
    xp = array_module(x)
    asking = like(rows.text, x).astype(x.dtype)[:, None, :, None]  # (B, 1, T, 1)
    owner = like(rows.keys[..., None] == np.arange(slots), x).astype(x.dtype)  # (B, S, P)
    for layer in range(config.n_layer):
        x, _, cache = block(x, params["h"][str(layer)], config, rows.past and rows.past[layer])
        probs = probabilities(cache["attn"]["attention"])  # (B, H, T, S)
        total.append(xp.einsum("bhs,bsp->hp", (probs * asking).sum(2), owner))
    return to_host(xp.stack(total))


def residuals(params, config, prompt, rows):
    """Each slot's residual stream before layer 0, 1, …: a list of (P, C); None for keys and values, which have none.

    Embeddings are followed through all layers, to after the last; where a template places them, in the
    first row, at a slot's first place. Hidden states are given for each layer anew.
    """
    if prompt.carrier != "embeddings":
        return list(prompt.slots) if prompt.carrier == "hidden" else None
    stream = []
    forward(params, config, rows.x[:1], keep="nothing", watch=stream)
    columns = [int((rows.ids[0] == -1 - p).argmax()) for p in range(prompt.length)]
    return [x[0][like(np.array(columns), x)] for x in stream]


def lens(params, config, states):
    """The token that each residual state would predict if it were the last, and its probability: (n, P) each.

    The logit lens (nostalgebraist 2020): ln_f and the head, put on a state that has not passed all layers.
    """
    tokens, chances = [], []
    for x in states:
        hidden, _ = layernorm(x, **params["ln_f"], eps=config.layer_norm_epsilon)
        logp = log_softmax(logits(params, hidden))  # (P, V)
        tokens.append(to_host(logp.argmax(-1)))
        chances.append(np.exp(to_host(logp.max(-1))))
    return np.stack(tokens), np.stack(chances)


def without(rows, slot):
    """The Rows without one slot, and which of the B T columns are left: (B T,) on the host.

    Nothing else moves: every other slot and token keeps its position. That is the same as hiding the
    slot's keys from all that comes after it, at every layer, or as giving them the log-mass -∞.
    """
    if rows.past is not None:
        kept = np.flatnonzero(np.arange(rows.before) != slot)
        index = like(kept, rows.x)
        past = [tuple(a.take(index, axis=2) for a in layer) for layer in rows.past] if len(kept) else None
        return rows._replace(past=past, before=len(kept)), np.ones(rows.ids.size, bool)
    kept = rows.ids != -1 - slot  # as many in every row: the rows come of one template
    column = np.nonzero(kept)[1].reshape(len(kept), -1)
    row = np.arange(len(kept))[:, None]
    x = rows.x[like(row, rows.x), like(column, rows.x)]
    return rows._replace(x=x, ids=rows.ids[row, column], text=rows.text[row, column]), kept.reshape(-1)


def left_out(params, config, rows, slots, advance=None):
    """What the predictions lose with each slot, summed over the places: kl, loss and places, (P,) each, on the host.

    kl is KL(with all slots ‖ without this one), loss the increase of -log p(the token that stands there),
    in bits. A place whose own state is the slot's predicts nothing once the slot is out: it is skipped.
    """
    whole, parts = states_at(params, config, rows, rows.places), []
    counted = np.zeros((slots, len(rows.places)), bool)
    for slot, still in enumerate(counted):
        less, kept = without(rows, slot)
        still[:] = kept[rows.places]
        now = (np.cumsum(kept) - 1)[rows.places[still]]  # these columns' numbers among those left
        parts.append(whole.copy())  # where a place is skipped, the two are equal
        parts[-1][like(np.flatnonzero(still), whole)] = states_at(params, config, less, now)
        if advance:
            advance()
    targets = like(rows.ids.reshape(-1)[rows.places + 1], whole)
    kl, loss = np.zeros(slots), np.zeros(slots)
    for some in (slice(i, i + CHUNK) for i in range(0, len(whole), CHUNK)):
        before = log_softmax(logits(params, whole[some]))
        chance, each = array_module(before).exp(before), like(np.arange(len(before)), before)
        for slot, hidden in enumerate(parts):
            lost = before - log_softmax(logits(params, hidden[some]))  # (n, V)
            kl[slot] += BITS * to_host((chance * lost).sum())
            loss[slot] += BITS * to_host(lost[each, targets[some]].sum())
    return kl, loss, counted.sum(1)


def states_at(params, config, rows, places):
    """The states after ln_f at some of the B T columns: (N, C)."""
    hidden, _, _ = forward(params, config, rows.x, rows.past, keep="nothing")
    return hidden.reshape(-1, hidden.shape[-1])[like(places, hidden)]


def over_texts(params, config, prompt, rows, starts, advance=None):
    """Everything that takes texts, a few rows at a time; on the host.

    attention (L, H, P), the mean over all tokens of the texts; kl and loss (P,), in bits a place, not a
    number where no place is left; places (P,); lens, ids and probabilities (n, P) each, or None.
    advance() is called after each slot and part of the rows.
    """
    P, attention, tokens, lost, looked = prompt.length, 0, 0, 0, None
    for some in batches(rows, P):
        placed = place_rows(params, config, prompt, rows[some], starts[some])
        if not some.start and (states := residuals(params, config, prompt, placed)) is not None:
            looked = lens(params, config, states)
        attention, tokens = attention + attention_received(params, config, placed, P), tokens + int(placed.text.sum())
        lost = lost + np.stack(left_out(params, config, placed, P, advance))
    kl, loss, places = lost
    mean = lambda total: np.divide(total, places, out=np.full(P, np.nan), where=places > 0)
    return {"attention": attention / tokens, "kl": mean(kl), "loss": mean(loss), "places": places.astype(int),
            "lens": looked}  # fmt: skip


def batches(rows, slots):
    """Slices that cover the rows, each of few enough to be read at once."""
    n = max(1, TOKENS // (slots + max(map(len, rows))))
    return [slice(i, i + n) for i in range(0, len(rows), n)]

"""A GPT-2 in the open: whole sequences, nothing cached, every decision that people get wrong named.

`Way` lists the decisions; its defaults are right, and the tests hold `answer` to `trace` in every number. A
wrong implementation is the right one with a field replaced, which is how the catalogue writes them.
Slots of every carrier take columns of their own, P of them, in front of the T of the tokens: S = P + T.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minicompress.arrays import pad_rows
from minicompress.layers.losses import log_softmax
from minicompress.verification.plain import costs
from minicompress.verification.plain.gelus import TANH


class Layout(NamedTuple):
    """Where everything stands in a batch of B rows."""

    P: int  # columns of slots, in front
    T: int  # columns of tokens
    start: int  # the position of a row's first token
    lengths: np.ndarray  # (B,)
    left: np.ndarray  # (B,), columns of padding between the slots and a row's first token
    written: int = 0  # how many tokens at every row's end the model itself has written

    @property
    def columns(self):
        """(B, T), the column of token t."""
        return np.minimum(self.P + self.left[:, None] + np.arange(self.T), self.P + self.T - 1)

    @property
    def real(self):
        return np.arange(self.T) < self.lengths[:, None]  # (B, T)

    def tokens(self, x):
        """x (B, S, ...) -> (B, T, ...) in the order of the rows, 0 behind their ends."""
        taken = x[np.arange(len(x))[:, None], self.columns]
        return taken * self.real.reshape(*self.real.shape, *[1] * (x.ndim - 2))

    def keys(self, x):
        """x (B, S, ...) -> the same with the rows' tokens padded on the right."""
        return np.concatenate([x[:, : self.P], self.tokens(x)], axis=1)


def onward(layout):
    """Tokens stand at start, start + 1, ...: (1, T)."""
    return layout.start + np.arange(layout.T)[None]


def causal(layout):
    """(B, S, S), whether query q sees key k: itself and all before it, but no padding on the left."""
    column = np.arange(layout.P + layout.T)
    gap = (column >= layout.P) & (column < layout.P + layout.left[:, None])
    return (column <= column[:, None]) & ~gap[:, None]


@dataclass(frozen=True)
class Way:
    """One way to do it. Each field is a decision, its default the right one."""

    # what stands in front
    injected: bool = True
    slots: Callable = lambda slots, prompt, model: slots  # of the carrier, before they are used
    left: bool = False  # rows are padded between the slots and their tokens
    pad: int = 0  # the token that fills the padding
    slot_positions: Callable = np.arange  # P -> the rows of wpe that slots as embeddings receive, or None
    has_slots: Callable = lambda number: True  # the blocks in which hidden states, or keys and values, stand
    keeps_padding: bool = False  # decoding, keys of the padding behind a row are seen by what is written after it
    left_over: bool = False  # decoding a row begins with what the cache holds of the rows before
    swapped: bool = False  # the slots' keys and values change places
    positions: Callable = onward
    # inside a block
    only: int | None = None  # the one block, or the end (L), that is not right
    mask: Callable = causal
    scale: Callable = lambda D, C: D**-0.5  # of the scores q k
    scale_of_each: Callable = lambda D: (1.0, 1.0)  # of the queries and of the keys, before that
    columns: Callable = lambda H, C: slice(None)  # of c_attn, in the order of q, k, v, head by head
    gelu: Any = TANH  # the function and its slope
    eps: float | None = None  # in place of the config's
    ddof: int = 0  # of the variance
    eps_outside: bool = False  # of the root
    product: Callable = np.matmul
    final_norm: bool | str = True  # or "bare", without its weight and bias
    # the loss
    context: Callable = lambda ids: ids  # what the teacher reads of its context
    teacher_gap: int = 0  # positions that it leaves out between context and row
    places: Callable = costs.scored_places
    cost: Callable = costs.cost
    temperatures: Callable = lambda T: (T, T)  # the student's and the teacher's
    loss_dtype: Any = None  # what logits are cast to before the loss
    power: int = 2  # of the temperature, by which a divergence is multiplied
    # backward
    norm_backward: str = "right"  # or "no eps", "no eps, recomputed", "no eps in …", "no means"
    reaches_slots: tuple = (True, True)  # tokens pass a gradient on to the keys and to the values of slots
    last_slot: bool = True  # the prediction of the first token passes one to the last slot
    softmax_sum: bool = True
    scale_backward: Callable = lambda scale: (scale, scale)  # of dq and dk
    residual: tuple = (1, 1)  # shares of the gradient that pass the MLP and the attention by
    gelu_slope: Callable | None = None  # in place of gelu's own
    tied: tuple = (1, 1)  # shares of the head and of the embedding in wte's gradient
    repeated: str = "added"  # gradients of a token that comes twice; or the "first" or the "last" alone
    prompt_gradient: Callable = lambda d, rows: d.sum(0)  # (B, ...) -> (...)


RIGHT = Way()


class Tape(NamedTuple):
    """A forward pass: what it read, and every array that the backward needs."""

    model: Any
    prompt: Any
    ids: np.ndarray
    layout: Layout
    layers: list  # of dicts, one for each block
    end: dict  # after them
    slots: Any  # as they were used
    positions: np.ndarray  # (B, T)


def forward(model, rows, prompt=None, way=RIGHT, depth=None, written=0, memory=None):
    """Reads rows of ids behind a prompt -> Tape. depth: stop after so many blocks, without a head.

    memory: for each block the keys, values and log-masses of another text, which all queries see as well.
    """
    (params, config), ids = model, pad_rows(rows)
    prompt = prompt if way.injected else None
    front = prompt is not None and not prompt.in_rows
    lengths = np.array([len(row) for row in rows])
    left = ids.shape[1] - lengths if way.left else 0 * lengths
    layout = Layout(prompt.length if front else 0, ids.shape[1], prompt.start if prompt else 0, lengths, left, written)
    slots = None if prompt is None else way.slots(prompt.slots, prompt, model)
    wpe, where = params["wpe"]["weight"], np.broadcast_to(way.positions(layout), ids.shape)
    where = np.clip(where, 0, len(wpe) - 1)
    x = embedded(params, ids, prompt, slots, layout, way, where)
    layers, P = [], layout.P
    for number in range(config.n_layer if depth is None else depth):
        here = way if way.only in (None, number) else RIGHT
        if front and prompt.carrier == "hidden" and way.has_slots(number):
            x = np.concatenate([np.broadcast_to(slots[number], x[:, :P].shape), x[:, P:]], axis=1)
        past = (slots[number], None if prompt.beta is None else prompt.beta[number]) if is_kv(prompt) else None
        visible = way.has_slots(number) or not is_kv(prompt)
        x, kept = block(x, params["h"][str(number)], config, past, layout, here, memory and memory[number], visible)
        layers.append(kept)
    end = {"x": x} | (finish(x, params, config, way) if depth is None else {})
    return Tape(model, prompt, ids, layout, layers, end, slots, where)


def finish(x, params, config, way):
    """From the last block to the logits."""
    end, here = {}, way if way.only in (None, config.n_layer) else RIGHT
    end["hidden"], end["ln_f"] = norm(x, params["ln_f"], config, here) if way.final_norm else (x, None)
    if way.final_norm == "bare":
        d, _, r, *_ = end["ln_f"]
        end["hidden"] = d * r
    return end | {"logits": way.product(end["hidden"], head(params).T)}


def is_kv(prompt):
    return prompt is not None and prompt.carrier == "kv"


def head(params):
    return params["lm_head" if "lm_head" in params else "wte"]["weight"]


def embedded(params, ids, prompt, slots, layout, way, where):
    """Slots, tokens and padding as they go into the first block: (B, S, C)."""
    wte, wpe, (B, T), P = params["wte"]["weight"], params["wpe"]["weight"], ids.shape, layout.P
    stand = np.clip(layout.start - P + np.arange(P + T), 0, len(wpe) - 1)
    x = np.broadcast_to(wte[way.pad] + wpe[stand], (B, P + T, wte.shape[1])).copy()  # padding
    words = wte[np.maximum(ids, 0)]
    if prompt is not None and prompt.in_rows:
        words = np.where((ids < 0)[..., None], slots[np.maximum(-1 - ids, 0)], words)
    row, t = np.nonzero(layout.real)
    places = wpe[where] * ((way.slot_positions(0) is not None) | (ids >= 0))[..., None]
    x[row, layout.columns[row, t]] = (words + places)[row, t]
    if P and prompt.carrier == "embeddings":
        own = way.slot_positions(P)
        x[:, :P] = slots + (0 if own is None else wpe[own])
    return x


def block(x, params, config, past, layout, way, memory=None, visible=True):
    """x (B, S, C) -> (B, S, C), and everything on the way."""
    (B, S, C), H, mm = x.shape, config.n_head, way.product
    at = {"x": x}
    at["ln_1"], at["norm_1"] = norm(x, params["ln_1"], config, way)
    qkv = mm(at["ln_1"], params["attn"]["c_attn"]["weight"]) + params["attn"]["c_attn"]["bias"]
    qkv = qkv[..., way.columns(H, C)].reshape(B, S, 3, H, C // H).transpose(2, 0, 3, 1, 4)
    of_q, of_k = way.scale_of_each(C // H)
    q, k, v = qkv[0] * of_q, qkv[1] * of_k, qkv[2].copy()
    if past is not None:
        k[:, :, : layout.P], v[:, :, : layout.P] = past[0]
    if way.swapped:
        k[:, :, : layout.P], v[:, :, : layout.P] = v[:, :, : layout.P].copy(), k[:, :, : layout.P].copy()
    masses = np.zeros((H, S), x.dtype)
    if past is not None and past[1] is not None:
        masses[:, : layout.P] = past[1]
    seen = np.broadcast_to(way.mask(layout), (B, S, S))[:, None]
    if not visible:
        seen = seen & ((np.arange(S) >= layout.P) | (np.arange(S)[:, None] < layout.P))
    if memory is not None:
        k, v = (np.concatenate(pair, axis=2) for pair in zip(memory[:2], (k, v), strict=True))
        masses = np.concatenate([memory[2], masses], axis=1)
        seen = np.concatenate([np.ones((B, 1, S, k.shape[2] - S), bool), seen], axis=3)
    scores = mm(q, k.swapaxes(-1, -2)) * way.scale(C // H, C) + masses[:, None]
    scores = np.where(seen, scores, -np.inf if seen.any(-1).all() else -1e9)  # a query that sees no key sees all
    probs = np.exp(log_softmax(scores))
    at |= {"q": q, "k": k, "v": v, "masses": masses, "probs": probs}
    at["attended"] = mm(probs, v).swapaxes(1, 2).reshape(B, S, C)
    at["middle"] = x + mm(at["attended"], params["attn"]["c_proj"]["weight"]) + params["attn"]["c_proj"]["bias"]
    at["ln_2"], at["norm_2"] = norm(at["middle"], params["ln_2"], config, way)
    at["fc"] = mm(at["ln_2"], params["mlp"]["c_fc"]["weight"]) + params["mlp"]["c_fc"]["bias"]
    at["gelu"] = way.gelu.f(at["fc"])
    out = at["middle"] + mm(at["gelu"], params["mlp"]["c_proj"]["weight"]) + params["mlp"]["c_proj"]["bias"]
    return out, at


def norm(x, params, config, way):
    """LayerNorm -> out, and what its backward needs."""
    eps = config.layer_norm_epsilon if way.eps is None else way.eps
    n = x.shape[-1] - way.ddof
    d = x - x.mean(-1, keepdims=True)
    var = (d * d).sum(-1, keepdims=True) / n
    r = 1 / (np.sqrt(var) + eps) if way.eps_outside else 1 / np.sqrt(var + eps)
    slope = -r * r / (2 * np.sqrt(var)) if way.eps_outside else -(r**3) / 2  # dr / dvar
    return d * r * params["weight"] + params["bias"], (d, var, r, slope, n, params["weight"])


def tensors(tape):
    """What a forward pass shows, under the names of `trace`."""
    layout, found = tape.layout, {}
    for number, at in enumerate(tape.layers):
        rows = {"hidden": at["x"]} | {name: at[name] for name in ("ln_1", "attended", "middle", "ln_2", "fc", "gelu")}
        found |= {f"{name}.{number}": layout.tokens(x) for name, x in rows.items()}
        swapped = {name: at[part].swapaxes(1, 2) for name, part in (("query", "q"), ("key", "k"), ("value", "v"))}
        found[f"query.{number}"] = layout.tokens(swapped["query"]).swapaxes(1, 2)
        found |= {f"{name}.{number}": layout.keys(swapped[name]).swapaxes(1, 2) for name in ("key", "value")}
        by_key = layout.keys(layout.tokens(at["probs"].swapaxes(1, 2)).transpose(0, 3, 1, 2))  # (B, S, T, H)
        found[f"attention.{number}"] = by_key.transpose(0, 3, 2, 1)
    found[f"hidden.{len(tape.layers)}"] = layout.tokens(tape.end["x"])
    if "logits" in tape.end:
        found |= {"ln_f": layout.tokens(tape.end["hidden"]), "logits": layout.tokens(tape.end["logits"])}
        if layout.P and tape.prompt.carrier == "embeddings":
            found["first_logits"] = tape.end["logits"][:, layout.P - 1]
    return found

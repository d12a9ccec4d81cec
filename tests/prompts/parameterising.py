"""Every parameterisation with random raw arrays, and its checks as functions that planted bugs share.

Modules are asked for their functions at the time of the call: a planted bug is seen.
"""

from typing import Any, NamedTuple

import numpy as np

from checks import textbook_lstm
from helpers import tree_errors
from minicompress.prompts import layout
from minicompress.prompts.parameterisations import (
    cartridge,
    direct,
    low_rank,
    prefix_mlp,
    ptuning_lstm,
    ptuning_mlp,
)
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import complex_step, relative_error

FROZEN = {"base", "frozen"}  # names of raw arrays that stay


class Sizes(NamedTuple):
    """P slots, L layers, H heads of width D, h hidden, rank r."""

    P: int = 4
    L: int = 2
    H: int = 3
    D: int = 2
    h: int = 5
    r: int = 2

    @property
    def carriers(self):
        """The shape of slots in each carrier."""
        P, L, H, D, *_ = self
        return {"embeddings": (P, H * D), "hidden": (L, P, H * D), "kv": (L, 2, H, P, D)}


class Case(NamedTuple):
    module: Any
    init: Any  # (rng, sizes, dtype) -> raw
    shape: str  # the carrier of its slots
    told: Any = lambda s: {}  # what bake is told besides raw


def from_slots(module, carrier, options=lambda s: {}):
    """A parameterisation that begins at slots it is given."""

    def init(rng, s, dtype):
        return module.init(rng, rng.standard_normal(s.carriers[carrier]), dtype=dtype, **options(s))

    return Case(module, init, carrier)


def lstm_case(layers):
    return Case(
        ptuning_lstm, lambda rng, s, dtype: ptuning_lstm.init(rng, s.P, s.H * s.D, s.h, layers, dtype), "embeddings"
    )


CASES = {
    "direct": from_slots(direct, "embeddings"),
    "direct, hidden": from_slots(direct, "hidden"),
    "direct, kv": from_slots(direct, "kv"),
    "low rank": from_slots(low_rank, "embeddings", lambda s: {"rank": s.r}),
    "low rank, hidden": from_slots(low_rank, "hidden", lambda s: {"rank": s.r}),
    "low rank, kv": from_slots(low_rank, "kv", lambda s: {"rank": s.r}),
    "prefix mlp": Case(
        prefix_mlp,
        lambda rng, s, dtype: prefix_mlp.init(rng, s.P, s.L, s.H * s.D, s.h, dtype),
        "kv",
        lambda s: {"n_layer": s.L, "n_head": s.H},
    ),
    "p-tuning mlp": Case(
        ptuning_mlp, lambda rng, s, dtype: ptuning_mlp.init(rng, s.P, s.H * s.D, s.h, dtype), "embeddings"
    ),
    "p-tuning lstm": lstm_case(2),
    "p-tuning lstm, 1 layer": lstm_case(1),
    "p-tuning lstm, 3 layers": lstm_case(3),
    "cartridge": from_slots(cartridge, "kv"),
    "cartridge, none frozen": from_slots(cartridge, "kv", lambda s: {"frozen": 0}),
    "cartridge, all but one frozen": from_slots(cartridge, "kv", lambda s: {"frozen": s.P - 1}),
    "cartridge, all frozen": from_slots(cartridge, "kv", lambda s: {"frozen": s.P}),
}


def drawn(name, rng, sizes=Sizes(), dtype=np.float64):  # noqa: B008
    """bake, bake_backward and raw arrays none of whose numbers is special."""
    case = CASES[name]
    raw = tree_map(lambda w: (w + 0.3 * rng.standard_normal(w.shape)).astype(dtype), case.init(rng, sizes, np.float64))
    return lambda raw: case.module.bake(raw, **case.told(sizes)), case.module.bake_backward, raw


def baked_gradient(name, rng, sizes=Sizes(), dtype=np.float64):  # noqa: B008
    """bake, raw, a random dslots and the gradient of raw that it gives."""
    bake, bake_backward, raw = drawn(name, rng, sizes, dtype)
    slots, cache = bake(raw)
    dslots = rng.standard_normal(slots.shape).astype(dtype)
    return bake, raw, dslots, bake_backward(dslots, cache)


def trained(tree):
    return {name: child for name, child in tree.items() if name not in FROZEN}


def gradient_error(name, oracle=complex_step, seed=0, sizes=Sizes()):  # noqa: B008
    """The worst gradient of a trained raw array."""
    rng = np.random.default_rng(seed)
    bake, raw, dslots, draw = baked_gradient(name, rng, sizes)
    f = lambda tree: bake({**raw, **tree})[0]
    return max(tree_errors(oracle, f, trained(raw), trained(draw), dslots, rng).values())


def frozen_error(name):
    """How many bits of the frozen arrays change in five steps of Adam, which all others must feel."""
    rng = np.random.default_rng(0)
    bake, bake_backward, raw = drawn(name, rng, dtype=np.float32)
    state, before = adamw_init(raw), {n: w.tobytes() for n, w in flatten(raw).items()}
    for _ in range(5):
        slots, cache = bake(raw)
        adamw_step(raw, bake_backward(rng.standard_normal(slots.shape).astype(np.float32), cache), state, 0.1)
    stays = {n: w.tobytes() == before[n] for n, w in flatten(raw).items() if w.size}
    return sum(stays[n] != (n in FROZEN) for n in stays)


def start_error(name):
    """How far the slots that `init` makes are from those it was given."""
    rng, sizes = np.random.default_rng(0), Sizes()
    slots = np.random.default_rng(0).standard_normal(sizes.carriers[CASES[name].shape])
    case = CASES[name]
    return relative_error(case.module.bake(case.init(rng, sizes, np.float64), **case.told(sizes))[0], slots)


def start_gradient_error(name):
    """1 where no raw array has a gradient at the start: then nothing would ever move."""
    case, rng = CASES[name], np.random.default_rng(0)
    slots, cache = case.module.bake(case.init(rng, Sizes(), np.float64), **case.told(Sizes()))
    return float(not any(g.any() for g in flatten(case.module.bake_backward(slots, cache)).values()))


def alias_error(name):
    """How far baked slots move when the raw arrays are changed in place afterwards."""
    bake, _, raw = drawn(name, np.random.default_rng(0))
    slots = bake(raw)[0]
    before = slots.copy()
    tree_map(lambda w: w.__iadd__(1), raw)
    return relative_error(slots, before)


# What each should bake to, written once more.


def textbook_kv(flat, L, H):
    P, D = len(flat), flat.shape[1] // (2 * L * H)
    kv = np.empty((L, 2, H, P, D))
    for layer, kind, head, p, j in np.ndindex(kv.shape):
        kv[layer, kind, head, p, j] = flat[p, ((2 * layer + kind) * H + head) * D + j]
    return kv


def textbook_mlp(x, params, activation):
    first, *others = sorted(params)
    x = x @ params[first]["weight"] + params[first]["bias"]
    for name in others:
        x = activation(x) @ params[name]["weight"] + params[name]["bias"]
    return x


def textbook_product(a, b):
    return sum(np.outer(a[:, k], b[k]) for k in range(len(b)))


def textbook_ptuning_lstm(raw):
    x = raw["embedding"]["weight"][None]
    for layer in (raw["lstm_head"][n] for n in sorted(raw["lstm_head"])):
        x = np.concatenate([textbook_lstm(x, **layer["onward"]), textbook_lstm(x, **layer["reverse"], reverse=True)], 2)
    return textbook_mlp(x[0], raw["mlp_head"], lambda z: np.maximum(z, 0))


def textbook_slots(name, raw, s):
    kind = name.split(",")[0]
    if kind == "low rank":
        if name == "low rank, hidden":
            return raw["base"] + np.array([textbook_product(*layer) for layer in zip(raw["a"], raw["b"], strict=True)])
        product = textbook_product(raw["a"], raw["b"])
        return raw["base"] + (textbook_kv(product, s.L, s.H) if name == "low rank, kv" else product)
    return {
        "direct": lambda: raw["slots"],
        "prefix mlp": lambda: textbook_kv(
            textbook_mlp(raw["embedding"]["weight"], raw["transform"], np.tanh), s.L, s.H
        ),
        "p-tuning mlp": lambda: textbook_mlp(raw["embedding"]["weight"], raw["mlp_head"], lambda z: np.maximum(z, 0)),
        "p-tuning lstm": lambda: textbook_ptuning_lstm(raw),
        "cartridge": lambda: np.moveaxis([*np.moveaxis(raw["frozen"], 3, 0), *np.moveaxis(raw["slots"], 3, 0)], 0, 3),
    }[kind]()


def definition_error(name):
    bake, _, raw = drawn(name, np.random.default_rng(0))
    return relative_error(bake(raw)[0], textbook_slots(name, raw, Sizes()))


def layout_error():
    """Both ways, for numbers that are all different."""
    flat = np.arange(4.0 * 2 * 2 * 3 * 5).reshape(4, -1)
    there = layout.kv_from_flat(flat, 2, 3)
    return relative_error(there, textbook_kv(flat, 2, 3)) + relative_error(layout.flat_from_kv(there), flat)


GIVEN = [name for name, case in CASES.items() if case.module in (direct, low_rank, cartridge)]
TRAINED = [name for name in CASES if name != "cartridge, all frozen"]

CHECKS = {
    **{f"gradient of {name}": lambda name=name: gradient_error(name) for name in TRAINED},
    **{f"definition of {name}": lambda name=name: definition_error(name) for name in CASES},
    **{f"frozen of {name}": lambda name=name: frozen_error(name) for name in CASES},
    **{f"start of {name}": lambda name=name: start_error(name) for name in GIVEN},
    **{f"first gradient of {name}": lambda name=name: start_gradient_error(name) for name in TRAINED},
    **{f"alias of {name}": lambda name=name: alias_error(name) for name in CASES},
    "gradient of low rank, square": lambda: gradient_error("low rank", sizes=Sizes(P=6, r=6)),
    "layout": layout_error,
}

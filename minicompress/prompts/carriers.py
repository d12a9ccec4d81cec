"""What slots can be, and how each kind becomes a prefix: as embeddings, as hidden states, or as keys and values.

All three end as keys and values of every layer, so the model has one door for them. They differ in
how much of that is free. Slots as *embeddings* (P, C) run through all layers, each seeing those
before it. Slots as *hidden* states (L, P, C) are put anew into the residual stream before every
layer, so that nothing one layer computes for them reaches the next: only its LayerNorm and its
key and value projections are left between them and the prefix. Slots as *kv* are the keys and
values themselves. Only embeddings have a last state, and so predict a first token.
"""

from minicompress.arrays import array_module, zeros_like
from minicompress.gpt2.prefix import EMBEDDINGS, Door, Prefix, read_slots
from minicompress.layers.layernorm import layernorm, layernorm_backward
from minicompress.layers.linear import linear, linear_backward
from minicompress.trees import tree_map

POSITIONS = ("compact", "logical", "unshifted")


def read_hidden(params, config, slots, keep="nothing"):
    """slots (L, P, C), the residual stream as layer l sees it (deep prompts; P-tuning v2, Liu et al. 2022)."""
    past, caches = [], []
    for layer, x in enumerate(slots):
        weights = params["h"][str(layer)]
        x, cache_ln = layernorm(x[None], **weights["ln_1"], eps=config.layer_norm_epsilon)
        kv, cache_kv = linear(x, **keys_and_values(weights), frozen=keep != "grads")  # (1, P, 2C)
        past.append(tuple(kv.reshape(1, len(x[0]), 2, config.n_head, -1).transpose(2, 0, 3, 1, 4)))
        caches.append((cache_ln, cache_kv))
    P = slots.shape[1]
    return Prefix(past, None, P, P), caches


def read_hidden_backward(asked, caches, grads=None):
    """-> dslots (L, P, C): each layer's own, since none leads to another."""
    dslots = []
    for layer, ((dk, dv), (cache_ln, cache_kv)) in enumerate(zip(asked[0], caches, strict=True)):
        weights = grads and grads["h"][str(layer)]
        dkv = array_module(dk).stack([dk, dv]).transpose(1, 3, 0, 2, 4)  # (1, P, 2, H, D)
        dx = linear_backward(dkv.reshape(*dkv.shape[:2], -1), cache_kv, weights and keys_and_values(weights))
        dslots.append(layernorm_backward(dx, cache_ln, weights and weights["ln_1"])[0])
    return array_module(dslots[0]).stack(dslots)


def keys_and_values(weights):
    """The part of c_attn that makes keys and values: views of (C, 2C) and (2C,)."""
    c_attn, C = weights["attn"]["c_attn"], len(weights["attn"]["c_attn"]["weight"])
    return {"weight": c_attn["weight"][:, C:], "bias": c_attn["bias"][C:]}


def read_kv(params, config, slots, keep="nothing"):
    """slots (L, 2, H, P, D), or {"slots": that, "beta": (L, H, P)}: used as they are (Li & Liang 2021)."""
    kv, beta = (slots["slots"], slots["beta"]) if isinstance(slots, dict) else (slots, None)
    masses = [()] * len(kv) if beta is None else [(b[None],) for b in beta]
    P = kv.shape[3]
    return Prefix([(k[None], v[None], *b) for (k, v), b in zip(kv, masses, strict=True)], None, P, P), beta is not None


def read_kv_backward(asked, with_beta, grads=None):
    """-> dslots, as the slots were given."""
    xp = array_module(asked[0][0][0])
    dkv = xp.stack([xp.stack([dk[0], dv[0]]) for dk, dv, *_ in asked[0]])
    return {"slots": dkv, "beta": xp.stack([db[0] for *_, db in asked[0]])} if with_beta else dkv


def read_in_rows(params, config, slots, keep="nothing"):
    """slots (P, C) that the rows themselves place, as a template says: nothing stands before them."""
    return Prefix(slots=slots), None


def read_in_rows_backward(asked, cache, grads=None):
    """-> dslots (P, C), summed over all places where a slot stands."""
    return asked[2]


IN_ROWS = Door(read_in_rows, read_in_rows_backward)
DOORS = {
    "embeddings": EMBEDDINGS,
    "hidden": Door(read_hidden, read_hidden_backward),
    "kv": Door(read_kv, read_kv_backward),
}


def placed(door, start):
    """The same door, but the rows' tokens begin at position `start`, wherever the slots end."""

    def read(*args, **options):
        prefix, cache = door.read(*args, **options)
        return prefix._replace(start=start), cache

    return Door(read, door.read_backward)


def through(bake, bake_backward, door):
    """The door of raw arrays that bake into slots: reparametrisation is one function before another."""

    def read(params, config, raw, keep="nothing"):
        slots, cache = bake(raw)
        prefix, cache_door = door.read(params, config, slots, keep)
        return prefix, (cache, cache_door)

    def read_backward(asked, caches, grads=None):
        return bake_backward(door.read_backward(asked, caches[1], grads), caches[0])

    return Door(read, read_backward)


def cut(slots, count):
    """The first `count` slots of any carrier, an array or {"slots", "beta"}: views."""
    if isinstance(slots, dict):
        return {"slots": cut(slots["slots"], count), "beta": slots["beta"][..., :count]}
    return slots[..., :count, :]


def leading(count):
    """bake and bake_backward: the first `count` slots alone, as if there were no others."""

    def bake(slots):
        return cut(slots, count), slots

    def bake_backward(dcut, slots):
        dslots = tree_map(zeros_like, slots)
        tree_map(lambda whole, part: whole.__setitem__(..., part), cut(dslots, count), dcut)
        return dslots

    return bake, bake_backward


def frozen(count):
    """bake and bake_backward: all slots, but the first `count` stay as they are."""

    def bake_backward(dslots, cache):
        tree_map(lambda x: x.fill(0), cut(dslots, count))
        return dslots

    return lambda slots: (slots, None), bake_backward


def lift(params, config, embeddings, carrier):
    """Slots of any carrier that say exactly what these embeddings (P, C) say, positions 0..P-1 included."""
    if carrier == "embeddings":
        return embeddings.copy()
    xp, stream = array_module(embeddings), []
    prefix, _ = read_slots(params, config, embeddings, watch=stream)
    if carrier == "hidden":
        return xp.stack([x[0] for x in stream[:-1]])
    return xp.stack([xp.stack([k[0], v[0]]) for k, v in prefix.past])


def start_of(positions, slots, offset=None):
    """Where tokens begin behind `slots` slots: after them, at 0 (the adapters library), or at a given offset.

    Raises ValueError for another name, and where `logical` has no offset or another has one.
    """
    if positions not in POSITIONS:
        raise ValueError(f"positions are {positions!r}; they can be {', '.join(POSITIONS)}")
    if (positions == "logical") != (offset is not None):
        raise ValueError(f"positions are {positions!r}, the offset is {offset}; an offset belongs to 'logical' alone")
    return {"compact": slots, "unshifted": 0, "logical": offset}[positions]


def slots_shape(carrier, config, slots):
    """The shape of so many slots of a carrier, for a model."""
    L, C, H = config.n_layer, config.n_embd, config.n_head
    return {"embeddings": (slots, C), "hidden": (L, slots, C), "kv": (L, 2, H, slots, C // H)}[carrier]

"""What goes wrong before the first block: where the prompt stands, at which positions, in which layout."""

import numpy as np

from minicompress.layers.layernorm import layernorm
from minicompress.prompts.layout import flat_from_kv
from minicompress.verification.catalogue.block import kinds
from minicompress.verification.catalogue.bug import Bug, for_carriers, in_front, where
from minicompress.verification.plain.forward import Way

POSITIONS = "hidden.0 differs in every row by the difference of two rows of wpe, the same for all rows"


def shifted(by):
    """Positions moved by `by(layout)`."""
    return lambda layout: layout.start + by(layout) + np.arange(layout.T)[None]


def over_padding(layout):
    """Tokens keep the positions of their columns, padding on their left included."""
    return layout.start + layout.left[:, None] + np.arange(layout.T)


def every_column(layout):
    """Causal, and padding is seen as well."""
    S = layout.P + layout.T
    return np.tri(S, dtype=bool)[None]


def left_padding(setup, evidence):
    if len(set(map(len, setup.rows))) == 1:
        return {}
    last = len(setup.model[0]["wte"]["weight"]) - 1
    ways = {"padding masked": Way(left=True, positions=over_padding)}
    for pad in (0, last):
        ways |= {f"padding {pad} seen": Way(left=True, mask=every_column, pad=pad)}
        ways |= {
            f"padding {pad} seen, positions run over it": Way(
                left=True, positions=over_padding, mask=every_column, pad=pad
            )
        }
    return ways


def twice(setup, evidence):
    P = setup.prompt.length
    ways = {"by the slots": Way(positions=shifted(lambda layout: P))}
    if setup.prompt.start not in (0, P):
        ways["by the offset"] = Way(positions=shifted(lambda layout: layout.start))
    return ways if setup.prompt.start else {}


def begin_at(number):
    return Way(positions=lambda layout: number + np.arange(layout.T)[None])


def at_one_place(setup):
    """Slots in front that all stand at the same position, or behind one another's."""
    if setup.prompt.in_rows:
        return {}
    return {
        "all at 0": Way(slot_positions=lambda P: np.zeros(P, int)),
        "from 1": Way(slot_positions=lambda P: 1 + np.arange(P)),
    }


def not_injected(setup, evidence):
    P = setup.prompt.length
    ways = {"tokens from 0": Way(injected=False)}
    ways |= {"tokens behind its place": Way(injected=False, positions=shifted(lambda layout: P))}
    if setup.prompt.carrier in ("hidden", "kv") and setup.model[1].n_layer > 1:
        ways["in the first block alone"] = Way(has_slots=lambda number: number == 0)
        ways["not in the first block"] = Way(has_slots=lambda number: number > 0)
    for token in (0, len(setup.model[0]["wte"]["weight"]) - 1) if setup.prompt.carrier == "embeddings" else ():
        ways[f"token {token} in its place"] = Way(
            slots=lambda slots, prompt, model, token=token: np.broadcast_to(
                model[0]["wte"]["weight"][token], slots.shape
            )
        )
    return ways


def projected(setup, evidence):
    """The flat prefix taken for hidden states: ln_1 and c_attn, or c_attn alone, make keys and values of it."""

    def through(sources, with_norm):
        def slots(kv, prompt, model):
            (params, config), out = model, np.empty_like(kv)
            L, _, H, P, D = kv.shape
            for layer in range(L):
                weights = params["h"][str(layer)]
                for kind, source in enumerate(sources):
                    x = kv[layer, source].transpose(1, 0, 2).reshape(P, H * D)
                    x = layernorm(x, **weights["ln_1"], eps=config.layer_norm_epsilon)[0] if with_norm else x
                    columns = slice((kind + 1) * H * D, (kind + 2) * H * D)
                    x = x @ weights["attn"]["c_attn"]["weight"][:, columns] + weights["attn"]["c_attn"]["bias"][columns]
                    out[layer, kind] = x.reshape(P, H, D).transpose(1, 0, 2)
            return out

        return Way(slots=slots)

    sources = {"each part": (0, 1), "the key part": (0, 0), "the value part": (1, 1)}
    norms = {"with ln_1": True, "without ln_1": False}
    return {f"{s}, {n}": through(which, norm) for s, which in sources.items() for n, norm in norms.items()}


def layouts(setup, evidence):
    """Other orders in which the numbers of a prefix can be read."""
    if setup.prompt.carrier == "hidden":
        return {"layers from the last": Way(slots=lambda slots, *_: slots[::-1]),
                "slots from the last": Way(slots=lambda slots, *_: slots[:, ::-1])}  # fmt: skip
    L, _, H, P, D = setup.prompt.slots.shape
    sizes = {"P": P, "L": L, "2": 2, "H": H, "D": D}
    orders = {"kind before layer": "P2LHD", "head before kind": "PLH2D", "head before layer": "PHL2D",
              "layer last": "P2HLD",
              "head last": "PL2DH", "head first, kind last": "PHLD2", "layer behind head, kind": "PH2LD",
              "kind last": "PLHD2",
              "slots inside layers": "L2PHD", "slots inside heads": "L2HPD", "slots inside kinds": "LP2HD",
              "slots inside kinds, kinds first": "2LPHD", "kinds, slots, layers": "2PLHD"}  # fmt: skip

    def read_as(order):
        def slots(kv, *_):
            flat = flat_from_kv(kv).reshape([sizes[axis] for axis in order])
            return flat.transpose([order.index(axis) for axis in "L2HPD"])

        return Way(slots=slots)

    whole = {
        "layers from the last": np.s_[::-1],
        "heads from the last": np.s_[:, :, ::-1],
        "slots from the last": np.s_[:, :, :, ::-1],
    }
    ways = {name: read_as(order) for name, order in orders.items()}
    ways["heads viewed, not moved"] = Way(slots=lambda kv, *_: kv.swapaxes(2, 3).reshape(kv.shape))
    return ways | {name: Way(slots=lambda kv, *_, cut=cut: kv[cut]) for name, cut in whole.items()}


BUGS = [
    Bug(
        "left-padding",
        "the prompt stands left of left padding",
        "front",
        "hidden.0 of the shorter rows alone: their tokens stand at the positions of their columns",
        "pad on the right; or give tokens their positions and hide the padding, and put the prompt behind it",
        left_padding,
    ),
    Bug(
        "positions-shifted-twice",
        "tokens are moved on by the prompt twice",
        "front",
        POSITIONS,
        "the cache, or the library, already counts the slots: do not add them to position_ids again",
        where(in_front, twice),
    ),
    Bug(
        "positions-unshifted",
        "tokens begin at position 0, as if no slots stood before them",
        "front",
        POSITIONS,
        "add the number of slots to position_ids; the adapters library's convention is --positions unshifted",
        where(lambda s: in_front(s) and s.prompt.start > 0, lambda s, e: {"from 0": begin_at(0)}),
        convention=lambda setup: setup.prompt is not None and setup.prompt.carrier != "embeddings",
    ),
    Bug(
        "positions-compact",
        "tokens stand right behind the slots, though the prompt's file has them elsewhere",
        "front",
        POSITIONS,
        "the prompt was made for unshifted or logical positions: read them from its file",
        where(
            lambda s: in_front(s) and s.prompt.start != s.prompt.length,
            lambda s, e: {"behind the slots": begin_at(s.prompt.length)},
        ),
        convention=lambda setup: setup.prompt is not None and setup.prompt.carrier != "embeddings",
    ),
    Bug(
        "positions-off-by-one",
        "all positions are off by one or two",
        "front",
        POSITIONS,
        "GPT-2's positions begin at 0, and the first token behind P slots stands at P",
        lambda s, e: {
            f"{by:+d}": Way(positions=shifted(lambda layout, by=by: by))
            for by in (1, 2, -1)
            if (s.prompt.start if s.prompt else 0) + by >= 0
        },
    ),
    Bug(
        "prompt-not-injected",
        "the prompt never reaches the model",
        "front",
        "everything is as without a prompt: attention has T keys, not P + T, or no slot has any of it",
        "PEFT: give task_type; check that generate, Trainer and your own loop call the wrapped model",
        where(lambda s: s.prompt is not None, not_injected),
    ),
    Bug(
        "slots-without-positions",
        "slots as embeddings receive no rows of wpe",
        "front",
        "hidden.0 agrees, attention.0 differs: the slots' own keys are wrong",
        "GPT-2 adds wpe to inputs_embeds by itself; a port must add it too, positions 0 to P-1",
        where(
            lambda s: s.prompt is not None and s.prompt.carrier == "embeddings",
            lambda s, e: {"none": Way(slot_positions=lambda P: None)} | at_one_place(s),
        ),
    ),
    Bug(
        "prefix-projected",
        "a prefix of keys and values is fed through ln_1 and c_attn",
        "front",
        "hidden.0 agrees, attention.0 differs in the slots' columns; key.0 and value.0 in the slots' rows",
        "keys and values are used raw; only deep prompts (carrier hidden) are projected",
        where(for_carriers("kv"), projected),
    ),
    Bug(
        "key-value-swapped",
        "keys and values have changed places",
        "front",
        "attention.0 differs in the slots' columns; key.0 and value.0 are each other's",
        "even blocks of a flat prefix are keys, odd ones values: column ((2 l + kind) H + head) D + j, kind 0 the key",
        lambda s, e: ({"of the slots": Way(swapped=True)} if in_front(s) else {}) | {"of c_attn": kinds(0, 2, 1)},
    ),
    Bug(
        "prefix-layout",
        "the flat prefix is read in another order of layers, kinds, heads or slots",
        "front",
        "attention.0 differs in the slots' columns; the slots' keys hold the right numbers in other places",
        "PEFT: view(P, 2L, H, D), permute to (2L, H, P, D), pairs of key and value",
        where(for_carriers("kv", "hidden"), layouts),
    ),
]

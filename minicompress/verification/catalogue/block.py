"""What goes wrong inside a block, or between the last one and the logits."""

import numpy as np

from minicompress.verification.catalogue.bug import Bug, always, in_front, where
from minicompress.verification.plain.forward import Way, causal
from minicompress.verification.plain.gelus import ERF, SIGMOID


def mask(change):
    """The causal mask with a change: change(seen, query, key, layout), query and key as columns (S, 1), (1, S)."""

    def changed(layout):
        column = np.arange(layout.P + layout.T)
        return change(causal(layout), column[:, None], column[None], layout)

    return Way(mask=changed)


def behind_the_end(seen, query, key, layout):
    """Columns of padding, behind the rows' ends."""
    return (key >= layout.P + layout.lengths[:, None, None]) | (0 * query > 0)


OFF_BY_ONE = {
    "sees the next token": mask(lambda seen, q, k, layout: k <= q + 1),
    "does not see itself": mask(lambda seen, q, k, layout: k < q),
    "does not see itself, the first query does": mask(lambda seen, q, k, layout: (k < q) | ((q == 0) & (k == 0))),
    "tokens see the next one": mask(lambda seen, q, k, layout: (k <= q) | ((k == q + 1) & (q >= layout.P))),
    "tokens do not see themselves": mask(lambda seen, q, k, layout: (k < q) | ((k == q) & (q < layout.P))),
    "tokens do not see the token before": mask(lambda seen, q, k, layout: seen & ((k != q - 1) | (q < layout.P))),
}
MISSING = {
    "all tokens see all": mask(lambda seen, q, k, layout: ~behind_the_end(seen, q, k, layout)),
    "all see all, padding too": mask(lambda seen, q, k, layout: np.ones_like(seen)),
    "tokens see all tokens": mask(
        lambda seen, q, k, layout: seen | ((q >= layout.P) & ~behind_the_end(seen, q, k, layout))
    ),
    "tokens see all, padding too": mask(lambda seen, q, k, layout: seen | (q >= layout.P)),
}
FOR_SLOTS = {
    "tokens do not see the slots": mask(lambda seen, q, k, layout: seen & ((k >= layout.P) | (q < layout.P))),
    "nothing sees the slots": mask(lambda seen, q, k, layout: seen & ((k >= layout.P) | (k == q))),
    "nothing sees the slots but the first": mask(
        lambda seen, q, k, layout: seen & ((k >= layout.P) | (q < layout.P) | (k == 0))
    ),
    "tokens do not see the first slot": mask(lambda seen, q, k, layout: seen & ((k > 0) | (q < layout.P))),
    "tokens do not see the last slot": mask(lambda seen, q, k, layout: seen & ((k != layout.P - 1) | (q < layout.P))),
    "slots see all slots": mask(lambda seen, q, k, layout: seen | ((q < layout.P) & (k < layout.P))),
    "slots see all slots and tokens": mask(lambda seen, q, k, layout: seen | (q < layout.P)),
    "slots do not see one another": mask(lambda seen, q, k, layout: seen & ((q >= layout.P) | (k == q))),
}
INVERTED = {
    "sees what comes later": mask(lambda seen, q, k, layout: k > q),
    "sees itself and what comes later": mask(lambda seen, q, k, layout: k >= q),
    "sees itself and what comes later, no padding": mask(
        lambda seen, q, k, layout: (k >= q) & ~behind_the_end(seen, q, k, layout)
    ),
    "sees what comes later, no padding": mask(lambda seen, q, k, layout: (k > q) & ~behind_the_end(seen, q, k, layout)),
    "tokens see slots and later tokens": mask(
        lambda seen, q, k, layout: np.where(q < layout.P, seen, (k < layout.P) | (k > q))
    ),
    "tokens see slots, themselves and later": mask(
        lambda seen, q, k, layout: np.where(q < layout.P, seen, (k < layout.P) | (k >= q))
    ),
    "sees padding alone": mask(lambda seen, q, k, layout: seen & behind_the_end(seen, q, k, layout)),
    "sees itself and padding alone": mask(
        lambda seen, q, k, layout: seen & (behind_the_end(seen, q, k, layout) | (k == q))
    ),
}
NOT_OFFSET = {
    "query t sees the first t keys": mask(lambda seen, q, k, layout: np.where(q < layout.P, seen, k <= q - layout.P)),
    "query t sees t + 1 keys of all": mask(lambda seen, q, k, layout: np.where(q < layout.P, seen, k < q - layout.P)),
}


def columns(order):
    """c_attn's columns as (kind, head, number) read from another order of these, "2" the kinds."""

    def index(H, C):
        sizes = {"2": 3, "H": H, "D": C // H}
        where_each = np.arange(3 * C).reshape([sizes[axis] for axis in order])
        return where_each.transpose([order.index(axis) for axis in "2HD"]).ravel()

    return Way(columns=index)


def kinds(*order):
    """q, k and v taken from these thirds of c_attn."""
    return Way(columns=lambda H, C: np.arange(3 * C).reshape(3, C)[list(order)].ravel())


SPLITS = {"head by head": columns("H2D"), "heads inside": columns("2DH"), "kinds innermost": columns("HD2"),
          "heads innermost": columns("D2H"), "q and k": kinds(1, 0, 2), "q and v": kinds(2, 1, 0),
          "k, v, q": kinds(1, 2, 0), "v, q, k": kinds(2, 0, 1)}  # fmt: skip


def other_eps(setup, evidence):
    values = {0.0, 1e-8, 1e-12, 1e-6, 1e-5, 1e-3} - {setup.model[1].layer_norm_epsilon}
    return {f"{eps:g}": Way(eps=eps) for eps in sorted(values)}


def half(a, b):
    """A product whose factors and sums are kept in half precision."""
    return (a.astype(np.float16) @ b.astype(np.float16)).astype(a.dtype)


QUERIES = "hidden.0 agrees, attention.0 differs"
BUGS = [
    Bug(
        "mask-off-by-one",
        "the causal mask is off by one",
        "block",
        QUERIES + ": probability on the diagonal above, or none on the diagonal",
        "query t sees keys 0 to t: torch.tril with diagonal=0, or with P slots diagonal=P on the T x (P + T) scores",
        always(OFF_BY_ONE),
    ),
    Bug(
        "mask-missing",
        "there is no causal mask",
        "block",
        QUERIES + ": probability above the diagonal",
        "scores of later keys become -inf before the softmax; is_causal does not hold with an attn_mask of your own",
        always(MISSING),
    ),
    Bug(
        "mask-missing-for-slots",
        "the mask does not cover the slots, or covers them wrongly",
        "block",
        QUERIES + " in the slots' columns",
        "put P ones in front of the attention mask; slots are causal among themselves",
        where(in_front, lambda s, e: FOR_SLOTS),
    ),
    Bug(
        "mask-without-offset",
        "the causal mask is not moved on by the past",
        "block",
        QUERIES + ": query t sees the first t + 1 of P + T keys",
        "the T queries are the last T of P + T positions: tril with diagonal=P",
        where(in_front, lambda s, e: NOT_OFFSET),
    ),
    Bug(
        "mask-inverted",
        "the mask is the wrong way round",
        "block",
        QUERIES + ": probability where it should be 0, and none where it should be",
        "masked_fill fills where the mask is True: it must be True on what is hidden",
        always(INVERTED),
    ),
    Bug(
        "scale-twice",
        "1/√D is applied twice",
        "block",
        QUERIES + ": flatter, in every row",
        "scaled_dot_product_attention scales by itself: do not scale the queries too",
        lambda s, e: {
            "1/D": Way(scale=lambda D, C: 1 / D),
            "queries": Way(scale_of_each=lambda D: (D**-0.5, 1.0)),
            "keys": Way(scale_of_each=lambda D: (1.0, D**-0.5)),
            "each by the fourth root": Way(scale_of_each=lambda D: (D**-0.25, D**-0.25)),
            "queries and keys": Way(scale_of_each=lambda D: (D**-0.5, D**-0.5), scale=lambda D, C: 1.0),
        },
    ),
    Bug(
        "scale-missing",
        "scores are not divided by √D",
        "block",
        QUERIES + ": sharper, in every row",
        "scores are q k / √D, D the width of a head",
        lambda s, e: {"1": Way(scale=lambda D, C: 1.0)},
    ),
    Bug(
        "scale-of-another-width",
        "scores are divided by the root of another width than a head's",
        "block",
        QUERIES + ": flatter or sharper, in every row",
        "D is n_embd / n_head",
        lambda s, e: {
            "√C": Way(scale=lambda D, C: C**-0.5),
            "√H": Way(scale=lambda D, C: (C // D) ** -0.5),
            "D^(1/4)": Way(scale=lambda D, C: D**-0.25),
        },
    ),
    Bug(
        "qkv-split",
        "queries, keys and values are split from c_attn in another order",
        "block",
        "hidden.0 and ln_1.0 agree, query.0, key.0 or value.0 hold the right numbers in other places",
        "c_attn's columns are q, k, v, each head by head",
        always(SPLITS),
    ),
    Bug(
        "gelu-erf",
        "GELU by erf in place of tanh",
        "block",
        "attention.0 and fc.0 agree, gelu.0 and hidden.1 differ by about 1e-4 to 1e-3",
        'GPT-2\'s activation is gelu_new: torch.nn.GELU(approximate="tanh")',
        lambda s, e: {"erf": Way(gelu=ERF)},
    ),
    Bug(
        "gelu-sigmoid",
        "GELU by x σ(1.702 x) in place of tanh",
        "block",
        "attention.0 and fc.0 agree, gelu.0 and hidden.1 differ by about 1e-2",
        "GPT-2's activation is gelu_new, the tanh form",
        lambda s, e: {"sigmoid": Way(gelu=SIGMOID)},
    ),
    Bug(
        "variance-unbiased",
        "LayerNorm divides by C - 1",
        "block",
        "hidden.0 agrees, ln_1.0 is smaller by the factor √((C-1)/C) before its scale and shift",
        "var(unbiased=False), or correction=0",
        lambda s, e: {"C - 1": Way(ddof=1)},
    ),
    Bug(
        "eps-outside-root",
        "ε is added to the deviation, outside the root",
        "block",
        "hidden.0 agrees, ln_1.0 differs by about ε/σ",
        "(var + eps) ** -0.5",
        lambda s, e: {"σ + ε": Way(eps_outside=True)},
    ),
    Bug(
        "eps-value",
        "LayerNorm has another ε than the config",
        "block",
        "hidden.0 agrees, ln_1.0 differs by about ε/2σ²",
        "take layer_norm_epsilon of config.json",
        other_eps,
    ),
    Bug(
        "final-norm-missing",
        "the last hidden states go to the head without ln_f",
        "head",
        "every hidden.l agrees, logits differ",
        "logits = ln_f(hidden.L) @ wteᵀ",
        lambda s, e: {"left out": Way(final_norm=False), "without its weight and bias": Way(final_norm="bare")},
    ),
]

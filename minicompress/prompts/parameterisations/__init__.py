"""What is trained, where it is not the slots themselves: each file is one map from raw arrays to slots.

A reparametrisation is algebra. The slots are computed from the raw arrays, the model sees nothing
but slots, and the gradient of the slots goes back through the algebra; prefix tuning's MLP and
P-tuning's LSTM are no more than that. Once trained, every one *bakes* down to the same few slots,
and the raw arrays may be thrown away, or kept to train on.

    slots, cache = bake(raw)              raw: a tree of arrays
    draw = bake_backward(dslots, cache)   a tree like raw; zeros for what is frozen

Slots are (P, C) as embeddings, (L, P, C) as hidden states, (L, 2, H, P, D) as keys and values, and
always new arrays: raw ones may change in place afterwards. `init(rng, ...)` draws the first raw
arrays. Adam leaves an array alone whose gradient was always zero; weight decay does not.
"""

from functools import partial

from minicompress.prompts.parameterisations import cartridge, direct, low_rank, prefix_mlp, ptuning_lstm, ptuning_mlp

MADE_OF = {
    ("slots",): direct,
    ("a", "b", "base"): low_rank,
    ("frozen", "slots"): cartridge,
    ("embedding", "transform"): prefix_mlp,
    ("embedding", "mlp_head"): ptuning_mlp,
    ("embedding", "lstm_head", "mlp_head"): ptuning_lstm,
}  # fmt: skip


def kind_of(raw, config):
    """bake and bake_backward of the parameterisation whose raw arrays these are, told by their names.

    Raises ValueError where there is none.
    """
    if (kind := MADE_OF.get(tuple(sorted(raw)))) is None:
        raise ValueError(f"raw arrays {', '.join(sorted(raw))} are of no parameterisation known here")
    bake = partial(kind.bake, n_layer=config.n_layer, n_head=config.n_head) if kind is prefix_mlp else kind.bake
    return bake, kind.bake_backward

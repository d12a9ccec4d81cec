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

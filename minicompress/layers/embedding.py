"""A table of vectors, looked up by row number."""

from minicompress.arrays import add_at


def embedding(ids, weight):
    """ids (...,) of integers in [0, N), weight (N, C) -> (..., C)."""
    return weight[ids], ids


def embedding_backward(dout, ids, grads):
    """Row i of the table receives the sum of dout over all places that looked it up."""
    add_at(grads["weight"], ids.reshape(-1), dout.reshape(-1, dout.shape[-1]))

"""From hidden states to the vocabulary, a chunk of rows at a time.

Tokens times 50,257 logits are the largest array of a GPT-2. No step needs them all at once: the
loss of a row is taken while the row's logits are there, its gradient put into their place, and
both let go.
"""

from minicompress.arrays import array_module, few_rows

CHUNK = 256  # rows: at 50,257 words and float32, 51 MB


def head_weight(params):
    """(V, C): the untied head where there is one, else the token embeddings themselves."""
    return params["lm_head" if "lm_head" in params else "wte"]["weight"]


def logits(params, hidden):
    """hidden (..., C) -> (..., V)."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    return (rows @ head_weight(params).T).reshape(*hidden.shape[:-1], -1)


def head_loss(params, hidden, objective, grads=None, chunk=CHUNK):
    """The objective over all rows of hidden (N, C) -> losses (N,), dhidden (N, C).

    objective(logits, rows) gives the losses (n,) of the slice `rows` and dlogits (n, V), which
    already carries each row's weight in the total.
    """
    xp, weight = array_module(hidden), head_weight(params)
    if not len(hidden):
        raise ValueError("no target is scored, so there is no loss")
    losses, dhidden = [], xp.empty_like(hidden)
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        logits = hidden[rows] @ weight.T  # (n, V)
        for few in few_rows(logits):
            loss, logits[few] = objective(logits[few], slice(start + few.start, start + few.stop))
            losses.append(loss)
        dhidden[rows] = logits @ weight  # they are dlogits now
        if grads is not None:
            head_weight(grads)[...] += logits.T @ hidden[rows]
    return xp.concatenate(losses), dhidden

"""The two layouts of a key-value prompt: ours by layer, and PEFT's flat one, a row for each slot.

Flat column ((2 l + kind) H + head) D + j holds number j of that head's key (kind 0) or value
(kind 1) in layer l. The two functions only move numbers, and undo one another; so the backward of
each is the other.
"""


def kv_from_flat(flat, n_layer, n_head):
    """flat (P, 2 L C) -> kv (L, 2, H, P, D). Raises ValueError where the columns are not 2 L H equal parts."""
    P, columns = flat.shape
    D, rest = divmod(columns, 2 * n_layer * n_head)
    if rest:
        raise ValueError(
            f"a row has {columns:,} numbers, which are not keys and values of {n_layer} layers and {n_head} heads"
        )
    return flat.reshape(P, n_layer, 2, n_head, D).transpose(1, 2, 3, 0, 4)


def flat_from_kv(kv):
    """kv (L, 2, H, P, D) -> flat (P, 2 L C)."""
    L, _, H, P, D = kv.shape
    return kv.transpose(3, 0, 1, 2, 4).reshape(P, 2 * L * H * D)

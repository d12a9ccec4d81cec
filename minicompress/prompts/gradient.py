"""The gradient of a soft prompt through the frozen model.

The slots stand first and are the same for all rows. So they are read once a batch; each shard of
rows reads their keys and values, and asks something of them on the way back; the sum of what was
asked goes through the slots' own reading once. No gradient of any weight is ever formed.
"""

from minicompress.arrays import to_host
from minicompress.gpt2 import head_loss
from minicompress.gpt2.prefix import EMBEDDINGS, Prefix, predictors, predictors_backward
from minicompress.prompts.low_rank_weights import adapt, adapt_backward, room_for
from minicompress.trees import child, tree_map


def slots_gradient(model, slots, ids, scored, make_objective, shards, door=EMBEDDINGS, ask=None):
    """slots (P, C), ids and scored (B, T) -> mean loss over the scored places, dslots (P, C).

    make_objective(rows, weight) gives the objective for the scored places of the batch's rows.
    Behind another `door` the slots are whatever it reads, an array or a tree, and dslots the same.
    `ask` stands in for `asked_by_rows` where the objective is of another kind.
    """
    prefix, cache = door.read(*model, slots, keep="dx")

    def shard(rows, objective):
        return (ask or asked_by_rows)(model, prefix, ids[rows], scored[rows], objective)

    losses, asked = zip(*over_shards(shard, scored, make_objective, shards), strict=True)
    return float(to_host(sum(losses))), door.read_backward(total(asked), cache)


def weights_gradient(model, low, ids, scored, make_objective, shards, ask=None):
    """As `slots_gradient`, for low-rank weights instead of slots -> mean loss, and a tree like `low`.

    Nothing stands before the rows. What is formed is the gradient of the adapted weights, and of no other.
    """
    (params, config), prefix = model, Prefix()
    adapted, cache = adapt(params, low)

    def shard(rows, objective):
        grads = room_for(params, low)
        loss, _ = (ask or asked_by_rows)((adapted, config), prefix, ids[rows], scored[rows], objective, grads)
        return loss, grads

    losses, grads = zip(*over_shards(shard, scored, make_objective, shards), strict=True)
    summed = tree_map(lambda *parts: sum(parts[1:], parts[0]), *grads)
    return float(to_host(sum(losses))), adapt_backward(summed, cache)


def over_shards(shard, scored, make_objective, shards):
    """[shard(rows, objective) for each part of the batch], in the parts' order, but those where nothing is scored."""
    if not scored.any():
        raise ValueError("no target is scored, so there is no loss")
    weight = 1 / int(scored.sum())

    def part(rows):
        return shard(rows, make_objective(rows, weight)) if scored[rows].any() else None

    return [result for result in shards.map(part, len(scored)) if result]


def asked_by_rows(model, prefix, ids, scored, objective, grads=None):
    """The loss of some rows, and what they ask of the prefix before them.

    grads, if wanted, get what they ask of the model: a tree like the params, or a part of one. The rest is frozen.
    """
    hidden, back = predictors(*model, prefix, ids, scored, keep="grads" if grads else "dx")
    head = grads if child(grads, "wte") is not None else None
    losses, dhidden = head_loss(model[0], hidden, objective, head)
    return losses.sum(), predictors_backward(dhidden, back, grads)


def total(parts):
    """The sum of equally nested tuples, lists and arrays, always in the order of the parts; None of Nones."""
    if isinstance(parts[0], tuple | list):
        return [total(some) for some in zip(*parts, strict=True)]
    return None if parts[0] is None else sum(parts[1:], parts[0])

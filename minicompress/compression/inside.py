"""Internal match: what the student computes inside, held to what the teacher computes there with the whole context.

`hidden` is the residual stream after each block, `attention` what attention adds to it in each block; both at the
states that predict scored tokens. Squared distances, over the teacher's mean square in that layer, averaged over
layers and channels. A row's first token is left out: what predicts it is no state of the row.
"""

import numpy as np

from minicompress.arrays import array_module, like
from minicompress.compression.objectives import INSIDE
from minicompress.compression.queries import pad
from minicompress.gpt2 import head_loss
from minicompress.gpt2.prefix import predictors, predictors_backward


def match(x, target, scale):
    """x, target (L, N, C), scale (L,) -> the mean of (x - target)² / scale over layers and channels: (N,)."""
    d, share = x - target, 1 / (scale[:, None, None] * (x.shape[0] * x.shape[2]))  # (L, 1, 1)
    return (share * d * d).sum((0, 2)), (d, share)


def match_backward(dout, cache):
    """dout (N,) -> dx (L, N, C)."""
    d, share = cache
    return 2 * share * d * dout[:, None]


def look(model, prefix, ids, scored, keep="nothing"):
    """`predictors`, and what is seen inside -> hidden, its cache, {"hidden": (L, N, C), "attention": (L, N, C)}."""
    stream, attended = [], []
    hidden, back = predictors(*model, prefix, ids, scored, keep, stream, attended)
    places = like(np.flatnonzero(scored[:, 1:]), hidden)
    gather = lambda layers: array_module(hidden).stack([x.reshape(-1, x.shape[-1])[places] for x in layers])
    return hidden, back, {"hidden": gather(stream[1:]), "attention": gather(attended)}


def look_backward(dhidden, dseen, back, scored, grads=None):
    """What is asked of hidden, and of some of what was seen -> what the rows ask of the prefix."""
    (B, T), xp = scored.shape, array_module(dhidden)
    places = like(np.flatnonzero(scored[:, 1:]), dhidden)

    def spread(dx):  # (N, C) -> (B, T-1, C)
        out = xp.zeros((B * max(1, T - 1), dx.shape[1]), dx.dtype)
        out[places] = dx
        return out.reshape(B, -1, dx.shape[1])

    layers = {kind: [spread(dx) for dx in dseen[kind]] for kind in dseen}
    dstream = [xp.zeros_like(layers["hidden"][0]), *layers["hidden"]] if "hidden" in layers else None
    return predictors_backward(dhidden, back, grads, dstream, layers.get("attention"))


def asked_inside(model, prefix, ids, scored, objective, grads=None):
    """`asked_by_rows` for a pair of objectives: of the head, or None, and of what is seen inside."""
    head, inside = objective
    hidden, back, seen = look(model, prefix, ids, scored, "grads" if grads else "dx")
    zeros = array_module(hidden).zeros_like(hidden)
    losses, dhidden = head_loss(model[0], hidden, head) if head else (zeros[:, 0], zeros)
    found, dseen = inside(seen)
    return losses.sum() + found, look_backward(dhidden, dseen, back, scored, grads)


def objective_inside(terms, weight, theirs):
    """From theirs(kind), a target and its scale -> objective(seen) -> the weighted sum of all losses, dseen."""

    def objective(seen):
        total, dseen = 0.0, {}
        for term in terms:
            losses, cache = match(seen[term.name], *theirs(term.name))
            dlosses = array_module(losses).full_like(losses, weight * term.weight)
            total = total + (losses * dlosses).sum()
            dseen[term.name] = dseen.get(term.name, 0) + match_backward(dlosses, cache)
        return total, dseen

    return objective


class TeacherInside:
    """What the teacher, having read the context, has inside at every scored place of the queries. Computed once."""

    def __init__(self, model, prefix, queries, shards, rows=16):
        def part_of(part):
            found = []
            for start in range(part.start, part.stop, rows):
                chosen = queries[start : min(start + rows, part.stop)]
                _, _, seen = look(model, prefix, *pad(chosen))
                ends = np.cumsum([sum(t > 0 for t in q.targets) for q in chosen])[:-1].tolist()
                found += zip(*(array_module(x).split(x, ends, axis=1) for x in seen.values()), strict=True)
            return found

        parts = [one for found in shards.map(part_of, len(queries)) for one in found]
        self.kept = dict(zip(INSIDE, zip(*parts, strict=True), strict=True))  # of each query (L, n, C)
        self.scales = {kind: self.mean_square(xs) for kind, xs in self.kept.items()}

    @staticmethod
    def mean_square(xs):
        """(L,): of each layer, over all places and channels."""
        return sum((x * x).sum((1, 2)) for x in xs) / sum(x[0].size for x in xs)

    def at(self, kind, numbers):
        """For the places of these queries, one after the other, the target (L, N, C) and each layer's scale (L,)."""
        xs = [self.kept[kind][i] for i in numbers]
        return array_module(xs[0]).concatenate(xs, axis=1), self.scales[kind]

"""Training a compressor: one gradient through compressor and reader, summed over many contexts."""

from typing import NamedTuple

from minicompress.arrays import like, to_host, zeros_like
from minicompress.compression.compressor import door_of, weights_of
from minicompress.compression.objectives import objective_of, read_loss
from minicompress.compression.queries import pad
from minicompress.compression.segments import add, gone_through, states, states_backward
from minicompress.gpt2 import logits
from minicompress.gpt2.prefix import predictors, read_tokens
from minicompress.layers.losses import log_softmax
from minicompress.prompts.gradient import asked_by_rows
from minicompress.prompts.low_rank_weights import adapt_backward, room_for
from minicompress.trees import tree_map


class Asked(NamedTuple):
    """Queries put to the state after the segment number `step` (from 0)."""

    step: int
    queries: list
    loss: str = "kl"  # from the teacher, who reads all the segments so far; or `likelihood` of the queries' own answers
    weight: float = 1.0  # of each of their places in the mean

    @property
    def mass(self):
        return self.weight * sum(len(q.ids) - q.start for q in self.queries)


class Example(NamedTuple):
    """A context, cut into segments of token ids, and what its states will be asked."""

    segments: list
    asked: list


def compressor_gradient(raw, teacher, method, examples, shards, slots=None, horizon=None):
    """-> mean loss over all scored places, and a tree like `raw`.

    teacher: the pair (params, config) as it was given, frozen; it is also the model that LoRA adapts. Only the first
    `slots` slots are used, so that any prefix of them learns to be enough. horizon: as in `states_backward`.
    """
    base, config = teacher
    weights, reader, cache = weights_of(raw, base, method)
    used = raw["slots"][:slots]
    scale = 1 / sum(asked.mass for example in examples for asked in example.asked)

    def shard(part):
        grads = tree_map(zeros_like, reader) if method.adapts == "all" else room_for(base, raw["low"])
        loss, dslots = 0.0, None
        for example in examples[part]:
            of_reader = grads if method.adapts == "all" else None
            within = gone_through([asked.step for asked in example.asked], horizon)
            found, caches = states(weights, config, method, used, example.segments, "grads", within)
            losses, dstates = ask_all(found, (reader, config), teacher, method, example, len(used), scale, of_reader)
            of_weights = (None if method.adapts == "slots" else grads, grads)
            loss = loss + losses
            dslots = add(dslots, states_backward(dstates, caches, config, method, of_weights, horizon))
        return loss, dslots, grads

    losses, dslots, grads = zip(*shards.map(shard, len(examples)), strict=True)
    summed = grads[0]
    for other in grads[1:]:
        summed = tree_map(add, summed, other)
    draw = {"slots": zeros_like(raw["slots"])}
    draw["slots"][: len(used)] = sum(dslots[1:], dslots[0])
    draw |= {"params": summed} if method.adapts == "all" else {"low": adapt_backward(summed, cache)}
    return float(to_host(sum(losses))), draw


def ask_all(found, reader, teacher, method, example, slots, scale, grads):
    """All that an example's states are asked -> the loss, and the gradient of each state, or None."""
    loss, dstates = 0.0, [None] * len(found)
    for step, queries, how, weight in example.asked:
        segments = example.segments[: step + 1]
        door, (ids, scored) = door_of(method, segments, slots), pad(queries)
        prefix, cache = door.read(*reader, found[step], keep="grads")
        objective = taught(how, teacher, segments, ids, scored, weight * scale)
        losses, asked = asked_by_rows(reader, prefix, ids, scored, objective, grads)
        dstates[step] = add(dstates[step], door.read_backward(asked, cache, grads))
        loss = loss + losses
    return loss, dstates


def taught(how, teacher, segments, ids, scored, weight):
    """The objective of some rows by the loss `how`: the teacher reads the segments only where a loss asks for it."""
    params, _ = teacher

    def logp():
        read = read_tokens(*teacher, [token for segment in segments for token in segment])
        return log_softmax(logits(params, predictors(*teacher, read, ids, scored)[0]))

    return objective_of(read_loss(how), weight, logp, lambda: like(ids[scored], params["wte"]["weight"]))

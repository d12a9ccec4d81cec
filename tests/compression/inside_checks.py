"""The internal match and its gradient, as checks that return a relative error, which planted bugs share."""

import numpy as np
from compressing import Problem

from helpers import TINY, directional_error, random_params, tree_errors
from minicompress.compression.gradient import batch_objective
from minicompress.compression.inside import TeacherInside, asked_inside, match, match_backward
from minicompress.compression.objectives import read_loss
from minicompress.gpt2 import backward, embed, forward
from minicompress.gpt2.block import self_attention
from minicompress.gpt2.model import positions
from minicompress.gpt2.prefix import EMBEDDINGS, read_tokens
from minicompress.layers.layernorm import layernorm
from minicompress.prompts.carriers import DOORS, slots_shape
from minicompress.prompts.gradient import slots_gradient
from minicompress.training.shards import Shards
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import complex_step, relative_error

LOSSES = ("hidden", "attention", "0.5*hidden+2*attention", "kl+0.3*hidden", "attention+likelihood")


def seen(params, config, x):
    """Inside of a whole sequence x (B, T, C) that is read at once: stream after each block, what attention added."""
    stream, attended = [], []
    forward(params, config, x, keep="nothing", watch=stream)
    for layer, x in enumerate(stream[:-1]):
        weights = params["h"][str(layer)]
        a, _ = layernorm(x, **weights["ln_1"], eps=config.layer_norm_epsilon)
        attended.append(self_attention(a, weights["attn"], config.n_head)[0])
    return {"hidden": stream[1:], "attention": attended}


def teacher_inside(problem, shards):
    return TeacherInside(problem.model, read_tokens(*problem.model, problem.context), problem.queries, shards, rows=2)


def gradient(problem, loss, shards=2, door=EMBEDDINGS, temperature=1.0):
    terms = read_loss(loss)
    with Shards(shards) as threads:
        make = batch_objective(terms, np.arange(len(problem.queries)), problem.ids, problem.scored, problem.model,
                               problem.teacher(threads, temperature), temperature, teacher_inside(problem, threads))  # fmt: skip
        return slots_gradient(
            problem.model, problem.slots, problem.ids, problem.scored, make, threads, door, asked_inside
        )


def by_hand(problem, kind):
    """The loss of slots by its definition: teacher and student read whole rows at once, one query at a time."""
    params, P, n = problem.model[0], len(problem.slots), len(problem.context)
    theirs, places = [], []
    for q in problem.queries:
        places.append([t for t in q.targets if t > 0])
        whole = seen(*problem.model, embed(params, np.array([problem.context + q.ids])))[kind]
        theirs.append([x[0, [n + t - 1 for t in places[-1]]] for x in whole])  # L of (n, C)
    scales = [np.mean(np.concatenate([one[layer] for one in theirs]) ** 2) for layer in range(TINY.n_layer)]

    def f(slots):
        losses = 0
        for q, at, wanted in zip(problem.queries, places, theirs, strict=True):
            x = np.concatenate([slots + positions(params, P), embed(params, np.array([q.ids]), P)[0]])[None]
            ours = [x[0, [P + t - 1 for t in at]] for x in seen(*problem.model, x)[kind]]
            for layer, scale in enumerate(scales):
                d = ours[layer] - wanted[layer]
                losses = losses + (d * d).sum() / (scale * TINY.n_embd * TINY.n_layer)
        return np.array([losses / problem.scored.sum()])

    return f


def sum_by_hand(problem, loss):
    parts = []
    for term in read_loss(loss):
        f = by_hand(problem, term.name) if term.name in ("hidden", "attention") else problem.losses(term.name)
        parts.append((term.weight, f))
    return lambda slots: np.array([sum(weight * f(slots).sum() for weight, f in parts)])


def gradient_error(loss, seed=0, first=False, shards=2, oracle=complex_step):
    problem = Problem(seed, first)
    _, dslots = gradient(problem, loss, shards)
    return directional_error(oracle, sum_by_hand(problem, loss), problem.slots, dslots, np.ones(1), problem.rng)


def loss_error(loss, first=False):
    problem = Problem(1, first)
    return relative_error(gradient(problem, loss, 3)[0], sum_by_hand(problem, loss)(problem.slots)[0])


def carrier_error(carrier, loss):
    """Behind slots of another kind, by differences of the very loss that the gradient is of."""
    problem = Problem(2, first=False)
    problem.slots = problem.rng.standard_normal(slots_shape(carrier, TINY, 4))

    def f(slots):
        problem.slots = slots
        return np.array([gradient(problem, loss, 1, DOORS[carrier])[0]])

    start = problem.slots
    dslots = gradient(problem, loss, 2, DOORS[carrier])[1]
    h, u = 1e-5, problem.rng.standard_normal(start.shape)
    slope = (f(start + h * u) - f(start - h * u))[0] / (2 * h)
    return abs((dslots * u).sum() - slope) / abs(slope)


def match_error(oracle=complex_step, seed=0):
    rng = np.random.default_rng(seed)
    x, target, scale, dout = (
        rng.standard_normal((3, 4, 5)),
        rng.standard_normal((3, 4, 5)),
        rng.uniform(0.5, 2, 3),
        rng.standard_normal(4),
    )
    out, cache = match(x, target, scale)
    truth = [sum(((x[s, n] - target[s, n]) ** 2).mean() / scale[s] for s in range(3)) / 3 for n in range(4)]
    dx = match_backward(dout, cache)
    wrong = directional_error(oracle, lambda x: match(x, target, scale)[0], x, dx, dout, rng)
    return max(wrong, relative_error(out, np.array(truth)))


def lossless_error(loss="hidden+attention"):
    """Slots that are the context's own embeddings: nothing inside differs, and nothing is asked."""
    problem = Problem(first=False)
    problem.slots = problem.model[0]["wte"]["weight"][problem.context]
    mean, dslots = gradient(problem, loss)
    return max(abs(mean), np.abs(dslots).max())


def weights_error():
    """What is asked of stream and attention reaches every weight: a whole backward with both, one weight at a time."""
    rng = np.random.default_rng(0)
    params = random_params(TINY, rng, np.float64)
    x = rng.standard_normal((2, 5, TINY.n_embd))
    stream, attended = [], []
    hidden, _, cache = forward(params, TINY, x, keep="grads", watch=stream, attended=attended)
    dhidden, dstream, dattended = (
        rng.standard_normal(hidden.shape), [rng.standard_normal(x.shape) for _ in stream], [rng.standard_normal(x.shape) for _ in attended])  # fmt: skip
    grads = tree_map(np.zeros_like, params)
    dx, _ = backward(dhidden, cache, None, grads, None, dstream, dattended)

    def f(params, x):
        stream, attended = [], []
        hidden = forward(params, TINY, x, keep="nothing", watch=stream, attended=attended)[0]
        pairs = [(dhidden, hidden), *zip(dstream, stream, strict=True), *zip(dattended, attended, strict=True)]
        return np.array([sum((d * y).sum() for d, y in pairs)])

    wide = lambda tree: f(params | tree, x.astype(flatten(tree)["h.0.ln_1.weight"].dtype))
    errors = tree_errors(complex_step, wide, {"h": params["h"]}, {"h": grads["h"]}, np.ones(1), rng)
    return max(*errors.values(), directional_error(complex_step, lambda x: f(params, x), x, dx, np.ones(1), rng))


CHECKS = {
    **{f"gradient, {loss}": lambda loss=loss: gradient_error(loss) for loss in LOSSES},
    **{f"loss, {loss}": lambda loss=loss: loss_error(loss) for loss in LOSSES},
    "match": match_error,
    "lossless": lossless_error,
    "weights": weights_error,
}

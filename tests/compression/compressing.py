"""A tiny compression, and its checks as functions that return a relative error, which planted bugs share."""

import numpy as np

from checks import textbook_divergence
from helpers import TINY, directional_error, random_params
from minicompress.compression.objectives import TOP_K, objective_of, read_loss
from minicompress.compression.queries import Query, pad
from minicompress.compression.teacher import Teacher
from minicompress.evaluation.metrics import Scores, gap_closed, score
from minicompress.gpt2 import embed, forward, head_loss, logits
from minicompress.gpt2.model import positions
from minicompress.gpt2.prefix import Prefix, predictors, read_slots, read_tokens
from minicompress.layers.losses import log_softmax
from minicompress.prompts.gradient import slots_gradient
from minicompress.training.shards import Shards
from minicompress.verification.oracles import complex_step, relative_error

TOP = 4  # of 17 tokens
OTHERS = ("reverse-kl", "js", "top-k", "top-k-renormalised", "top-k-tail")  # than kl and likelihood

SUMS = ("kl+0.5*likelihood", "js:0.3", "0.7*js:0.9+2*top-k-tail+reverse-kl")


class Problem:
    """A random model, a context of seven tokens, ragged queries whose first token is scored or not, four slots."""

    def __init__(self, seed=0, first=True, dtype=np.float64):
        self.rng = rng = np.random.default_rng(seed)
        self.model = random_params(TINY, rng, dtype), TINY
        self.context = rng.integers(17, size=7).tolist()
        places = ((6, 2), (3, 0), (5, 4), (2, 0), (4, 1)) if first else ((6, 2), (3, 1), (5, 4), (2, 1), (4, 1))
        self.queries = [Query(rng.integers(17, size=n).tolist(), start) for n, start in places]
        self.slots = rng.standard_normal((4, TINY.n_embd)).astype(dtype)
        self.ids, self.scored = pad(self.queries)

    def teacher(self, shards, temperature=1.0):
        prefix = read_tokens(*self.model, self.context)
        return Teacher(self.model, prefix, self.queries, shards, rows=2, temperature=temperature)

    def objectives(self, loss, temperature, shards):
        """make_objective, as `train_slots` makes it."""
        teacher, numbers = self.teacher(shards, temperature), np.arange(len(self.queries))
        terms, logp = read_loss(loss, TOP), lambda part: lambda: teacher.logp(numbers[part])
        targets = lambda part: lambda: self.ids[part][self.scored[part]]
        return lambda part, weight: objective_of(terms, weight, logp(part), targets(part), temperature)

    def gradient(self, loss="kl", temperature=1.0, shards=1):
        with Shards(shards) as threads:
            make = self.objectives(loss, temperature, threads)
            return slots_gradient(self.model, self.slots, self.ids, self.scored, make, threads)

    def losses(self, loss="kl", temperature=1.0):
        """f(slots) -> the share of each scored place in the mean loss, with slots and tokens read in one go."""
        with Shards(1) as threads:
            objective = self.objectives(loss, temperature, threads)(slice(None), 1 / self.scored.sum())
        return lambda slots: head_loss(self.model[0], self.states(slots), objective)[0]

    def states(self, slots):
        """The states that predict the scored tokens, each row read at once behind its own slots."""
        params, P = self.model[0], len(slots)
        x = embed(params, self.ids, P)
        front = np.broadcast_to(slots + positions(params, P), (len(x), *slots.shape))
        hidden, _, _ = forward(params, TINY, np.concatenate([front, x], 1), keep="nothing")
        return hidden[:, P - 1 : -1][self.scored]


def gradient_error(loss="kl", temperature=1.0, seed=0, first=True, shards=2, oracle=complex_step):
    problem = Problem(seed, first)
    _, dslots = problem.gradient(loss, temperature, shards)
    f = problem.losses(loss, temperature)
    return directional_error(oracle, f, problem.slots, dslots, np.ones(problem.scored.sum()), problem.rng)


def loss_error(loss="kl", shards=2):
    problem = Problem()
    return relative_error(problem.gradient(loss, 1.0, shards)[0], problem.losses(loss)(problem.slots).sum())


def definition_error(loss="kl", temperature=2.0):
    """T² times a divergence of teacher and student, both at that temperature, averaged over the scored places."""
    problem = Problem()
    with Shards(1) as shards:
        theirs, x = problem.teacher(shards, temperature).logp(range(5)), problem.states(problem.slots)
    z = logits(problem.model[0], x)
    if loss == "kl":
        ours = log_softmax(z / temperature)
        truth = temperature**2 * (np.exp(theirs) * (theirs - ours)).sum(-1)
    else:
        kind, k = loss.replace("-", " ").replace("top k", "top-k"), {"k": TOP} if loss in TOP_K else {}
        kind = kind if kind in ("js", "reverse kl") else f"{kind} kl"
        truth = textbook_divergence(kind, z, theirs, temperature, **k)
    return relative_error(problem.gradient(loss, temperature)[0], truth.mean())


def sum_error(loss="0.7*js:0.9+kl+3*likelihood", terms=((0.7, "js:0.9"), (1, "kl"), (3, "likelihood"))):
    """A sum's loss and gradient are the sums of its terms' own, each times its weight."""
    whole, parts = Problem().gradient(loss, 1.5), [(weight, Problem().gradient(name, 1.5)) for weight, name in terms]
    return max(relative_error(whole[i], sum(weight * part[i] for weight, part in parts)) for i in (0, 1))


def beta_error():
    """js:0.3 is the form with β on the teacher's side; js alone that of β = 1/2."""
    problem, errors = Problem(), []
    with Shards(1) as shards:
        theirs, x = problem.teacher(shards).logp(range(5)), problem.states(problem.slots)
    p, q = np.exp(theirs), np.exp(log_softmax(logits(problem.model[0], x)))
    for loss, beta in (("js:0.3", 0.3), ("js", 0.5)):
        m = beta * p + (1 - beta) * q
        truth = (beta * p * np.log(p / m) + (1 - beta) * q * np.log(q / m)).sum(-1).mean()
        errors.append(relative_error(problem.gradient(loss)[0], truth))
    return max(errors)


def predictors_error():
    problem = Problem()
    prefix, _ = read_slots(*problem.model, problem.slots)
    hidden, _ = predictors(*problem.model, prefix, problem.ids, problem.scored)
    return relative_error(hidden, problem.states(problem.slots))


def teacher_error(temperature=1.0):
    """What the teacher expects, against context and query read in one go, one query at a time."""
    problem = Problem()
    params = problem.model[0]
    with Shards(2) as shards:
        kept = problem.teacher(shards, temperature).logp(range(5))
    truth = []
    for query in problem.queries:
        ids = np.array([problem.context + query.ids])
        out = logits(params, forward(params, TINY, embed(params, ids), keep="nothing")[0])[0, 6:-1]
        truth.append(log_softmax(out[query.start :] / temperature))
    return relative_error(kept, np.concatenate(truth))


def lossless_error():
    """Slots that are the context's own embeddings: no divergence from the teacher, no gradient."""
    problem = Problem()
    problem.slots = problem.model[0]["wte"]["weight"][problem.context]
    loss, dslots = problem.gradient()
    return max(abs(loss), np.abs(dslots).max())


def scores(problem, prefix):
    with Shards(2) as shards:
        return score(problem.model, None, prefix, problem.queries, problem.teacher(shards), shards, rows=2)


def score_error():
    """Bits of KL(teacher ‖ student), place by place, from the definition."""
    problem = Problem()
    found = np.concatenate(scores(problem, read_slots(*problem.model, problem.slots)[0]).kl)
    with Shards(1) as shards:
        theirs = problem.teacher(shards).logp(range(5))
    ours = log_softmax(logits(problem.model[0], problem.states(problem.slots)))
    return relative_error(found, (np.exp(theirs) * (np.log2(np.exp(theirs)) - np.log2(np.exp(ours)))).sum(-1))


def gap_error():
    """A ratio of means over all places, by hand; queries of different sizes tell it from a mean of ratios."""
    none, sigma = Scores([np.array([4.0]), np.array([1.0, 1.0])], []), Scores([np.array([1.0]), np.array([0.5, 0.9])], [])
    return relative_error(gap_closed(none, sigma, np.random.default_rng(0))[0], 1 - 2.4 / 6)


CHECKS = {
    "gradient, kl": gradient_error,
    "gradient, kl at T = 2": lambda: gradient_error(temperature=2.0),
    "gradient, likelihood": lambda: gradient_error("likelihood"),
    "loss, kl": loss_error,
    "loss, likelihood": lambda: loss_error("likelihood"),
    **{f"gradient, {loss}": lambda loss=loss: gradient_error(loss, 2.0) for loss in OTHERS},
    "definition of kl at T = 2": definition_error,
    **{f"definition of {loss} at T = 2": lambda loss=loss: definition_error(loss) for loss in OTHERS},
    **{f"gradient, {loss}": lambda loss=loss: gradient_error(loss, 2.0) for loss in SUMS},
    "sum": sum_error,
    "beta": beta_error,
    "predictors": predictors_error,
    "teacher": teacher_error,
    "lossless": lossless_error,
    "score": score_error,
    "gap": gap_error,
}

NOTHING = Prefix()

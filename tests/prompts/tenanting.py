"""Batches whose rows have prompts of their own, and how far they are from their rows alone: errors that planted bugs share."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from generating import watched
from helpers import TINY, random_params, tree_errors
from minicompress.arrays import like
from minicompress.compression.objectives import likelihood
from minicompress.gpt2 import head_loss
from minicompress.gpt2.prefix import Prefix, predictors
from minicompress.prompts import gradient, tenants
from minicompress.prompts.carriers import slots_shape
from minicompress.prompts.soft_prompt import SLOT_AXIS, SoftPrompt
from minicompress.training.shards import Shards
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import complex_step, relative_error

KINDS = ("none", "embeddings", "hidden", "kv", "kv with masses", "template", "pattern")


class Tenant(NamedTuple):
    kind: str
    P: int = 3
    positions: str = "compact"


# Of every kind, of different lengths, at all three positions; the second and the sixth are of two rows.
TENANTS = [Tenant("embeddings", 2), Tenant("kv with masses", 4, "logical"), Tenant("none"), Tenant("hidden", 3),
           Tenant("template", 2), Tenant("kv", 1, "unshifted"), Tenant("embeddings", 5, "unshifted"),
           Tenant("hidden", 1, "logical")]  # fmt: skip
NUMBERS = [3, 1, 0, 2, 5, 4, 1, 6, 5, 7]
LENGTHS = [4, 6, 1, 5, 3, 7, 2, 4, 8, 3]


def prompt_of(tenant, rng):
    """A SoftPrompt of random numbers; of its masses one is -∞: a key that a head does not use.

    A template places its slots in the rows; a pattern is a template without slots, which stand in front.
    """
    kind, P, positions = tenant
    if kind == "none":
        return None
    carrier = kind.split()[0] if kind.split()[0] in SLOT_AXIS else "embeddings"
    slots, beta = rng.standard_normal(slots_shape(carrier, TINY, P)), None
    if kind == "kv with masses":
        beta = rng.standard_normal((TINY.n_layer, TINY.n_head, P))
        beta[0, 1, P - 1] = -np.inf if P > 1 else 0
    if kind == "template":
        return SoftPrompt(slots, template=f"{{text}}[{P}]")
    pattern = "Say: {text}" if kind == "pattern" else None
    return SoftPrompt(slots, carrier, positions, 7 if positions == "logical" else None, beta, pattern)


class Batch:
    """A random model, the prompts of some tenants, and ragged rows, each behind prompts[numbers[b]]."""

    def __init__(self, tenants=TENANTS, numbers=NUMBERS, lengths=LENGTHS, seed=0, dtype=np.float64):
        rng = self.rng = np.random.default_rng(seed)
        self.model = random_params(TINY, rng, dtype), TINY
        self.prompts = [prompt_of(tenant, rng) for tenant in tenants]
        self.numbers = np.array(numbers)
        self.ids, self.scored = np.zeros((2, len(numbers), max(lengths)), int)
        self.scored = self.scored.astype(bool)
        self.rows = [self.row(b, n) for b, n in enumerate(lengths)]

    def row(self, b, n):
        """n random tokens, of which a template's slots take the place of some; most are scored, the first where it can be."""
        prompt = self.prompts[self.numbers[b]]
        ids, scored = self.rng.integers(TINY.vocab_size, size=n), self.rng.random(n) < 0.7
        scored[0] = tenants.predicts_first(prompt)
        if prompt and prompt.in_rows:
            soft = self.rng.random(n) < 0.4
            ids[soft] = -1 - self.rng.integers(prompt.length, size=soft.sum())
            scored &= ~soft
        self.ids[b, :n], self.scored[b, :n] = ids, scored
        return ids.tolist()

    @property
    def each(self):
        """The prompt of every row."""
        return [self.prompts[n] for n in self.numbers]

    def objective(self, rows, weight):
        return likelihood(like(self.ids[rows][self.scored[rows]], self.model[0]["wte"]["weight"]), weight)

    def gradient(self, shards=2):
        with Shards(shards) as threads:
            return tenants.tenants_gradient(
                self.model, self.prompts, self.numbers, self.ids, self.scored, self.objective, threads
            )

    def alone(self, b, prompt):
        """Row b without its padding, behind a prompt -> the Prefix, ids and scored of a batch of one."""
        n = len(self.rows[b])
        return prompt.prefix(*self.model) if prompt else Prefix(), self.ids[b : b + 1, :n], self.scored[b : b + 1, :n]

    def losses_alone(self, prompts):
        """The losses of all scored places, each row read on its own."""
        found = []
        for b in range(len(self.numbers)):
            if self.scored[b].any():
                hidden, _ = predictors(*self.model, *self.alone(b, prompts[self.numbers[b]]))
                objective = self.objective(slice(b, b + 1), 1 / self.scored.sum())
                found.append(head_loss(self.model[0], hidden, objective)[0])
        return np.concatenate(found)

    def gradient_alone(self):
        """Each row by `slots_gradient` alone -> the mean over all scored places, and every prompt's gradient."""
        mean, total = 0.0, [prompt and tree_map(np.zeros_like, prompt.tree) for prompt in self.prompts]
        for b, n in enumerate(self.numbers):
            prompt, share = self.prompts[n], self.scored[b].sum() / self.scored.sum()
            if not share:
                continue
            _, ids, scored = self.alone(b, None)
            if prompt is None:
                hidden, _ = predictors(*self.model, Prefix(), ids, scored)
                targets = likelihood(ids[scored], share / scored.sum())
                mean += head_loss(self.model[0], hidden, targets)[0].sum()
                continue
            make = lambda rows, weight, ids=ids, scored=scored: likelihood(ids[scored], weight)
            with Shards(1) as one:
                loss, d = gradient.slots_gradient(self.model, prompt.tree, ids, scored, make, one, prompt.door)
            mean += share * loss
            total[n] = tree_map(lambda a, b, share=share: a + share * b, total[n], d)
        return mean, total


def states_error(batch=None):
    """The states that predict the scored tokens, in a batch and of each row alone."""
    batch = batch or Batch()
    prefix, _ = tenants.read_many(*batch.model, batch.each)
    hidden, _ = predictors(*batch.model, prefix, batch.ids, batch.scored)
    alone = [predictors(*batch.model, *batch.alone(b, prompt))[0] for b, prompt in enumerate(batch.each)]
    return relative_error(hidden, np.concatenate(alone))


def gradient_error(batch=None, shards=2):
    """Loss and every prompt's gradient, in a batch and of the rows alone; a prompt of no row has a gradient of zero."""
    batch = batch or Batch()
    (loss, found), (truth, alone) = batch.gradient(shards), batch.gradient_alone()
    errors = [relative_error(loss, truth)]
    for a, b in zip(found, alone, strict=True):
        if b is None:
            errors.append(float(a is not None))
            continue
        a, b = flatten(a), flatten(b)
        errors += [relative_error(a[name], b[name]) if b[name].any() else np.abs(a[name]).max() for name in b]
    return max(errors)


def complex_step_error(batch=None, shards=1, oracle=complex_step):
    """Every prompt's gradient against the complex step through the rows alone."""
    batch = batch or Batch()
    _, found = batch.gradient(shards)
    used = [n for n, prompt in enumerate(batch.prompts) if prompt is not None]

    def losses(tree):
        prompts = list(batch.prompts)
        for n in used:
            parts = tree[str(n)]
            slots, beta = (parts["slots"], parts["beta"]) if isinstance(parts, dict) else (parts, None)
            prompts[n] = replace(prompts[n], slots=slots, beta=beta)
        return batch.losses_alone(prompts)

    finite = lambda x: np.where(np.isfinite(x), x, -40)  # e^-40 is as good as none, and can be moved
    tree = {str(n): tree_map(finite, batch.prompts[n].tree) for n in used}
    slopes = {str(n): found[n] for n in used}
    errors = tree_errors(oracle, losses, tree, slopes, np.ones(batch.scored.sum()), batch.rng)
    return max(errors.values(), default=0)


def generation_error(batch=None, steps=5):
    """1 where a row writes another token than alone, else the error of the logits they were chosen from."""
    batch = batch or Batch()
    prefix, _ = tenants.read_many(*batch.model, batch.each)
    together, seen = watched(batch.model, batch.rows, steps, prefix)
    errors = []
    for b, prompt in enumerate(batch.each):
        (alone,), logits = watched(batch.model, batch.rows[b : b + 1], steps, batch.alone(b, prompt)[0])
        errors.append(relative_error(seen[:, b], logits[:, 0]) if alone == together[b] else 1.0)
    return max(errors)


def company_error():
    """How far a row's states move with the rows beside it: none, shorter and longer prompts, longer texts."""
    errors = []
    batch = Batch()
    for b in range(len(NUMBERS)):
        own = None
        for others in ([], [0], [2, 6], [1, 4, 5], [7, 7, 3, 0]):
            rows = [b, *others] if len(others) % 2 else [*others, b]
            ids, scored, prompts = batch.ids[rows], batch.scored[rows], [batch.each[row] for row in rows]
            used = max(len(batch.rows[row]) for row in rows)
            prefix, _ = tenants.read_many(*batch.model, prompts)
            hidden, _ = predictors(*batch.model, prefix, ids[:, :used], scored[:, :used])
            ends = np.cumsum(scored.sum(1))
            at = rows.index(b)
            states = hidden[ends[at] - scored[at].sum() : ends[at]]
            own = states if own is None else own
            errors.append(relative_error(states, own) if own.size else 0.0)
    return max(errors)


CHECKS = {
    "states": states_error,
    "gradient": gradient_error,
    "gradient, one shard": lambda: gradient_error(shards=1),
    "complex step": complex_step_error,
    "generation": generation_error,
    "company": company_error,
    "two of a kind": lambda: max(check(Batch([Tenant("hidden", 2), Tenant("hidden", 4)], [1, 0, 1], [5, 3, 4]))
                                 for check in (states_error, gradient_error)),
}  # fmt: skip

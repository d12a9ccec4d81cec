"""A trace made a second way, one row at a time by the plain reading, and how far `trace` is from it."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from helpers import TINY, directional_error, random_params, tree_errors
from minicompress.gpt2 import Config
from minicompress.trees import unflatten
from minicompress.verification.oracles import complex_step, relative_error
from minicompress.verification.trace import trace
from reading import KINDS, random_prompt, read_row, with_slots

TEACHER = Config(vocab_size=17, n_positions=24, n_embd=8, n_layer=1, n_head=2)
UNTIED = Config(vocab_size=17, n_positions=24, n_embd=8, n_layer=1, n_head=2, n_inner=5, tie_word_embeddings=False)


@dataclass
class Case:
    """Ragged rows, some labels left out, with or without slots, against tokens or a teacher."""

    slots: int = 4  # 0: no prompt
    loss: str = "ce"
    own_teacher: bool = True  # the teacher is the model itself
    rows: list = field(default_factory=lambda: [[3, 1, 4, 1, 5], [9], [2, 6, 5]])
    labels: list | None = field(default_factory=lambda: [[3, -100, 8, 1, -100], [7], [-100, 6, 2]])
    seed: int = 0
    config: Config = TINY
    kind: str = "embeddings"  # of the prompt

    def __post_init__(self):
        self.rng = rng = np.random.default_rng(self.seed)
        self.model = random_params(self.config, rng), self.config
        self.teacher = None if self.own_teacher else (random_params(TEACHER, rng), TEACHER)
        self.context = rng.integers(17, size=6).tolist() if self.loss == "kl" else None
        self.prompt = random_prompt(self.kind, self.config, self.slots, rng) if self.slots else None
        if self.prompt and self.prompt.in_rows:
            self.rows, self.labels = (
                rows and with_slots(rows, self.slots, np.random.default_rng(self.seed), fill)
                for rows, fill in ((self.rows, None), (self.labels, -100))
            )

    @cached_property
    def traced(self):
        return trace(self.model, self.rows, self.prompt, self.labels, self.teacher, self.context, "all")

    @property
    def predicts_first(self):
        return self.prompt is not None and self.prompt.carrier == "embeddings" and not self.prompt.in_rows

    @property
    def places(self):
        """(row, t, label) of every scored target."""
        rows = self.labels or [[-100 if i < 0 else i for i in row] for row in self.rows]
        labelled = ((b, t, y) for b, row in enumerate(rows) for t, y in enumerate(row))
        return [(b, t, y) for b, t, y in labelled if y != -100 and (t or self.predicts_first)]

    def forward(self):
        """The tensors of the forward pass, one row after the other, padded with 0."""
        (B, T), (_, config) = (len(self.rows), max(map(len, self.rows))), self.model
        P = 0 if self.prompt is None or self.prompt.in_rows else self.slots
        shapes = {f"attention.{layer}": (B, config.n_head, T, P + T) for layer in range(config.n_layer)}
        shapes |= {f"hidden.{layer}": (B, T, config.n_embd) for layer in range(config.n_layer + 1)}
        shapes |= {"logits": (B, T, config.vocab_size)}
        shapes |= {"first_logits": (B, config.vocab_size)} if self.predicts_first else {}
        tensors = {name: np.zeros(shape) for name, shape in shapes.items()}
        for b, row in enumerate(self.rows):
            n, read = len(row), read_row(*self.model, self.prompt, row)
            tensors["logits"][b, :n] = read.logits
            if self.predicts_first:
                tensors["first_logits"][b] = read.first
            for layer, x in enumerate(read.stream):
                tensors[f"hidden.{layer}"][b, :n] = x
            for layer, probs in enumerate(read.attention):
                tensors[f"attention.{layer}"][b, :, :n, : P + n] = probs
        return tensors

    def expected(self):
        """What the teacher, who reads the context and then no slots, expects at the scored places: (N, V)."""
        read = [read_row(*(self.teacher or self.model), None, self.context + hard(row)) for row in self.rows]
        before = lambda b, t: len(self.context) + len(hard(self.rows[b][:t]))
        return np.array([log_probabilities(read[b].logits[before(b, t) - 1]) for b, t, _ in self.places])

    def loss_of(self, prompt=None, params=None):
        """The mean loss over the scored places, as an array (1,); complex where prompt or params are."""
        prompt, params = prompt or self.prompt, params or self.model[0]
        read = [read_row(params, self.config, prompt, row) for row in self.rows]
        ours = [log_probabilities(read[b].logits[t - 1] if t else read[b].first) for b, t, _ in self.places]
        if self.loss == "ce":
            losses = [-logp[y] for logp, (_, _, y) in zip(ours, self.places, strict=True)]
        else:
            losses = [(np.exp(p) * (p - q)).sum() for p, q in zip(self.expected(), ours, strict=True)]
        return np.array([sum(losses) / len(losses)])

    def weight_gradients(self):
        start = "grad.model."
        return unflatten({n.removeprefix(start): g for n, g in self.traced.items() if n.startswith(start)})


def hard(row):
    return [i for i in row if i >= 0]


def log_probabilities(logits):
    return logits - np.log(np.exp(logits).sum())


def forward_error(**options):
    case = Case(**options)
    return max(relative_error(case.traced[name], truth) for name, truth in case.forward().items())


def loss_error(**options):
    case = Case(**options)
    return relative_error(case.traced["loss"], case.loss_of()[0])


def prompt_error(oracle=complex_step, **options):
    """Of grad.prompt, and of grad.beta where there is one."""
    case = Case(**options)
    prompt, traced, rng = case.prompt, case.traced, case.rng
    slots = laid_flat(prompt.slots) if prompt.carrier == "kv" else prompt.slots
    f = lambda s: case.loss_of(replace(prompt, slots=laid_out(s, case.config) if prompt.carrier == "kv" else s))
    errors = [directional_error(oracle, f, slots, traced["grad.prompt"], 1.0, rng)]
    if prompt.beta is not None:
        f = lambda beta: case.loss_of(replace(prompt, beta=beta))
        errors.append(directional_error(oracle, f, prompt.beta, traced["grad.beta"], 1.0, rng))
    return max(errors)


def laid_flat(kv):
    """Keys and values (L, 2, H, P, D) as PEFT's (P, 2 L C): all of one slot in a row."""
    return np.array([kv[:, :, :, slot].ravel() for slot in range(kv.shape[3])])


def laid_out(flat, config):
    """The keys and values whose flat rows these are."""
    rows = [row.reshape(config.n_layer, 2, config.n_head, -1) for row in flat]
    return np.stack(rows, axis=3)


def weight_errors(oracle=complex_step, **options):
    """{name: error} of every weight's gradient; the teacher's distributions stay what they are."""
    case = Case(**options)
    expected = case.expected() if case.loss == "kl" else None
    case.expected = lambda: expected
    return tree_errors(oracle, lambda p: case.loss_of(params=p), case.model[0], case.weight_gradients(), 1.0, case.rng)


CHECKS = {
    "trace, forward": forward_error,
    "trace, loss": loss_error,
    "trace, kl": lambda: loss_error(loss="kl"),
    "trace, kl of single tokens": lambda: loss_error(loss="kl", rows=[[5], [7]], labels=None),
    "trace, loss without a prompt": lambda: loss_error(slots=0),
    "trace, gradient of the prompt": prompt_error,
    "trace, gradient of the prompt, kl": lambda: prompt_error(loss="kl"),
    "trace, gradient of the weights": lambda: max(weight_errors().values()),
    **{f"trace, forward, {kind}": lambda kind=kind: forward_error(kind=kind) for kind in KINDS},
    **{f"trace, gradient of {kind}": lambda kind=kind: prompt_error(kind=kind, loss="kl") for kind in KINDS},
    **{f"trace, gradient of the weights, {kind}": lambda kind=kind: max(weight_errors(kind=kind).values())
       for kind in ("hidden", "kv with masses", "in rows")},
}  # fmt: skip

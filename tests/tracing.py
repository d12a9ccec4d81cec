"""A trace made a second way, one row at a time and each read at once, and how far `trace` is from it."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from generating import read_at_once
from helpers import TINY, directional_error, random_params, tree_errors
from minicompress.gpt2 import Config
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.trees import unflatten
from minicompress.verification.oracles import complex_step, relative_error
from minicompress.verification.trace import trace

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

    def __post_init__(self):
        self.rng = rng = np.random.default_rng(self.seed)
        self.model = random_params(self.config, rng), self.config
        self.teacher = None if self.own_teacher else (random_params(TEACHER, rng), TEACHER)
        self.context = rng.integers(17, size=6).tolist() if self.loss == "kl" else None
        self.prompt = rng.standard_normal((self.slots, self.config.n_embd)) if self.slots else None

    @cached_property
    def traced(self):
        return trace(self.model, self.rows, soft(self.prompt), self.labels, self.teacher, self.context, "all")

    @property
    def front(self):
        return self.model[0]["wte"]["weight"][:0] if self.prompt is None else self.prompt

    @property
    def places(self):
        """(row, t, label) of every scored target."""
        labelled = ((b, t, y) for b, row in enumerate(self.labels or self.rows) for t, y in enumerate(row))
        return [(b, t, y) for b, t, y in labelled if y != -100 and (t or self.slots)]

    def forward(self):
        """The tensors of the forward pass, one row after the other, padded with 0."""
        (B, T), P, (_, config) = (len(self.rows), max(map(len, self.rows))), self.slots, self.model
        shapes = {f"attention.{layer}": (B, config.n_head, T, P + T) for layer in range(config.n_layer)}
        shapes |= {f"hidden.{layer}": (B, T, config.n_embd) for layer in range(config.n_layer + 1)}
        shapes |= {"logits": (B, T, config.vocab_size)} | ({"first_logits": (B, config.vocab_size)} if P else {})
        tensors = {name: np.zeros(shape) for name, shape in shapes.items()}
        for b, row in enumerate(self.rows):
            n, hidden = len(row), []
            logits, (caches, _) = read_at_once(*self.model, self.front, row, hidden)
            tensors["logits"][b, :n] = logits[P:]
            if P:
                tensors["first_logits"][b] = logits[P - 1]
            for layer, x in enumerate(hidden):
                tensors[f"hidden.{layer}"][b, :n] = x[0, P:]
            for layer, cache in enumerate(caches):
                tensors[f"attention.{layer}"][b, :, :n, : P + n] = cache["attn"]["attention"][-1][0, :, P:]
        return tensors

    def expected(self):
        """What the teacher expects at the scored places, one by one: (N, V)."""
        params, config = self.teacher or self.model
        front = params["wte"]["weight"][self.context]
        read = [read_at_once(params, config, front, row)[0] for row in self.rows]
        return np.array([log_probabilities(read[b][len(front) + t - 1]) for b, t, _ in self.places])

    def loss_of(self, front=None, params=None):
        """The mean loss over the scored places, as an array (1,); complex where front or params are."""
        front, params = self.front if front is None else front, params or self.model[0]
        read = [read_at_once(params, self.config, front, row)[0] for row in self.rows]
        ours = [log_probabilities(read[b][self.slots + t - 1]) for b, t, _ in self.places]
        if self.loss == "ce":
            losses = [-logp[y] for logp, (_, _, y) in zip(ours, self.places, strict=True)]
        else:
            losses = [(np.exp(p) * (p - q)).sum() for p, q in zip(self.expected(), ours, strict=True)]
        return np.array([sum(losses) / len(losses)])

    def weight_gradients(self):
        start = "grad.model."
        return unflatten({n.removeprefix(start): g for n, g in self.traced.items() if n.startswith(start)})


def soft(slots):
    return None if slots is None else SoftPrompt(slots)


def log_probabilities(logits):
    return logits - np.log(np.exp(logits).sum())


def forward_error(**options):
    case = Case(**options)
    return max(relative_error(case.traced[name], truth) for name, truth in case.forward().items())


def loss_error(**options):
    case = Case(**options)
    return relative_error(case.traced["loss"], case.loss_of()[0])


def prompt_error(oracle=complex_step, **options):
    case = Case(**options)
    return directional_error(oracle, lambda s: case.loss_of(s), case.prompt, case.traced["grad.prompt"], 1.0, case.rng)


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
}

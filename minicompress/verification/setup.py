"""What an implementation is asked: a model, rows, what stands before them, and what is to be done with it."""

from typing import Any, NamedTuple

from minicompress.verification.repeated import again, decoded, stepped
from minicompress.verification.trace import trace


class Setup(NamedTuple):
    """One question to all implementations. model, teacher: (params, config); the rest as `trace` and `stepped` take it.

    Gradients are those of all weights too, unless it is said otherwise: most mistakes of a backward show there alone.
    """

    model: Any
    rows: list
    prompt: Any = None
    labels: list | None = None
    teacher: Any = None  # default: the model
    teacher_context: list | None = None
    gradients: str = "all"
    temperature: float = 1.0
    decode: int = 0  # tokens to continue each row by
    steps: dict | None = None  # what `stepped` takes by name: steps, lr, betas, eps, weight_decay, clip
    twice: bool = False

    @property
    def asked(self):
        """The arguments that every pass takes."""
        return self.model, self.rows, self.prompt, self.labels, self.teacher, self.teacher_context

    def tensors(self):
        """Our own answer: {name: array}, as the docstrings of `trace` and `repeated` list them."""
        found = trace(*self.asked, self.gradients, self.temperature)
        found |= again(*self.asked, temperature=self.temperature) if self.twice else {}
        found |= decoded(self.model, self.rows, self.prompt, self.decode) if self.decode else {}
        return found | (stepped(*self.asked, temperature=self.temperature, **self.steps) if self.steps else {})

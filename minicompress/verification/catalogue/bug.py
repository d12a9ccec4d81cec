"""What an entry of the catalogue is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LOSS = "logits agree, loss differs"
STAGES = ("front", "block", "head", "loss", "backward", "decoding", "steps", "chance")  # where a bug first shows


@dataclass(frozen=True)
class Bug:
    """One mistake, or one convention, that makes an implementation differ.

    ways(setup, evidence) -> {variant: Way}, or Optimisers at the stage "steps": wrong implementations to be
    run; none where the bug cannot occur. rule(evidence) -> 0..1, where running one shows nothing, or not to the
    last digit: what is drawn at random, is not there at all, or is rounded in an order of its own.
    """

    id: str
    title: str
    stage: str
    shows: str  # the first tensor that differs, and how
    mend: str
    ways: Callable[[Any, Any], dict] = field(default=lambda setup, evidence: {})
    rule: Callable[[Any], float] = field(default=lambda evidence: 0.0)
    convention: Callable[[Any], bool] = field(default=lambda setup: False)


def for_carriers(*carriers):
    """Whether a setup's prompt is of one of these carriers, in front of the rows."""

    def fits(setup):
        return setup.prompt is not None and not setup.prompt.in_rows and setup.prompt.carrier in carriers

    return fits


in_front = for_carriers("embeddings", "hidden", "kv")


def where(condition, ways):
    """The ways, where the setup meets the condition."""
    return lambda setup, evidence: ways(setup, evidence) if condition(setup) else {}


def always(ways):
    """The same ways for every setup."""
    return lambda setup, evidence: ways

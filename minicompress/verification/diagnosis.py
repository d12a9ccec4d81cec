"""Which mistake explains a difference: each of the catalogue is made, and its tensors held against the suspect's."""

import re
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from minicompress.trees import flatten
from minicompress.verification.catalogue import BUGS
from minicompress.verification.catalogue.bug import STAGES
from minicompress.verification.layouts import without_padding
from minicompress.verification.plain.backward import answer, what_is_asked
from minicompress.verification.plain.forward import RIGHT, Way, forward, tensors
from minicompress.verification.plain.steps import decode, take_steps
from minicompress.verification.walk import stage

SMALL = 2_000_000  # weights of a model on which even a product in half precision is quick
FEW = 5  # causes that a second, whole run is worth
FORWARD_FIELDS = tuple(Way.__dataclass_fields__)[: tuple(Way.__dataclass_fields__).index("context")]


class Cause(NamedTuple):
    """A mistake, and the share of the difference that it explains, 0 to 1."""

    id: str
    score: float
    variant: str
    title: str
    mend: str
    convention: bool


class Evidence:
    """The two traces, aligned, and what the causes ask of them."""

    def __init__(self, reference, suspect, setup, differing, first, tolerances):
        self.reference, self.suspect, self.setup = reference, suspect, setup
        self.differing, self.first_name, self.tolerances = differing, first.name, tolerances  # {name: error} of those
        self.first_error, self.first_stage = first.error, stage(first.name)
        loss = suspect.get("loss")
        self.suspect_loss = float(loss) if loss is not None and loss.shape == () and np.isfinite(loss) else None

    @cached_property
    def tape(self):
        """The right forward pass."""
        return forward(self.setup.model, self.setup.rows, self.setup.prompt)

    @cached_property
    def asked(self):
        return what_is_asked(self.setup, RIGHT, self.tape)

    @cached_property
    def small(self):
        return sum(w.size for w in flatten(self.setup.model[0]).values()) <= SMALL

    def weighed(self, score, bug):
        """A convention excuses a difference, so it has to explain nearly all of it."""
        return score if score > 0.95 or not bug.convention(self.setup) else score / 2

    def agrees(self, name):
        return name in self.suspect and name in self.reference and name not in self.differing

    @property
    def stages(self):
        """Where the mistake can be: not behind the first difference, nor before a tensor that would show it."""
        known = any(self.agrees(name) for name in self.reference if name.startswith("grad."))
        through_steps = self.first_stage == "steps" and not known
        if self.first_stage in ("decoding", "steps", "chance"):
            return {self.first_stage} | ({"backward"} if through_steps else set())
        last = STAGES.index(self.first_stage)
        first = 0
        if self.agrees("logits") and last >= STAGES.index("loss"):
            first = STAGES.index("loss")
        if self.agrees("loss") and last >= STAGES.index("backward"):
            first = STAGES.index("backward")
        return set(STAGES[first : last + 1])

    @cached_property
    def layer(self):
        """The block, or L for the end, in which the first difference is."""
        number = re.search(r"\.(\d+)$", self.first_name)
        if number is None or self.first_stage == "head":
            return self.setup.model[1].n_layer
        return int(number[1]) - (self.first_name.startswith("hidden.") and self.first_stage == "block")

    @cached_property
    def depth(self):
        """How many blocks show the first difference; None: all, and the head."""
        number = re.search(r"\.(\d+)$", self.first_name)
        if self.first_stage not in ("front", "block") or number is None:
            return None
        layers = self.setup.model[1].n_layer
        return min(
            layers, int(number[1]) + (not self.first_name.startswith("hidden")) + (self.first_name == "hidden.0")
        )


def causes(evidence, progress=None):
    """All that explain something of the difference -> list of Cause, the likeliest first."""
    found = [(bug.rule(evidence), bug, "") for bug in BUGS]
    if evidence.setup is not None:
        found += [(evidence.weighed(score, bug), bug, name) for score, bug, name in made_and_scored(evidence, progress)]
    best = {}
    for score, bug, name in found:
        if score > 0.02 and score > best.get(bug.id, (0,))[0]:
            best[bug.id] = score, bug, name
    ranked = sorted(best.values(), key=lambda one: (-round(one[0], 6), BUGS.index(one[1])))
    agreed = lambda bug: bool(evidence.setup and bug.convention(evidence.setup))
    return [Cause(bug.id, float(score), name, bug.title, bug.mend, agreed(bug)) for score, bug, name in ranked]


def made_and_scored(evidence, progress=None):
    """(score, bug, variant) of all that can be made: as far as the first difference; the best then as a whole."""
    tried = []
    for number, bug in enumerate(BUGS):
        if progress:
            progress(number, len(BUGS), bug.id)
        for name, way in ways_of(bug, evidence).items() if bug.stage in evidence.stages else ():
            tried.append((explained(evidence, predicted(evidence, bug, way, whole=False)), bug, name, way))
    tried.sort(key=lambda one: -one[0])
    for rank, (score, bug, name, way) in enumerate(tried):
        hopeful = score > 0 if evidence.small else score > 0.5 * tried[0][0]
        if rank < FEW and hopeful:
            score = explained(evidence, predicted(evidence, bug, way, whole=True))
        yield score, bug, name


def ways_of(bug, evidence):
    """A bug's ways; where the first difference is behind the first block, also in that block alone."""
    ways, layer, last = bug.ways(evidence.setup, evidence), evidence.layer, evidence.setup.model[1].n_layer
    if bug.stage != "block" or evidence.first_stage not in ("block", "head") or layer == 0:
        return ways
    blind = evidence.small and not any(name.startswith("hidden.") for name in evidence.suspect)
    alone = range(last + 1) if blind else [layer]  # with no tensor between, it can be any block
    named = lambda number: "at the end alone" if number == last else f"in block {number} alone"
    each = {f"{name}, {named(number)}": replace(way, only=number) for number in alone for name, way in ways.items()}
    return ways | each


def predicted(evidence, bug, way, whole):
    """The tensors of a wrong implementation: as far as the first difference, or all that the suspect shows."""
    setup, first = evidence.setup, evidence.first_stage
    if bug.stage == "decoding":
        return decode(setup, way)
    if first == "steps":
        return take_steps(setup, way) if bug.stage == "steps" else take_steps(setup, way=way)
    if not whole and bug.stage in ("front", "block", "head"):
        if evidence.depth is not None:
            return tensors(forward(setup.model, setup.rows, setup.prompt, way, evidence.depth))
        if first == "head":
            return tensors(forward(setup.model, setup.rows, setup.prompt, way))
    tape = evidence.tape if same_forward(way) else None
    gradients = any(name.startswith("grad.") for name in evidence.suspect)
    down_to = evidence.layer if not whole and evidence.first_name.startswith("grad.hidden.") else None
    return answer(setup, way, gradients and (whole or first == "backward"), tape, down_to)


def same_forward(way):
    """Whether a Way differs from the right one behind the logits only."""
    return all(getattr(way, name) == getattr(RIGHT, name) for name in FORWARD_FIELDS)


def explained(evidence, prediction):
    """How much of the suspect's difference a prediction explains: that of the first tensor, and of all on average."""
    shares = {}
    for name, theirs in evidence.suspect.items():
        ours, made = evidence.reference.get(name), prediction.get(name)
        if ours is not None and made is not None:
            made = without_padding(name, made, ours, evidence.reference)
            share = share_explained(theirs, ours, made, evidence.tolerances.of(name))
            if share is not None:
                shares[name] = share
    if not shares or evidence.first_name not in prediction:
        return 0.0
    return 0.6 * shares.get(evidence.first_name, 0.0) + 0.4 * float(np.mean(list(shares.values())))


def share_explained(theirs, ours, made, tolerance):
    """1 where the prediction is the suspect's tensor, 0 where it is no nearer than ours; None: nothing to explain.

    Of many mistakes one comes near to any single number by chance, so that there near is little.
    """
    if theirs.shape != made.shape:
        return 0.0
    theirs, made = theirs.astype(np.float64), made.astype(np.float64)
    if not np.isfinite(made).all() or not np.isfinite(theirs).all():
        return float(np.array_equal(np.isfinite(made), np.isfinite(theirs)))
    floor = tolerance * np.linalg.norm(ours)
    left = max(0.0, np.linalg.norm(theirs - made) - floor)
    if theirs.shape != ours.shape:
        return 1 - min(1.0, left / max(np.linalg.norm(theirs), 1e-300))
    apart, moved = np.linalg.norm(theirs - ours), np.linalg.norm(made - ours)
    if max(apart, moved) <= floor:
        return None
    share = 1 - min(1.0, left / max(apart, moved))
    return share if theirs.ndim or share > 0.999 else share / 2

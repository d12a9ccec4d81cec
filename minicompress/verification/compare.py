"""Two traces held against one another: the first tensor that differs, where in it, and why."""

from typing import NamedTuple

import numpy as np

from minicompress.verification.diagnosis import Cause, Evidence, causes
from minicompress.verification.layouts import finite
from minicompress.verification.names import align
from minicompress.verification.oracles import error_of
from minicompress.verification.tolerance import DOUBTFUL, MEASURED, Tolerances, measured
from minicompress.verification.walk import place

AXES = {
    "attention": ("row", "head", "query", "key"), "query": ("row", "head", "position", "number"),
    "key": ("row", "head", "key", "number"),
    "value": ("row", "head", "key", "number"), "first_logits": ("row", "token"), "logits": ("row", "position", "token"),
    "teacher_log_probs": ("row", "position", "token"), "losses": ("row", "position"), "prompt": ("slot", "number"),
    "grad": ("slot", "channel"), "decoded": ("row", "step"), "decoded_logits": ("row", "step", "token"),
    "steps": ("step",),
}  # fmt: skip

WEIGHTS = ("grad.model.", "after.model.", "adam.m.model.", "adam.v.model.")
WEIGHT_AXES = {1: ("channel",), 2: ("input", "output")}


class Line(NamedTuple):
    """One tensor of both traces."""

    name: str
    error: float
    tolerance: float
    note: str = ""  # how it was laid out, or what is wrong with it

    @property
    def differs(self):
        return not self.error <= self.tolerance


class Comparison(NamedTuple):
    """What `diff` says."""

    lines: list[Line]  # in the order of the run
    first: Line | None  # the first that differs
    where: str  # which rows, heads, positions of it
    causes: list[Cause]
    unknown: list[str]  # the suspect's tensors that the reference has not

    @property
    def equal(self):
        return self.first is None

    def as_dict(self):
        """For JSON."""
        first = self.first and self.first._asdict() | {"where": self.where}
        named = [cause._asdict() | {"score": round(cause.score, 4)} for cause in self.causes]
        return {
            "equal": self.equal,
            "first": first,
            "causes": named,
            "compared": len(self.lines),
            "unknown": self.unknown,
        }


def compare(reference, suspect, setup=None, progress=None):
    """{name: tensor} twice, and what the reference is of -> Comparison.

    The suspect's names and layouts may be Hugging Face's, nanoGPT's or llm.c's. Without a Setup, causes that
    must be run to be seen are not named. Raises ValueError where the two have no tensor in common.
    """
    reference = {name: tensor for name, tensor in reference.items() if place(name) is not None and tensor.size}
    aligned = align(suspect, reference)
    if not aligned.tensors:
        known = [name for name in ("logits", "loss", "hidden.0", "grad.prompt") if name in reference]
        theirs, ours = (", ".join(names) for names in (sorted(suspect)[:4], known or sorted(reference)[:4]))
        raise ValueError(f"the two traces share no tensor: one has {ours} …, the other {theirs} …")
    tolerances = Tolerances(reference, aligned.tensors, setup)
    lines = [line(name, aligned, reference, tolerances) for name in sorted(aligned.tensors, key=place)]
    missing = sorted(set(reference) - set(aligned.tensors), key=place)
    needed = [name for name in missing if must_be_there(name, aligned.tensors, missing)]
    lines += [Line(name, float("inf"), tolerances.of(name), "missing") for name in needed]
    lines = looked_at_again(sorted(lines, key=lambda one: place(one.name)), reference, setup, tolerances)
    first = next((one for one in lines if one.differs), None)
    found, where = [], ""
    if first:
        differing = {one.name: one.error for one in lines if one.differs}
        where = whereabouts(first.name, aligned.tensors.get(first.name), reference.get(first.name), first.tolerance)
        found = causes(Evidence(reference, aligned.tensors, setup, differing, first, tolerances), progress)
    return Comparison(lines, first, where, found, aligned.unknown)


def looked_at_again(lines, reference, setup, tolerances):
    """The same lines; those that differ by little, with tolerances from rounding as it is measured."""
    doubtful = {one.name for one in lines if one.differs and one.error <= DOUBTFUL * one.tolerance}
    if setup is None or not doubtful:
        return lines
    seen = measured(setup, reference, tolerances.bytes)
    wider = lambda one: max(one.tolerance, MEASURED * seen.get(one.name, 0))
    return [one._replace(tolerance=wider(one)) if one.name in doubtful else one for one in lines]


def must_be_there(name, suspect, missing):
    """Whether a trace with most other gradients should have this one: of the prompt, or of an encoder's array."""
    kind = "grad.raw." if name.startswith("grad.raw.") else "grad."
    present, absent = (sum(n.startswith(kind) for n in names) for names in (suspect, missing))
    return name.startswith(("grad.prompt", "grad.raw.")) and present > absent


def line(name, aligned, reference, tolerances):
    """How far one tensor is from the reference's; a second forward is held against the suspect's own first."""
    theirs, note, tolerance = aligned.tensors[name], aligned.notes.get(name, ""), tolerances.of(name)
    first = name.removeprefix("again.")
    ours = aligned.tensors.get(first, reference.get(first)) if first != name else reference[name]
    if theirs.shape != ours.shape:
        return Line(name, float("inf"), tolerance, f"shape {list(theirs.shape)}, not {list(ours.shape)}")
    if name == "decoded":
        return Line(name, float((theirs != ours).mean()), 0.0, note)
    if not np.isfinite(theirs).all() and np.isfinite(ours).all():
        note = "not a number" if np.isnan(theirs).any() else "infinite"
    return Line(name, error_of(*without_noise(name, theirs, ours)), tolerance, note)


def without_noise(name, theirs, ours):
    """Without the keys' bias where its gradient is rounding alone: it moves all scores of a query alike."""
    if name.endswith("attn.c_attn.bias") and theirs.ndim == 1 and len(theirs) % 3 == 0:
        C = len(theirs) // 3
        if not name.startswith("grad.") or np.linalg.norm(ours[C : 2 * C]) <= 1e-5 * np.linalg.norm(ours):
            return tuple(np.concatenate([x[:C], x[2 * C :]]) for x in (theirs, ours))
    return theirs, ours


def whereabouts(name, theirs, ours, tolerance):
    """Which rows, heads and positions of a tensor differ, in words."""
    if theirs is None or ours is None or theirs.shape != ours.shape or not theirs.ndim:
        return ""
    apart = np.abs(finite(theirs.astype(np.float64)) - finite(ours))
    wrong = (apart > tolerance * max(np.abs(finite(ours)).max(), 1e-300)) | (np.isfinite(theirs) != np.isfinite(ours))
    if not wrong.any():
        wrong = apart > 0.1 * apart.max()
    head = name.partition(".")[0]
    axes = (
        WEIGHT_AXES.get(theirs.ndim, ()) if name.startswith(WEIGHTS) else AXES.get(head, ("row", "position", "channel"))
    )
    axes = axes if len(axes) == theirs.ndim else tuple(f"axis {i}" for i in range(theirs.ndim))
    parts = []
    for axis, called in enumerate(axes):
        hit = np.flatnonzero(wrong.any(tuple(i for i in range(wrong.ndim) if i != axis)))
        size = wrong.shape[axis]
        if called in ("number", "channel", "token") and len(hit) > size / 2:
            continue
        parts.append(f"all {size} {called}s" if len(hit) == size > 1 else f"{called} {spans(hit)} of {size}")
    return f"{wrong.mean():.0%} of its numbers: " + ", ".join(parts) if parts else f"{wrong.mean():.0%} of its numbers"


def spans(numbers, most=4):
    """[0, 1, 2, 5] -> 0-2, 5."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    words = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(words[:most]) + (", …" if len(words) > most else "")

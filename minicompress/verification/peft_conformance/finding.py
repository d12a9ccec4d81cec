"""What a check finds, what is said of it, and how it is shown."""

import math
from typing import Any, NamedTuple

AGREES, CONVENTION, DEFECT = "agrees", "differs: a convention", "differs: a defect"
NOT_RUN = "cannot be run"
ACCEPTED = "accepted"
VERDICTS = (AGREES, CONVENTION, DEFECT, NOT_RUN)
EXACT, SINGLE = 1e-10, 1e-5  # where float64 is kept; where something is computed or stored in float32


class Finding(NamedTuple):
    """Our value and theirs, as numbers or words. Without a difference, the values themselves are compared."""

    ours: Any
    theirs: Any
    difference: float | None = None  # relative
    tolerance: float = EXACT
    otherwise: str = DEFECT  # what it is where they differ
    words: str = ""  # what a difference means, and what to do about it
    same: bool | None = None  # where neither a difference nor the values tell

    @property
    def verdict(self):
        measured = self.ours == self.theirs if self.difference is None else self.difference <= self.tolerance
        return AGREES if (measured if self.same is None else self.same) else self.otherwise


class Row(NamedTuple):
    """One line of the table."""

    check: str
    kind: str  # of prompt
    ours: Any
    theirs: Any
    difference: float | None
    tolerance: float | None
    verdict: str
    words: str


def examined(check, kind, ask):
    """The Row of one check; whatever it raises is shown, and is the end of this check alone."""
    try:
        found = ask()
        words = "" if found.verdict == AGREES else found.words
        return Row(check, kind, found.ours, found.theirs, found.difference, found.tolerance, found.verdict, words)
    except Exception as reason:
        return Row(check, kind, None, None, None, None, NOT_RUN, first_line(reason))


def first_line(reason):
    """KeyError: 'default'."""
    line = next(iter(str(reason).splitlines()), "")
    return f"{type(reason).__name__}: {line}" if line else type(reason).__name__


def attempt(f):
    """`accepted`, or the first line of what f raises."""
    try:
        f()
    except Exception as reason:
        return first_line(reason)
    return ACCEPTED


def refusal(mine, theirs, otherwise=DEFECT, words=""):
    """The Finding of two `attempt`s at what should be refused; mine None where nothing of ours was asked."""
    same = (mine == ACCEPTED) == (theirs == ACCEPTED)
    return Finding(mine, theirs, otherwise=otherwise, words=words, same=same)


# How it is shown.


def text(versions, seed, rows, absent=()):
    """The table as lines: kinds of prompts below each check, and at the end what to know of all that differs."""
    yield ", ".join(f"{name} {version}" for name, version in versions.items()) + f"; seed {seed}"
    if absent:
        yield f"not in this PEFT: {', '.join(absent)}"
    widths = [max([len(cell(row)) for row in rows] + [6]) for cell in (kind_cell, ours_cell, theirs_cell)]
    yield "\n" + line(widths, "", "ours", "theirs", "difference", "verdict")
    before = None
    for row in rows:
        if row.check != before:
            yield f"\n{row.check}"
        before = row.check
        cells = kind_cell(row), ours_cell(row), theirs_cell(row), shown(row.difference, "{:.0e}")
        yield line(widths, *cells, row.verdict)
    yield from remarks(rows)
    yield "\n" + ", ".join(f"{n} {verdict}" for verdict, n in counted(rows).items())


def line(widths, kind, ours, theirs, difference, verdict):
    a, b, c = widths
    return f"  {kind:<{a}}  {ours:>{b}}  {theirs:>{c}}  {difference:>10}  {verdict}"


def remarks(rows):
    """What differs, and what to do about it: a line for each thing that is said, and where."""
    said = {}
    for row in rows:
        if row.words:
            said.setdefault((row.verdict, row.check, row.words), []).append(row.kind)
    for verdict in VERDICTS[1:]:
        if mine := {key: kinds for key, kinds in said.items() if key[0] == verdict}:
            yield f"\n{verdict}"
            for (_, check, words), kinds in mine.items():
                yield f"  {check} ({', '.join(kinds)}): {words}"


def kind_cell(row):
    return row.kind


def ours_cell(row):
    return shown(row.ours)


def theirs_cell(row):
    return shown(row.theirs)


def shown(value, form="{:.9g}"):
    """A number in short, words cut to a column's width."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return form.format(value)
    return str(value) if len(str(value)) <= 30 else str(value)[:29] + "…"


def counted(rows):
    return {verdict: n for verdict in VERDICTS if (n := sum(row.verdict == verdict for row in rows))}


def plain(versions, seed, rows, absent=()):
    """The same as one object of plain values; null for a number that is infinite or NaN."""
    finite = lambda x: None if isinstance(x, float) and not math.isfinite(x) else x
    listed = [{name: finite(x) for name, x in row._asdict().items()} for row in rows]
    return {"versions": versions, "seed": seed, "absent": list(absent), "counts": counted(rows), "rows": listed}

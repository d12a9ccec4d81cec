"""The comparison of two traces, as a person reads it."""

from collections import Counter

from rich.table import Table

AROUND = 2  # lines before the first difference, and behind it
CAUSES = 3
NAMES = 6
NAMED = 0.9  # the share of a difference from which on a name has proved right


def difference_report(found, whole=False):
    """What is printed: a table around the first difference, or of all, and the likeliest causes in words."""
    if found.equal and not whole:
        worst = max(found.lines, key=lambda line: line.error / max(line.tolerance, 1e-300))
        words = f"equal: {len(found.lines)} tensors within their tolerances; the nearest to its own is {worst.name}, "
        return [words + f"{worst.error:.1e} of {worst.tolerance:.1e}", *besides(found)]
    return [tensor_table(found, whole), *verdict(found)]


def tensor_table(found, whole):
    table = Table(box=None, pad_edge=False)
    for column, justify in (("tensor", "left"), ("error", "right"), ("tolerance", "right"), ("", "left"), ("", "left")):
        table.add_column(column, justify=justify)
    shown = found.lines if whole else around(found)
    for line in shown:
        mark = "" if not line.differs else "first" if line is found.first else "differs"
        style = "bold" if line is found.first else "" if line.differs else "dim"
        table.add_row(line.name, f"{line.error:.1e}", f"{line.tolerance:.1e}", mark, line.note, style=style)
    return table


def around(found):
    """The lines near the first difference."""
    at = found.lines.index(found.first)
    return found.lines[max(0, at - AROUND) : at + AROUND + 1]


def verdict(found):
    """What differs first and where; the likeliest causes; or that nothing does."""
    if found.equal:
        return [f"equal: {len(found.lines)} tensors within their tolerances", *besides(found)]
    differing = sum(line.differs for line in found.lines)
    lines = [
        f"\n{differing} of {len(found.lines)} tensors differ, {found.first.name} first"
        + (f": {found.where}" if found.where else "")
    ]
    for number, cause in enumerate(found.causes[:CAUSES]):
        if number and cause.score < 0.9 * found.causes[0].score:
            break
        kind = "a convention, not a bug: " if cause.convention else ""
        kind = kind if cause.score >= NAMED else f"the nearest known, which is not all of it: {kind}"
        variant = f" ({cause.variant})" if cause.variant else ""
        lines += [f"{cause.score:4.0%} {cause.id}: {kind}{cause.title}{variant}", f"     {cause.mend}"]
    if not found.causes or found.causes[0].score < 0.5:
        lines.append("no mistake of the catalogue explains most of it")
    return lines + besides(found)


def besides(found):
    """What a reader must know of the comparison itself: layouts that were turned, names that were not known."""
    read = Counter(line.note for line in found.lines if line.note and not line.differs)
    lines = [f"read otherwise: {', '.join(f'{how} ({n})' for how, n in read.items())}"] if read else []
    more = f" and {len(found.unknown) - NAMES} more" if len(found.unknown) > NAMES else ""
    named = ", ".join(found.unknown[:NAMES]) + more
    return lines + ([f"not compared, for want of a known name: {named}"] if found.unknown else [])

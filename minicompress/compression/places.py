"""Which places of a query the training scores: all, the first few, or where the context changes the teacher's mind.

The table of a compression always scores all.
"""

from dataclasses import replace

from minicompress.arrays import to_host
from minicompress.compression.teacher import Teacher
from minicompress.gpt2.prefix import Prefix


def read_places(rule):
    """`all`, `changed`, or `first:N` -> None, "changed" or N. Raises ValueError for anything else."""
    name, _, count = rule.partition(":")
    if rule in ("all", "changed"):
        return None if rule == "all" else rule
    if name != "first" or not (count.isascii() and count.isdigit()) or int(count) < 1:
        raise ValueError(f"--places is {rule!r}; it can be all, changed, or first:N with N of at least 1")
    return int(count)


def choose_places(rule, queries, teacher, read, shards):
    """The queries with the places that the rule leaves, without those where it leaves none.

    `changed`: the teacher's likeliest token behind `read`, the context, is another than behind nothing.
    """
    rule = read_places(rule)
    if rule is None:
        return queries
    if rule == "changed":
        found = [
            replace(q, places=places)
            for q, places in zip(queries, changed(queries, teacher, read, shards), strict=True)
        ]
    else:
        found = [replace(q, places=tuple(q.targets[:rule])) for q in queries]
    return [q for q in found if q.places]


def changed(queries, teacher, read, shards):
    """For each query the scored places where the teacher, a pair, changes its likeliest token because of `read`."""
    knows, guesses = (Teacher(teacher, prefix, queries, shards) for prefix in (read, Prefix()))
    for i, query in enumerate(queries):
        differ = to_host(knows.logp([i]).argmax(-1) != guesses.logp([i]).argmax(-1))
        yield tuple(place for place, other in zip(query.targets, differ, strict=True) if other)

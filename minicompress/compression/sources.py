"""Where queries come from: a file, the text itself, or what a model writes behind it.

The teacher scores all of them with the whole context in front, wherever they were written.
"""

from dataclasses import replace

import numpy as np

from minicompress.arrays import to_host
from minicompress.compression.queries import (
    ROWS,
    START,
    Query,
    file_queries,
    hold_out,
    own_answers,
    question_query,
    self_study,
)  # fmt: skip
from minicompress.gpt2 import logits
from minicompress.gpt2.generate import generate, sample
from minicompress.gpt2.prefix import read_tokens

QUERY_TOKENS = 48  # room for a question and its answer
SOURCES = ("self-study", "context", "continuation", "context-free", "on-policy")
ANSWERS = ("greedy", "sampled")
BELONGS = {
    "answers": ("file", "self-study"),
    "seed_prompt": ("self-study", "on-policy"),
    "chunk": ("self-study", "context", "continuation"),
    "continuation_share": ("continuation",),
    "refresh": ("on-policy",),
}  # options that only some sources read


def settled(recipe, queries_file=None):
    """The recipe with its source named, and what that reads given a value. Raises ValueError where it reads no such."""
    source = "file" if queries_file else recipe.queries
    if source not in (*SOURCES, "file"):
        raise ValueError(f"--queries is {source!r}; it can be a file or {' or '.join(SOURCES)}")
    for option, sources in BELONGS.items():
        if getattr(recipe, option) is not None and source not in sources:
            name = option.replace("_", "-")
            raise ValueError(f"--{name} belongs to --queries {' or '.join(sources)}; this is {source}")
    if not all(recipe.seed_prompt or (START,)):
        raise ValueError("--seed-prompt is empty; a row begins with at least one token")
    if source == "continuation":
        recipe = replace(recipe, continuation_share=recipe.continuation_share or 0.3)
    return replace(recipe, queries=source, refresh=(recipe.refresh or 50) if source == "on-policy" else None)


def split_text(ids, recipe):
    """The tokens of the context, and those behind it: the text's last part where that is what is asked, else none."""
    if recipe.queries != "continuation":
        return ids, []
    n = len(ids) - round(recipe.continuation_share * len(ids))
    if n < 1 or len(ids) - n < 3:
        raise ValueError(
            f"the text has {len(ids)} tokens; at --continuation-share {recipe.continuation_share} its two parts"
            f" are {n} and {len(ids) - n}, and 1 and 3 are the least"
        )
    return ids[:n], ids[n:]


def gather(teacher, ids, after, read, recipe, shards, queries_file=None, keep=lambda write: write()):
    """All queries of the recipe's source, before any is held out; `read` is the teacher's prefix of ids.

    What the teacher writes goes through keep(write), which may know it already.
    """
    rng = np.random.default_rng((recipe.seed, 1))
    sampled = rng.spawn(1)[0] if recipe.answers == "sampled" else None
    if recipe.queries == "file":
        return file_queries(teacher, read, queries_file, sampled)
    if recipe.queries == "context":
        return pieces(ids, recipe.chunk or QUERY_TOKENS - 1)
    if recipe.queries == "continuation":
        return continued(after, recipe.chunk or max(1, min(QUERY_TOKENS, len(after) // 5)))
    return keep(lambda: written(teacher, ids, read, recipe, shards, rng, sampled))


def written(teacher, ids, read, recipe, shards, rng, sampled):
    """What the teacher writes of itself, having read the context or a chunk of it; `sampled` draws its answers anew."""
    room = teacher.pair[1].n_positions - read.length
    if recipe.queries == "context-free":
        return spread(lambda n, rng: freely(teacher.pair, read, n, rng, room), [recipe.self_study], rng, shards)
    prefixes = [read_tokens(*teacher.pair, some) for some in parts_of(ids, recipe.chunk)] if recipe.chunk else [read]
    found = study(teacher, prefixes, recipe, rng, shards, room)
    return answered(teacher, read, found, recipe.answers, sampled)


def split(queries, recipe):
    """Those to train on, and those held out.

    A fifth of the questions; of a continuation the last fifth of its pieces; of the context itself all are both,
    since what is left out would be what the slots are to hold.
    """
    if recipe.queries == "context":
        return queries, queries
    if recipe.queries == "continuation":
        n = len(queries) - max(1, round(0.2 * len(queries)))
        return queries[:n], queries[n:]
    return hold_out(queries, 0.2, np.random.default_rng((recipe.seed, 1)))


def parts_of(ids, n):
    """ids in parts of n; the last may be shorter."""
    return [ids[i : i + n] for i in range(0, len(ids), n)]


def pieces(ids, n):
    """Rows in which every token of ids but the first is scored once, n in a row, behind the one before them."""
    return [Query(ids[i : i + n + 1], 1) for i in range(0, len(ids) - 1, n)]


def continued(ids, n):
    """Rows that all begin where ids do: each scores n more tokens than the row before, but never the first."""
    return [Query(ids[: i + n], max(i, 1)) for i in range(0, len(ids), n) if len(ids[: i + n]) > 1]


def study(writer, prefixes, recipe, rng, shards, room):
    """What `self_study` gives behind each prefix from each seed prompt, in equal shares; `room` is both's."""
    seeds = recipe.seed_prompt or (START,)
    both = [(prefix, seed) for prefix in prefixes for seed in seeds]
    counts = [len(part) for part in np.array_split(range(recipe.self_study), len(both))]
    left = {seed: min(QUERY_TOKENS, room - len(writer.tokenizer.encode(seed).ids)) for seed in seeds}
    if (least := min(seeds, key=left.get)) and left[least] < 1:
        raise ValueError(f"behind the seed prompt {least!r} there is no room to write; {room} tokens are left for both")

    def write(n, rng, prefix, seed):
        return self_study(writer.pair, writer.tokenizer, prefix, n, rng, left[seed], seed_prompt=seed)

    return spread(write, counts, rng, shards, both)


def spread(write, counts, rng, shards, what=((),)):
    """write(n, rng, *what) for so many rows of each, ROWS at a time, over the shards; repeats are dropped."""
    groups = [(min(ROWS, n - i), some) for n, some in zip(counts, what, strict=True) for i in range(0, n, ROWS)]
    rngs = rng.spawn(len(groups))
    one = lambda group, rng: write(group[0], rng, *group[1])
    written = shards.map(lambda part: list(map(one, groups[part], rngs[part])), len(groups))
    return list({tuple(q.ids): q for group in written for some in group for q in some}.values())


def freely(model, prefix, count, rng, room):
    """Rows that go on where the prefix ends, with nothing between: the first token is drawn from its last state."""
    expected = np.repeat(to_host(logits(model[0], prefix.last[:, 0])), count, axis=0)  # (count, V)
    first = sample(expected, rng, 1.0, top_p=0.95)[:, None].tolist()
    rows = generate(*model, first, min(QUERY_TOKENS, room) - 1, prefix, rng=rng, temperature=1.0, top_p=0.95)
    return [Query(one + new, 1) for one, new in zip(first, rows, strict=True)]


def answered(teacher, read, queries, how, rng):
    """The questions with the teacher's own answers as it reads the whole context, greedy or drawn; or as they are."""
    if how is None or not (asked := [q.question for q in queries if q.question]):
        return queries
    own = iter(own_answers(teacher.pair, teacher.tokenizer, read, asked, rng))
    again = [question_query(teacher.tokenizer, q.question, next(own)) if q.question else q for q in queries]
    return list({tuple(q.ids): q for q in again}.values())

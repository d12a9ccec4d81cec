"""Checks of where queries come from, as functions that count what is wrong, which planted bugs share."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

import letters
from minicompress.compression import queries, sources
from minicompress.compression.problem import Recipe
from minicompress.compression.queries import FORM, Query, answer_greedily
from minicompress.gpt2 import embed, forward, logits
from minicompress.gpt2.prefix import read_tokens
from minicompress.layers.losses import log_softmax
from minicompress.training.shards import Shards

MODEL = letters.model()
IDS = MODEL.tokenizer.encode(letters.TEXT).ids


def recipe(source, **changes):
    return sources.settled(Recipe(**{"queries": source, "self_study": 7} | changes))


def gathered(settled, ids=IDS, after=()):
    with Shards(2) as shards:
        return sources.gather(MODEL, ids, list(after), read_tokens(*MODEL.pair, ids), settled, shards)


def pieces_error(lengths=(1, 2, 3, 7, 28, 29, 40)):
    """Rows of the context, at any length: joined, their scored tokens are the context without its first."""
    wrong = 0
    for n in lengths:
        rows = gathered(recipe("context", chunk=n))
        wrong += [i for q in rows for i in q.ids[q.start :]] != IDS[1:]
        wrong += any(len(q.ids) - q.start > n or q.start != 1 for q in rows)
        where = np.cumsum([0] + [len(q.ids) - 1 for q in rows])
        wrong += any(q.ids[0] != IDS[i] for q, i in zip(rows, where, strict=False))
    return wrong


def continued_error(lengths=(1, 2, 4, 9, 12)):
    """Rows of what follows all begin behind the context, and score each of its tokens but the first once."""
    ids, after = sources.split_text(IDS, recipe("continuation", continuation_share=0.4))
    wrong = float(ids + after != IDS or len(after) != round(0.4 * len(IDS)))
    for n in lengths:
        rows = gathered(recipe("continuation", chunk=n), ids, after)
        wrong += [i for q in rows for i in q.ids[q.start :]] != after[1:]
        wrong += any(q.ids != after[: len(q.ids)] or len(q.ids) - q.start > n for q in rows)
    return wrong


def held_error():
    """What is held out: the end of a continuation, nothing of the context, else a fifth of the questions."""
    rows = [Query([n, n + 1], 1) for n in range(10)]
    train, held = sources.split(rows, recipe("continuation"))
    wrong = (train, held) != (rows[:8], rows[8:])
    train, held = sources.split(rows, recipe("context"))
    wrong += not train == held == rows
    train, held = sources.split(rows, recipe("self-study"))
    return wrong + (len(held) != 2) + (sorted(q.ids for q in train + held) != [q.ids for q in rows])


def freely_error(draws=4000):
    """The first token is drawn from what the teacher expects behind the context alone, in its likeliest 95%."""
    read = read_tokens(*MODEL.pair, IDS)
    rows = sources.freely(MODEL.pair, read, draws, np.random.default_rng(0), 4)
    hidden = forward(*MODEL.pair, embed(MODEL.pair[0], np.array([IDS])), keep="nothing")[0]
    p = np.exp(log_softmax(logits(MODEL.pair[0], hidden[0, -1:])))[0]
    order = np.argsort(-p)
    p[order[np.cumsum(p[order]) - p[order] >= 0.95]] = 0
    found = np.bincount([q.ids[0] for q in rows], minlength=len(p)) / draws
    far = np.abs(found - p / p.sum()) > 5 * np.sqrt(p / draws) + 1e-12
    return far.sum() + any(len(q.ids) != 4 or q.start != 1 for q in rows)


def written(settled, ids=IDS):
    """What `study` asks of `self_study`: (tokens of the prefix, seed prompt, steps, rows), one for each call."""
    calls = []

    def self_study(pair, tokenizer, prefix, n, rng, steps, seed_prompt):
        calls.append((prefix.length, seed_prompt, steps, n))
        return []

    real, sources.self_study = sources.self_study, self_study
    try:
        gathered(settled, ids)
    finally:
        sources.self_study = real
    return calls


def shares_error():
    """Seven rows from two seed prompts behind three chunks: every pair once, as evenly as can be, with all the room."""
    calls = written(recipe("self-study", seed_prompt=("Q:", "a fact. "), chunk=12))
    wanted = {(n, seed) for n in (12, 12, 5) for seed in ("Q:", "a fact. ")}
    wrong = {call[:2] for call in calls} != wanted or len(calls) != 6
    wrong += sorted(call[3] for call in calls) != [1, 1, 1, 1, 1, 2]
    wrong += any(steps != 48 for _, _, steps, _ in calls)
    room = letters.CONFIG.n_positions - 2 * len(IDS)
    wrong += written(recipe("self-study", seed_prompt=("a fact. ",)), 2 * IDS)[0][2] != room - len("a fact. ")
    plain = written(recipe("self-study", self_study=50))
    return wrong + (sorted(call[3] for call in plain) != [2, 24, 24]) + (plain[0][:2] != (len(IDS), "Q:"))


def seed_prompt_error():
    """Behind a seed prompt that asks nothing, all that is written is scored, and nothing of the prompt."""
    tokenizer, said = MODEL.tokenizer, " a dog\nA: b\n"
    real, queries.generate = queries.generate, lambda p, c, rows, *_, **__: [tokenizer.encode(said).ids] * len(rows)
    try:
        (fact,) = queries.self_study(MODEL.pair, tokenizer, None, 1, None, seed_prompt="a fact:")
        (asked,) = queries.self_study(MODEL.pair, tokenizer, None, 1, None, seed_prompt="Q: has tom")
    finally:
        queries.generate = real
    split = lambda q: (tokenizer.decode(q.ids[: q.start]), tokenizer.decode(q.ids[q.start :]), q.question)
    wrong = split(fact) != ("a fact:", said, None)
    return wrong + (split(asked) != ("Q: has tom a dog\nA:", " b\n", "has tom a dog"))


def answered_error():
    """Questions answered anew, greedily or drawn, behind the whole context; what is no question stays."""
    read, given = (
        read_tokens(*MODEL.pair, IDS),
        [Query([5, 6], 1), queries.question_query(MODEL.tokenizer, "who?", "x")],
    )
    teacher = SimpleNamespace(pair=MODEL.pair, tokenizer=MODEL.tokenizer)
    (plain, greedy), untouched = (
        sources.answered(teacher, read, given, "greedy", None),
        sources.answered(teacher, read, given, None, None),
    )
    own = answer_greedily(MODEL.pair, MODEL.tokenizer, read, ["who?"])[0]
    wrong = MODEL.tokenizer.decode(greedy.ids) != FORM.format(question="who?") + f" {own}\n"
    drawn = lambda seed: sources.answered(teacher, read, given, "sampled", np.random.default_rng(seed))[1].ids
    return wrong + (plain != given[0]) + (untouched != given) + (drawn(0) != drawn(0)) + (drawn(0) == drawn(1)) + (
        drawn(0) == greedy.ids)  # fmt: skip


def settled_error():
    """Options and the sources that read them: what does not belong is refused, what is left open is set."""
    values = {"answers": "greedy", "seed_prompt": ("Q:",), "chunk": 3, "continuation_share": 0.5, "refresh": 4}
    belongs = {"answers": {"self-study"}, "seed_prompt": {"self-study", "on-policy"}, "continuation_share": {"continuation"},
               "chunk": {"self-study", "context", "continuation"}, "refresh": {"on-policy"}}  # fmt: skip
    wrong = 0
    for option, value in values.items():
        for source in sources.SOURCES:
            try:
                taken = getattr(recipe(source, **{option: value}), option) == value
            except ValueError:
                taken = False
            wrong += taken != (source in belongs[option])
    wrong += (recipe("on-policy").refresh, recipe("continuation").continuation_share) != (50, 0.3)
    again = recipe("continuation")
    return (
        wrong
        + (sources.settled(again) != again)
        + (sources.settled(replace(again, queries="context", continuation_share=None), "f").queries != "file")
    )


CHECKS = {
    "pieces": pieces_error,
    "continued": continued_error,
    "held": held_error,
    "freely": freely_error,
    "shares": shares_error,
    "seed prompt": seed_prompt_error,
    "answered": answered_error,
    "settled": settled_error,
}

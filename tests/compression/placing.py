"""Checks of which places are scored, as functions that count what is wrong, which planted bugs share."""

from dataclasses import replace

import numpy as np
from compressing import Problem

from helpers import TINY
from minicompress.compression.places import choose_places
from minicompress.compression.queries import pad
from minicompress.compression.teacher import Teacher
from minicompress.gpt2 import embed, forward, logits
from minicompress.gpt2.prefix import read_tokens
from minicompress.training.shards import Shards
from minicompress.verification.oracles import relative_error


def chosen(problem, rule):
    with Shards(2) as shards:
        return choose_places(rule, problem.queries, problem.model, read_tokens(*problem.model, problem.context), shards)


def likeliest(problem, ids):
    return logits(
        problem.model[0], forward(*problem.model, embed(problem.model[0], np.array([ids])), keep="nothing")[0]
    )[0].argmax(-1)


def changed_error():
    """By reading each query at once, with the context in front and without."""
    wrong, kept = 0, 0
    for seed in range(6):
        problem = Problem(seed, first=False)
        found = {tuple(q.ids): list(q.places) for q in chosen(problem, "changed")}
        for q in problem.queries:
            knows = likeliest(problem, problem.context + q.ids)[len(problem.context) :]
            guesses = likeliest(problem, q.ids)
            places = [t for t in range(q.start, len(q.ids)) if knows[t - 1] != guesses[t - 1]]
            wrong += found.get(tuple(q.ids), []) != places
            kept += len(places)
    return wrong + (kept == 0)


def first_error():
    problem = Problem(first=False)
    for n in (1, 2, 3, 9):
        for q, of in zip(chosen(problem, f"first:{n}"), problem.queries, strict=True):
            if list(q.places) != list(range(of.start, min(of.start + n, len(of.ids)))):
                return 1.0
    return float(chosen(problem, "all") is not problem.queries)


def masked_error():
    """Teacher and batch agree: at the chosen places each expects what it does where all are scored."""
    problem = Problem(first=False)
    picked = [replace(q, places=tuple(q.targets[1::2])) for q in problem.queries]
    picked = [q for q in picked if q.places]
    whole = [q for q in problem.queries if len(q.targets) > 1]
    read, wrong = read_tokens(*problem.model, problem.context), 0.0
    with Shards(2) as shards:
        few, all_ = (Teacher(problem.model, read, some, shards, rows=2) for some in (picked, whole))
        for i in range(len(picked)):
            wrong = max(wrong, relative_error(few.logp([i]), all_.logp([i])[1::2]))
    ids, scored = pad(picked)
    targets = [q.ids[t] for q in picked for t in q.places]
    return wrong * (wrong > 1e-13) + float(ids[scored].tolist() != targets) + (TINY.vocab_size != 17)


CHECKS = {"changed": changed_error, "first": first_error, "masked": masked_error}

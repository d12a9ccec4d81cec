"""Checks of examples, rows and scores."""

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from tunes import LABELS, OUTPUTS, in_one_go, raises, tuning

import letters
from minicompress.compression import queries as queries_module
from minicompress.compression.queries import Query
from minicompress.gpt2.prefix import Prefix
from minicompress.training.shards import Shards
from minicompress.tuning import examples, rows, scores
from minicompress.verification.oracles import relative_error


def rows_error():
    """Rows by hand: what is read, where the answer begins, and the answer itself."""
    said = lambda run, q: (letters.Letters().decode(q.ids[: q.start]), letters.Letters().decode(q.ids[q.start :]))
    wrong = 0
    with tuning(held=LABELS[:2]) as run:
        wrong += [said(run, q) for q in run.task.held] != [("Q: the dog\nA:", " pet"), ("Q: the cat\nA:", " pet")]
        wrong += [q.answer for q in run.task.held] != ["pet", "pet"] or list(run.task.words) != ["food", "job", "pet"]
    with tuning(held=LABELS[4:6], verbalizer={"pet": "yes", "food": "no"}, template="{text} is it?") as run:
        wrong += [said(run, q) for q in run.task.held] != [("the hen is it?", " yes"), ("the soup is it?", " no")]
        wrong += (run.task.unnamed, run.task.unused) != (("job",), ())
    with tuning(OUTPUTS, held=OUTPUTS[2:3]) as run:
        wrong += [said(run, q) for q in run.task.held] != [("Q: c\nA:", " no no\n")] or run.task.words != {}
        wrong += run.task.unnamed != () or len(run.task.train) != 8
    with tuning(OUTPUTS, held=OUTPUTS[:1], template="[2]{input}[1]") as run:
        wrong += run.task.held[0].ids[:4] != [-1, -2, 7, -3] or run.recipe.slots != 3
    return wrong


def room_error():
    """A long text is cut to exactly the room that slots, template and the longest word leave; one that fits is not."""
    long = [{"text": "a" * n, "label": label} for n, label in ((200, "x"), (86, "yy"), (5, "x"))]
    wrong = 0
    for slots, template in ((3, "{text}:"), (None, "[2]{text}[1]:")):
        with tuning(long[1:], held=long, slots=slots, template=template) as run:
            sizes = [q.start for q in run.task.held]  # 96 positions: 3 slots, text, a colon, and " yy"
            inside = 3 * (slots is None)
            wrong += sizes != [90 + inside, 87 + inside, 6 + inside] or run.task.cut != 1
    wrong += not raises("90 slots + 6 tokens of the template + 5 tokens of the longest answer need 101", tuning(slots=90).__enter__)
    return wrong


def hold_out_error():
    """A fifth is held out, by its text, by the seed alone, and never trained on."""
    with tuning(LABELS + LABELS) as run, tuning(LABELS + LABELS) as again, tuning(LABELS + LABELS, seed=1) as other:
        asked = lambda some: {q.question for q in some}
        shared = asked(run.task.train) & asked(run.task.held)
        sizes = len(run.task.held) != 4 or len(run.task.train) != 20
        return len(shared) + sizes + (run.task != again.task) + (run.task.held == other.task.held)


def verbalizer_error():
    right = rows.read_verbalizer(" good = very great,bad=terrible") == {"good": "very great", "bad": "terrible"}
    wrong = ["", "good", "good=", "=great", "a=b,,c=d", "a=b,a=c"]
    accepted = sum(not raises("--verbalizer", rows.read_verbalizer, text) for text in wrong)
    alike = {"pet": "x", "food": "x", "job": "y"}
    return accepted + (not right) + (not raises("the same word", tuning(verbalizer=alike).__enter__))


def lines_error():
    """How many wrong lines pass, or are called by another number."""
    wrong = ["[]", "{", "3", "{}", '{"text": "a"}', '{"text": "a", "label": 3.5}', '{"text": "a", "label": true}',
             '{"text": "a", "label": ""}', '{"text": "a", "label": "b", "output": "c"}', '{"text": "a", "label": "b\\nc"}',
             '{"text": "a", "label": null}', '{"text": "a", "label": "\\ud800"}', '{"input": "a", "output": "b"}']  # fmt: skip
    accepted = 0
    with tempfile.TemporaryDirectory() as folder:
        for line in wrong:
            (path := Path(folder) / "f").write_text('{"text": "a\u2028b", "label": 3}\n\n' + line)
            accepted += not raises(f"{path}, line 3", examples.read_examples, path)
        (path := Path(folder) / "f").write_text('{"text": "a\u2028b", "label": 3, "more": [1]}\n\n')
        kind, (one,) = examples.read_examples(path)
    told = (kind, one.fields, one.answer, one.where)
    return accepted + (told != ("label", {"text": "a\u2028b", "more": [1]}, "3", f"{path}, line 1"))


# Scores.


def label_scores_error():
    """Log-likelihoods of words of one, two and three tokens, some with a common beginning, each row read alone."""
    with tuning() as run:
        slots, queries = run.initial, run.task.held + run.task.train[:3]
        words = [[7], [8, 9], [8, 10], [8, 9, 11], [12]]
        found = scores.label_scores(run.model.pair, run.as_prompt(slots).prefix(*run.model.pair), queries, words, run.shards)
        truth = np.empty(found.shape)
        for n, q in enumerate(queries):
            for k, word in enumerate(words):
                logp = in_one_go(run, slots, q.ids[: q.start] + word)[q.start :]
                truth[n, k] = sum(logp[t, token] for t, token in enumerate(word))
        return relative_error(found, truth)


def label_result_error():
    """Two of four right; the loss over the tokens of the right words; macro-F1 by hand."""
    table = np.log([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.4, 0.5, 0.1]])
    queries = [Query([0], 0, None, answer) for answer in ("a", "b", "b", "a")]
    found = scores.label_result(table, queries, {"a": [1], "b": [2, 3], "c": [4]})
    loss = -np.log([0.7, 0.3, 0.5, 0.4]).sum() / 6
    wrong = found["predicted"] != {"a": 2, "b": 2, "c": 0}
    f1 = scores.macro_f1(np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 3]))  # 4/5, 2/3, 0 and 0
    return wrong + relative_error([found["loss"], found["accuracy"], found["macro_f1"], f1], [loss, 0.5, 0.5, (0.8 + 2 / 3) / 4])


def output_result_error():
    """Loss and greedy answers of free texts, each row read alone, token by token."""
    with tuning(OUTPUTS, held=OUTPUTS) as run:
        slots, tokenizer = run.initial, letters.Letters()
        result = run.score(run.as_prompt(slots).prefix(*run.model.pair), run.task.held)
        written = scores.write_answers(run.model.pair, tokenizer, run.as_prompt(slots).prefix(*run.model.pair), run.task.held, run.shards)
        terms, wrong = [], 0
        for q, ours in zip(run.task.held, written, strict=True):
            logp = in_one_go(run, slots, q.ids)
            terms += [-logp[t, q.ids[t]] for t in range(q.start, len(q.ids))]
            ids = list(q.ids[: q.start])
            while len(ids) - q.start < 7 and "\n" not in tokenizer.decode(ids[q.start :]):  # " no no" and its line end
                ids.append(int(in_one_go(run, slots, [*ids, 0])[-1].argmax()))
            wrong += tokenizer.decode(ids[q.start :]).split("\n")[0].strip() != ours
    return wrong + relative_error(result["loss"], np.mean(terms)) + (result["written"] != 8)


def exact_match_error():
    """Right, right but for spaces around it, wrong, right in part; only the first four are written."""
    queries = [Query([0, 1], 1, str(i), answer) for i, answer in enumerate(("yes", "two words", "yes", "a dog", "no"))]
    written = [" yes\n\nQ", " two words \n", " no\n", " a dog and\n"]
    with pytest.MonkeyPatch.context() as patch, Shards(1) as shards:
        ids = iter(map(letters.Letters().encode, written))
        patch.setattr(queries_module, "generate", lambda params, config, rows, *_: [next(ids).ids for _ in rows])
        patch.setattr(scores, "over_queries", lambda model, prefix, queries, *_: [-0.5 for _ in queries])
        found = scores.evaluate((None, letters.CONFIG), letters.Letters(), Prefix(), queries, {}, shards, decode=4)
    return float(found != {"loss": 0.5, "exact_match": 0.5, "written": 4, "different": 4})


def better_error():
    """What is better than what, by either measure; equal is not better, and a loss that is none is worst."""
    result = lambda loss, hits: {"loss": loss, "accuracy": hits}
    cases = [(result(1, 0.5), result(2, 0.9), "loss", True), (result(1, 0.5), result(2, 0.9), "accuracy", False),
             (result(2, 0.5), result(1, 0.5), "accuracy", False), (result(1, 0.5), result(2, 0.5), "accuracy", True),
             (result(1, 0.5), result(1, 0.9), "loss", False), (result(9, 0), None, "loss", True),
             ({"loss": 1, "exact_match": 0.5}, {"loss": 0, "exact_match": 0.2}, "accuracy", True)]
    nan, some = result(math.nan, 0.9), result(9, 0)
    cases += [case for by in ("loss", "accuracy") for case in (
        (some, nan, by, True), (nan, some, by, False), (nan, nan, by, False), (nan, None, by, True))]  # fmt: skip
    return sum(scores.better(one, best, by) != told for one, best, by, told in cases)

"""What the compressed context is asked: from a file, or written by the teacher."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicompress.compression.queries import (
    Query,
    answer_greedily,
    file_queries,
    hold_out,
    pad,
    question_query,
    read_queries,
    self_study,
    text_query,
)  # fmt: skip
from minicompress.gpt2.prefix import read_tokens


def test_a_question_is_read_and_its_answer_scored(small_model):
    query = question_query(small_model.tokenizer, "Who is Rex?", "a dog", "a dog")
    decode = small_model.tokenizer.decode
    assert decode(query.ids[: query.start]) == "Q: Who is Rex?\nA:"
    assert decode(query.ids[query.start :]) == " a dog\n"
    assert (query.question, query.answer) == ("Who is Rex?", "a dog")


def test_of_plain_text_all_but_the_first_token_is_scored(small_model):
    assert text_query(small_model.tokenizer, "Rex is a dog").start == 1
    assert text_query(small_model.tokenizer, "R") is None


@given(sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=5))
def test_padding_is_on_the_right_and_never_scored(sizes):
    queries = [Query(list(range(1, n + 1)), min(start, n)) for n, start in sizes]
    ids, scored = pad(queries)
    assert ids.shape == scored.shape == (len(sizes), max(n for n, _ in sizes))
    for row, query in enumerate(queries):
        assert ids[row].tolist() == query.ids + [0] * (ids.shape[1] - len(query.ids))
        assert np.flatnonzero(scored[row]).tolist() == list(range(query.start, len(query.ids)))


def test_lines_of_a_file():
    lines = ['{"question": "a", "answer": "b"}', "", '  {"question": "c"}', "plain text\n"]
    assert read_queries(lines, "f") == [("a", "b"), ("c", None), "plain text"]


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"question": "a"', "delimiter"),
        ('{"answer": "a"}', "question"),
        ('{"question": 3}', "texts"),
        ('{"question": "a", "answer": 3}', "texts"),
        ('{"question": null}', "texts"),
    ],
)
def test_a_wrong_line_is_named_by_file_and_number(line, words):
    with pytest.raises(ValueError, match=f"some.jsonl, line 3.*: .*{words}.*; write") as error:
        read_queries(["one", "", line], "some.jsonl")
    assert "\n" not in str(error.value)


def test_answers_of_a_file_that_are_empty_or_left_to_the_teacher(small_model, tmp_path):
    """An empty answer is an answer: its line end alone is scored, and the teacher is asked only where none is given."""
    path = tmp_path / "queries.jsonl"
    path.write_text('{"question": "a?", "answer": ""}\n{"question": "b?"}\n{"question": "c?", "answer": "so"}')
    empty, own, given = file_queries(small_model, read_tokens(*small_model.pair, [1, 2, 3]), path)
    decode = small_model.tokenizer.decode
    assert decode(empty.ids[empty.start :]) == " \n" and decode(given.ids[given.start :]) == " so\n"
    assert (empty.answer, own.answer, given.answer) == ("", None, "so")
    (written,) = answer_greedily(*small_model[:2], read_tokens(*small_model.pair, [1, 2, 3]), ["b?"])
    assert decode(own.ids[own.start :]) == f" {written}\n"


def test_a_file_without_queries():
    with pytest.raises(ValueError, match="some.jsonl holds no query"):
        read_queries(["", "  "], "some.jsonl")


@given(
    questions=st.lists(st.integers(0, 6), min_size=1, max_size=20),
    share=st.floats(0.05, 0.5),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_same_question_is_never_both_trained_on_and_held_out(questions, share, seed):
    """Several answers to one question, and plain texts, which are told apart by their tokens."""
    queries = [Query([n, i], 1, f"question {n}" if n % 2 else None) for i, n in enumerate(questions)]
    train, held = hold_out(queries, share, np.random.default_rng(seed))
    assert sorted(q.ids[1] for q in train + held) == list(range(len(queries)))
    assert not {q.question for q in train if q.question} & {q.question for q in held if q.question}
    distinct = len({q.question or tuple(q.ids) for q in queries})
    if distinct > 1:
        assert train and held
        assert len({q.question or tuple(q.ids) for q in held}) == max(1, round(share * distinct))
    else:
        assert not held


def test_hold_out_is_decided_by_the_seed():
    queries = [Query([i, i], 1) for i in range(30)]
    first, second, other = (hold_out(queries, 0.2, np.random.default_rng(seed))[1] for seed in (0, 0, 1))
    assert first == second != other


def test_self_study_is_decided_by_the_seed(small_model):
    prefix = read_tokens(*small_model.pair, [5, 6, 7])

    def study(seed, prefix=prefix):
        return self_study(small_model.pair, small_model.tokenizer, prefix, 6, np.random.default_rng(seed), 12)

    assert study(0) == study(0) != study(1)
    assert study(0) != study(0, read_tokens(*small_model.pair, [8, 9, 10])), "the context makes no difference"
    for query in study(0):
        assert query.answer is None and 0 < query.start < len(query.ids)
    assert len({tuple(q.ids) for q in study(0)}) == len(study(0))


def test_a_line_ends_at_a_line_end_and_nowhere_else(small_model, tmp_path):
    """Not at what Unicode calls a separator of lines, which stands within a question."""
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "where\u2028is it", "answer": "in"}\r\n{"question": "b", "answer": "out"}\n', encoding="utf-8")
    found = file_queries(small_model, read_tokens(*small_model.pair, [1, 2, 3]), path)
    assert [q.answer for q in found] == ["in", "out"] and found[0].question == "where\u2028is it"

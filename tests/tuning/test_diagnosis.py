"""Words as a real vocabulary spells them, and what stays short however much there is to say."""

import pytest
from tunes import LABELS, tuning

import weights_loader
from minicompress.compression.queries import Query
from minicompress.tuning.diagnosis import collisions, data_lines, diagnose, gradient_lines, listed
from minicompress.tuning.rows import Task

EMBEDDED = weights_loader.load_tokenizer(weights_loader.EMBEDDED)


def task(*labels):
    rows = [Query([1, 2], 1, label, label) for label in labels]
    return Task(rows, [Query([3, 2], 1, f"held {label}", label) for label in labels], {w: EMBEDDED.encode(f" {w}").ids for w in labels})


@pytest.mark.parametrize("word, outside", [
    ("dog", False), ("unbelievable", False), ("x7", False), ("好", True), ("naïve 好", True), ("🙂", True),
])  # fmt: skip
def test_a_word_outside_the_vocabulary_is_one_that_is_spelled_in_bytes(word, outside):
    lines = data_lines(task(word, "cat"), EMBEDDED)
    assert [line.startswith("label outside the vocabulary: " + repr(word)) for line in lines] == [True] * outside


def test_words_that_begin_alike_take_one_line_for_each_beginning():
    words = {str(i): [i % 2, i] for i in range(40)}
    lines = collisions(words)
    assert len(lines) == 2 and lines[0] == "the words of '0', '2', '4', '6', '8', '10', '12', '14', … begin with the same token"
    assert collisions({"a": [1, 2], "b": [3], "c": [2, 1]}) == []


def test_of_many_slots_a_few_are_named():
    assert gradient_lines([0.0] * 99 + [1.0]) == ["99 of 100 slots feel no gradient: 0, 1, 2, 3, 4, 5, 6, 7, …"]
    assert listed([5]) == "5" and listed(range(8)) == "0, 1, 2, 3, 4, 5, 6, 7"


def test_not_a_number_is_no_gradient():
    assert gradient_lines([float("nan"), 1.0]) == ["1 of 2 slots feel no gradient: 0"]


def test_a_run_of_no_steps_says_that_nothing_moved():
    with tuning(LABELS, steps=0) as run:
        run.train()
        measured, lines = diagnose(run)
        assert measured["moved"] == 0 and any("moved by 0 of their length" in line for line in lines)

"""What the teacher expects, kept or computed again, and what must not depend on what."""

import numpy as np
import pytest
from compressing import NOTHING, Problem, lossless_error, scores, teacher_error

from minicompress.compression import teacher as teachers
from minicompress.gpt2.prefix import read_slots, read_tokens
from minicompress.training.shards import Shards
from minicompress.verification.oracles import relative_error


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("keep", [0, 2**29])
def test_it_expects_what_reading_everything_at_once_does(temperature, keep, monkeypatch):
    monkeypatch.setattr(teachers, "KEEP_BYTES", keep)
    assert teacher_error(temperature) <= 1e-13


def test_kept_equals_computed_again(monkeypatch):
    problem, answers = Problem(), []
    for keep in (0, 2**29):
        monkeypatch.setattr(teachers, "KEEP_BYTES", keep)
        with Shards(2) as shards:
            teacher = problem.teacher(shards, 2.0)
            assert (teacher.kept is None) == (keep == 0)
            answers.append(teacher.logp([3, 0, 4]))
    assert answers[0].tobytes() == answers[1].tobytes()


def test_states_longer_than_a_chunk(monkeypatch):
    monkeypatch.setattr(teachers, "CHUNK", 2)
    assert teacher_error() <= 1e-13


def test_slots_equal_to_the_context_leave_nothing_to_learn():
    assert lossless_error() <= 1e-13


def test_slots_equal_to_the_context_close_the_whole_gap():
    problem = Problem()
    slots = problem.model[0]["wte"]["weight"][problem.context]
    same = scores(problem, read_slots(*problem.model, slots)[0])
    full = scores(problem, read_tokens(*problem.model, problem.context))
    for s in (same, full):
        assert abs(s.mean_kl) <= 1e-12 and s.agreement == 1


def test_without_context_the_first_token_cannot_be_scored():
    with pytest.raises(ValueError, match="nothing stands before it"):
        scores(Problem(), NOTHING)
    assert scores(Problem(first=False), NOTHING).mean_kl > 0.01


def test_padding_says_nothing():
    """Queries of a batch, against the same queries one batch each, and in another order."""
    problem = Problem()
    together = scores(problem, read_slots(*problem.model, problem.slots)[0]).kl
    problem.queries = problem.queries[::-1]
    again = scores(problem, read_slots(*problem.model, problem.slots)[0]).kl
    assert relative_error(np.concatenate(again[::-1]), np.concatenate(together)) <= 1e-12


def test_a_query_reads_the_slots_and_itself_alone():
    """The other rows of the batch change no row's gradient: the sum over rows alone is the batch's."""
    problem = Problem()
    _, whole = problem.gradient("likelihood")
    ids, scored, total = problem.ids, problem.scored, problem.scored.sum()
    parts = []
    for row in range(len(ids)):
        problem.ids, problem.scored = ids[row : row + 1], scored[row : row + 1]
        parts.append(problem.gradient("likelihood")[1] * scored[row].sum() / total)
    assert relative_error(sum(parts), whole) <= 1e-12

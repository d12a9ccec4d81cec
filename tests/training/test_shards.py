"""Shards: rows cut evenly, run at once, put back in order; mistakes come through, and BLAS gets its threads back."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import ThreadpoolController

from minicompress.training.shards import Shards, available_cores


@given(n=st.integers(1, 12), rows=st.integers(1, 40))
def test_slices_cover_the_rows_evenly_and_none_is_empty(n, rows):
    slices = Shards(n).slices(rows)
    assert [i for s in slices for i in range(rows)[s]] == list(range(rows))
    sizes = [s.stop - s.start for s in slices]
    assert len(slices) == min(n, rows) and min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_the_number_of_shards_is_that_of_the_cores_unless_it_is_given():
    assert Shards().n == available_cores() >= 1 and Shards(3).n == 3


def test_results_stand_in_the_order_of_the_rows_whichever_is_ready_first():
    ready = [threading.Event() for _ in range(4)]

    def last_first(rows):
        if rows.start < 3:
            assert ready[rows.start + 1].wait(10)
        ready[rows.start].set()
        return rows.start

    with Shards(4) as shards:
        assert shards.map(last_first, 4) == [0, 1, 2, 3]


def test_all_shards_run_at_once():
    meeting = threading.Barrier(3, timeout=10)  # broken unless all three are there
    with Shards(3) as shards:
        assert len(set(shards.map(lambda rows: meeting.wait(), 7))) == 3


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_a_shard_raises_comes_through_and_the_next_batch_runs(failing):
    def f(rows):
        if rows.start == failing:
            raise FloatingPointError(f"row {failing}")
        return rows.start

    with Shards(3) as shards:
        with pytest.raises(FloatingPointError, match=f"row {failing}"):
            shards.map(f, 3)
        assert shards.map(lambda rows: rows.start, 3) == [0, 1, 2]


def blas_threads():
    return [library["num_threads"] for library in ThreadpoolController().select(user_api="blas").info()]


@pytest.fixture
def two_threads():
    """A BLAS that is set to two threads, whatever the tests run under."""
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        if set(blas_threads()) != {2}:
            pytest.skip("no BLAS here whose threads can be set")
        yield


@pytest.mark.parametrize("n, within", [(1, 2), (2, 1), (5, 1)])
def test_several_shards_have_one_blas_thread_each_and_a_single_one_keeps_all(n, within, two_threads):
    with Shards(n) as shards:
        assert set(blas_threads()) == {within}
        for seen in shards.map(lambda rows: blas_threads(), n):
            assert set(seen) == {within}
    assert set(blas_threads()) == {2}


@pytest.mark.parametrize("mistake", [ValueError, KeyboardInterrupt])
def test_blas_gets_its_threads_back_after_a_mistake(mistake, two_threads):
    def fails(rows):
        raise mistake

    for _ in range(2):  # the same object may be entered again
        with pytest.raises(mistake), Shards(2) as shards:
            shards.map(fails, 4)
        assert set(blas_threads()) == {2}


def test_leaving_waits_for_shards_that_still_run():
    begun, done = threading.Event(), []

    def f(rows):
        if rows.start == 0:
            begun.wait(10)
            raise ValueError
        begun.set()
        time.sleep(0.05)
        done.append(rows.start)

    with pytest.raises(ValueError), Shards(2) as shards:
        shards.map(f, 2)
    assert done == [1]

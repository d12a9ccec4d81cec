"""The ground floor."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strict_device
from minicompress import arrays
from minicompress.arrays import add_at, array_module, device_module, few_rows, like, pad_rows, rowwise, to_host
from minicompress.layers import gelu, losses
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.trees import child, flatten, tree_map, unflatten

TREE = {"h": {"0": {"ln_1": 1, "ln_2": 2}, "1": {"ln_1": 3}}, "wte": 4}
names = st.text("abc_01", min_size=1, max_size=3)
trees = st.recursive(st.dictionaries(names, st.integers(), min_size=1), lambda t: st.dictionaries(names, t, min_size=1))


def test_flatten_joins_names_with_dots():
    assert flatten(TREE) == {"h.0.ln_1": 1, "h.0.ln_2": 2, "h.1.ln_1": 3, "wte": 4}


@given(tree=trees)
def test_unflatten_undoes_flatten(tree):
    assert unflatten(flatten(tree)) == tree


def test_tree_map_takes_several_trees():
    assert tree_map(lambda a, b: a + b, TREE, TREE) == tree_map(lambda a: 2 * a, TREE)


def test_child_of_nothing_is_nothing():
    assert child(None, "h") is None and child(TREE, "wte") == 4


def test_array_module_finds_the_library():
    assert array_module(np.ones(2)) is np
    assert array_module(strict_device.asarray(np.ones(2))) is strict_device


def test_like_and_to_host_go_there_and_back(xp, rng):
    host = rng.standard_normal(3)
    there = like(host, xp.asarray(np.ones(2)))
    assert array_module(there) is xp
    assert np.array_equal(to_host(there), host)


@given(index=st.lists(st.integers(0, 4), max_size=12))
def test_add_at_counts_every_repetition(index):
    index, rows = np.array(index, int), np.arange(2.0 * len(index)).reshape(-1, 2)
    out, expected = np.ones((5, 2)), np.ones((5, 2))
    add_at(out, index, rows)
    np.add.at(expected, index, rows)
    assert np.array_equal(out, expected)


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
each_cache = pytest.mark.parametrize("cache", [1, 5, 7, 10**6])


@given(shape=shapes, cache=st.integers(1, 80))
def test_a_few_rows_at_a_time_are_all_rows_once(shape, cache):
    x = np.zeros(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "CACHE", cache)
        parts = few_rows(x)
        assert [i for part in parts for i in range(len(x))[part]] == list(range(len(x)))
        assert all(x[part].size <= max(cache, x[0].size) for part in parts)
        assert [few_rows(y) for y in (x[:0], np.zeros(()))] == [[], [...]]


def test_on_a_device_all_rows_are_one_part(monkeypatch):
    monkeypatch.setattr(arrays, "CACHE", 1)
    assert few_rows(strict_device.asarray(np.ones((5, 3)))) == [slice(0, 5)]


@each_cache
@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
def test_rowwise_is_the_function_itself_to_the_last_bit(cache, dtype, rng, monkeypatch):
    x, y = rng.standard_normal((2, 3, 4, 6)).astype(dtype)
    expected = [gelu.gelu(x)[0], gelu.gelu_backward(y, x), losses.log_softmax(x)]
    monkeypatch.setattr(arrays, "CACHE", cache)
    found = [gelu.gelu(x)[0], gelu.gelu_backward(y, x), rowwise(losses.log_softmax, x)]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype and np.array_equal(a, b)
    turned = x.transpose(2, 0, 1)  # rows that do not lie one behind the other
    assert np.array_equal(gelu.gelu(turned)[0], expected[0].transpose(2, 0, 1))
    assert np.array_equal(gelu.gelu(x[0, 0, 0])[0], expected[0][0, 0, 0])


@each_cache
def test_an_update_a_few_rows_at_a_time_is_the_update(cache, rng, monkeypatch):
    """Also of arrays whose numbers do not lie in a row: a copy of one would be updated in its place."""
    draw = lambda: {
        "kv": rng.standard_normal((2, 3, 4)).transpose(2, 0, 1),
        "b": rng.standard_normal(5),
        "0": np.array(2.0),
    }
    params, steps = draw(), [draw() for _ in range(3)]
    found = []
    for size in (10**6, cache):
        monkeypatch.setattr(arrays, "CACHE", size)
        there = tree_map(lambda p: p.copy("K"), params)
        state = adamw_init(there)
        for grads in steps:
            adamw_step(there, grads, state, 0.1, weight_decay=0.1)
        found.append((there, state["m"], state["v"]))
    for one, other in zip(*found, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in params)
    assert not np.array_equal(found[0][0]["kv"], params["kv"])


def test_devices():
    assert device_module("cpu") is np
    with pytest.raises(ValueError, match="must be 'cpu' or 'cuda'"):
        device_module("tpu")


def test_a_missing_gpu_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ValueError, match="--device cpu"):
        device_module("cuda")


def test_rows_are_padded_on_the_right():
    assert pad_rows([[3, 1], [], [4]], -1).tolist() == [[3, 1], [-1, -1], [4, -1]]
    assert pad_rows([[True], [True, True]], False).dtype == bool

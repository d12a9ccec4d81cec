"""The ground floor."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strict_device
from minicompress.arrays import add_at, array_module, device_module, like, to_host
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


def test_devices():
    assert device_module("cpu") is np
    with pytest.raises(ValueError, match="must be 'cpu' or 'cuda'"):
        device_module("tpu")


def test_a_missing_gpu_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ValueError, match="--device cpu"):
        device_module("cuda")

"""Which library holds an array, and the few places where the libraries really differ."""

import sys

import numpy as np


def array_module(x):
    """The module whose functions take `x`: numpy, cupy, or the tests' strict stand-in.

    Looked up among the modules already loaded, so nothing here ever imports CuPy.
    """
    return sys.modules[type(x).__module__.split(".")[0]]


def device_module(device):
    """numpy for `cpu`, cupy for `cuda`. Raises ValueError with the reason where there is no GPU."""
    if device == "cpu":
        return np
    if device != "cuda":
        raise ValueError(f"device is {device!r}; it must be 'cpu' or 'cuda'")
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception as reason:  # no package, no driver, no card: one answer for the user
        raise ValueError(f"device 'cuda' needs CuPy and a CUDA GPU ({reason}); use --device cpu") from None
    return cupy


def like(host, x):
    """The host array `host`, moved to where `x` lives; `host` itself where that is the host."""
    return array_module(x).asarray(host)


def to_host(x):
    """A NumPy array of `x`, wherever it lives."""
    return x.get() if hasattr(x, "get") else np.asarray(x)


def add_at(out, index, rows):
    """out[index[i]] += rows[i] for every i, repeated indices included.

    On the host the rows are sorted and summed group by group: faster than `np.add.at`, and in a
    fixed order. CuPy adds with atomics, so the last bit there depends on the run.
    """
    if array_module(out) is not np:
        array_module(out).add.at(out, index, rows)
        return
    order = np.argsort(index, kind="stable")
    unique, starts = np.unique(index[order], return_index=True)
    out[unique] += np.add.reduceat(rows[order], starts, axis=0)

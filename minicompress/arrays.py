"""Which library holds an array, and the few places where the libraries really differ."""

import sys

import numpy as np

CACHE = 2**16  # numbers that lie within a core's reach: a quarter of a megabyte of float32


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


def zeros_like(x):
    """Zeros of x's shape and dtype, where x lives."""
    return array_module(x).zeros_like(x)


def few_rows(x):
    """Slices of x's first axis, each of as many numbers as a core's cache holds; one slice for all on a GPU.

    Where rows are worked on in several passes, all but the first then find them near.
    """
    if not x.ndim:
        return [...]
    rows = max(1, CACHE // max(1, x[:1].size)) if array_module(x) is np else max(1, len(x))
    return [slice(start, min(start + rows, len(x))) for start in range(0, len(x), rows)]


def rowwise(f, *arrays):
    """f(*arrays), for an f to which each row (..., C) is a case of its own: a few rows at a time."""
    flat = [x.reshape(-1, *x.shape[-1:]) for x in arrays]
    parts = few_rows(flat[0])
    if len(parts) == 1:
        return f(*arrays)
    out = np.empty(flat[0].shape, np.result_type(*flat))
    for part in parts:
        out[part] = f(*(x[part] for x in flat))
    return out.reshape(arrays[0].shape)


def pad_rows(rows, fill=0):
    """Ragged lists -> one host array (B, T), padded on the right: nothing ever stands left of a row."""
    out = np.full((len(rows), max(map(len, rows))), fill)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out


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

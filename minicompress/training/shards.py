"""One batch over several threads, each with single-threaded BLAS.

NumPy releases the interpreter's lock inside its loops, so threads that each take some rows run
*every* operation in parallel, not only the matrix products. The number of BLAS threads is a
setting of the whole process: it is taken on entering and put back on leaving. Results come back
in the order of the shards, and sums over them are taken in that order: same shards, same bits.
"""

import os
from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import ThreadpoolController


def available_cores():
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Shards:
    """`with Shards(n) as shards: results = shards.map(f, n_rows)`; n defaults to the cores."""

    def __init__(self, n=None):
        self.n = n or available_cores()

    def __enter__(self):
        self._limit = ThreadpoolController().limit(limits=1 if self.n > 1 else None, user_api="blas")
        self._limit.__enter__()
        self._pool = ThreadPoolExecutor(self.n)
        return self

    def __exit__(self, *exception):
        self._pool.shutdown()
        self._limit.__exit__(*exception)

    def slices(self, rows):
        """At most n slices that cover range(rows), as even as can be, none empty."""
        n = min(self.n, rows)
        bounds = [rows * i // n for i in range(n + 1)]
        return [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]

    def map(self, f, rows):
        """[f(slice) for each slice of range(rows)], each in its own thread, in the slices' order."""
        return list(self._pool.map(f, self.slices(rows)))

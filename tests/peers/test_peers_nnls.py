"""Non-negative least squares against SciPy's."""

import numpy as np
import pytest

from minicompress.compression.nnls import nnls

optimize = pytest.importorskip("scipy.optimize", reason="the peers are not installed")
pytestmark = pytest.mark.peers


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("n, k", [(8, 3), (40, 20), (100, 64)])
def test_the_solution(n, k, seed):
    rng = np.random.default_rng(seed)
    A, y = np.abs(rng.standard_normal((n, k))), rng.standard_normal(n) + 1
    theirs, _ = optimize.nnls(A, y)
    ours = nnls(A.T @ A, A.T @ y)
    assert np.abs(ours - theirs).max() <= 1e-8 * max(1, np.abs(theirs).max())

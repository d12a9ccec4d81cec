"""Every check of `tune_checks.py` on the real source."""

import pytest
from tune_checks import CHECKS


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check(check):
    assert check() <= 1e-12

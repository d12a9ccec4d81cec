"""Every check of `tune_checks.py` on the real source."""

import pytest
from tune_checks import CHECKS
from tunes import tuning

from minicompress.tuning import rows


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check(check):
    assert check() <= 1e-12


def test_the_template_is_parsed_once_a_task(monkeypatch):
    parse, parsed = rows.parse, []
    monkeypatch.setattr(rows, "parse", lambda text: (parsed.append(text), parse(text))[1])
    with tuning(template="{text} is") as run:
        assert len(run.task.train) > 2 and parsed == ["{text} is"]

"""Every numbered example runs, and says what it set out to show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
SHOWS = {
    "01": "without the stretch",
    "02": "tokens:",
    "03": "largest difference of a logit",
    "04": "falls at rates 1.9",  # 2 where the gradient is right, 1 where it is not
    "05": "slots; KL",
    "06": "kv ",
    "07": "accuracy 100%",
    "08": "alone: True",
    "09": "the same: True",
    "10": "without it",
    "11": "lr 0.03",
    "12": "training loss",
    "13": "the next",
    "14": "slots, kv",
    "15": "a term of the derivative is missing",
    "16": "100% gelu-erf",
    "17": "[4, 4, 4, 4, 4]",
    "18": "16 of 97, gap closed",
    "19": "the one above: True",
}
SLOW = ("11", "12", "13", "14")  # minutes each; what they found is kept in examples/results


def examples():
    for path in EXAMPLES:
        yield pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * path.stem.startswith(SLOW))


@pytest.mark.parametrize("path", list(examples()))
def test_example_runs(path, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MINICOMPRESS_RESULTS": str(tmp_path)}
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert SHOWS[path.stem[:2]] in run.stdout, run.stdout

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
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    assert SHOWS[path.stem[:2]] in run.stdout, run.stdout

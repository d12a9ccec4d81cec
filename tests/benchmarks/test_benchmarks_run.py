"""The benchmarks are fair: at tiny sizes all sides compute the same function. Nothing is timed."""

import json
import subprocess
import sys

import pytest
import sides

pytest.importorskip("peft", reason="the peers are not installed")
run = pytest.importorskip("run")
pytestmark = pytest.mark.peers


@pytest.mark.parametrize("name", [name for name in run.BENCHMARKS if name != "imports"])
def test_all_sides_compute_the_same(name):
    """Losses and gradients of three steps, each after the one before it has changed what is learned."""
    benchmark = run.BENCHMARKS[name]
    told = []
    for side in benchmark.sides.values():
        with side(benchmark.tiny) as step:
            told.append([fact for _ in range(3) for fact in benchmark.facts(step())])
    assert sum(map(bool, told)) > 1  # the floors and peaks of the machine report nothing
    assert sides.facts_agree(told)


def test_a_side_that_computes_something_else_is_noticed():
    assert sides.facts_agree([[1.0, 2.0], [], [1.0, 2.0001]])
    assert not sides.facts_agree([[1.0, 2.0], [], [1.0, 2.1]])
    assert not sides.facts_agree([[1.0, 2.0], [1.0]])
    assert not sides.facts_agree([[50000], [50001]])  # a token id is right or wrong


def test_the_whole_script(tmp_path):
    """Processes, turns, table and file."""
    file = tmp_path / "out.json"
    command = [sys.executable, sides.RUN, "--tiny", "--rounds", "2", "--only", "training-step", "--json", file]
    done = subprocess.run(command, env=sides.environment(), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(file.read_text())["benchmarks"]
    assert result["sides_agree"]
    assert [len(side["all_seconds"]) for side in result["sides"].values()] == [6, 6, 6]
    assert "time, ours / usual" in done.stdout

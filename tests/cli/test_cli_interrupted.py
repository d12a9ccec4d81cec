"""Ctrl-C and kill -9 in the middle of a compression; what is resumed equals what was never stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minicompress.compression.run import Run
from minicompress.prompts.soft_prompt import SoftPrompt

ROOT = Path(__file__).resolve().parents[2]
STEPS = 150


@pytest.fixture
def long(quick):
    return ["compress", "context.txt", *quick, "--steps", STEPS]


@pytest.fixture
def whole(run, here, long):
    assert run(*long, "--out", "whole")[0] == 0
    return SoftPrompt.load("whole").slots.tobytes()


def program(arguments, **options):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "minicompress", *map(str, arguments)],
                            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # fmt: skip


def wait_for(path, process, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.001)


@pytest.mark.parametrize("sent, code", [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_process_stopped_in_the_middle_and_resumed(sent, code, run, here, long, whole):
    process = program([*long, "--out", "p"])
    wait_for(here / "p.checkpoint", process)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert not out and "Traceback" not in err
    if sent == signal.SIGINT:
        assert "--resume goes on from it" in err
    assert (here / "p.checkpoint").exists() and not (here / "p").exists()
    assert run(*long, "--out", "p", "--resume")[0] == 0
    assert SoftPrompt.load("p").slots.tobytes() == whole
    assert not (here / "p.checkpoint").exists()


def test_ctrl_c_in_the_third_step(run, here, long, whole, monkeypatch):
    real, calls = Run.train_slots, []

    def train_slots(self, checkpoint, progress):
        def stops(step, steps, loss):
            calls.append(step)
            if step == 3:
                raise KeyboardInterrupt
            progress(step, steps, loss)

        return real(self, checkpoint, stops)

    monkeypatch.setattr(Run, "train_slots", train_slots)
    code, out, err = run(*long, "--out", "p")
    assert (code, out) == (130, "") and "--resume" in err and "Traceback" not in err
    monkeypatch.undo()
    os.chdir(here)
    assert run(*long, "--out", "p", "--resume")[0] == 0
    assert SoftPrompt.load("p").slots.tobytes() == whole


def test_another_recipe_cannot_go_on(run, here, long, quick, monkeypatch):
    process = program([*long, "--out", "p"])
    wait_for(here / "p.checkpoint", process)
    process.kill()
    process.communicate()
    kept = (here / "p.checkpoint").read_bytes()
    code, out, err = run(*long, "--lr", 0.001, "--out", "p", "--resume")
    assert (code, out) == (2, "") and "another recipe" in err
    assert (here / "p.checkpoint").read_bytes() == kept


def test_on_other_threads_the_line_says_how_to_go_on(run, here, long, monkeypatch):
    """Stopped on a machine with three cores, taken up on one with two."""
    long, real = [*long, "--steps", 4], Run.train_slots
    assert run(*long, "--threads", 3, "--out", "whole")[0] == 0

    def stops(step, *_):
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "train_slots", lambda self, checkpoint, _: real(self, checkpoint, stops))
    assert run(*long, "--threads", 3, "--out", "p")[0] == 130
    monkeypatch.undo()
    os.chdir(here)
    code, out, err = run(*long, "--threads", 2, "--out", "p", "--resume")
    assert (code, out) == (2, "") and "p.checkpoint belongs to a run on 3 threads; --threads 3 goes on from it" in err
    assert run(*long, "--threads", 3, "--out", "p", "--resume")[0] == 0
    assert SoftPrompt.load("p").slots.tobytes() == SoftPrompt.load("whole").slots.tobytes()


def test_without_a_checkpoint_resume_starts_afresh(run, here, long, whole):
    assert run(*long, "--out", "p", "--resume")[0] == 0
    assert SoftPrompt.load("p").slots.tobytes() == whole

"""A tuning stopped anywhere and taken up again equals one that was not, bit for bit."""

import numpy as np
import pytest
from tune_runs import everything, resumed_error, until
from tunes import FITS, OUTPUTS, tuning

from minicompress.trees import flatten


@pytest.mark.parametrize("method, how", FITS)
def test_every_method(method, how):
    assert resumed_error(3, method=method, parameterisation=how, weight_decay=0.1, warmup=2) == 0


@pytest.mark.parametrize("stop", [1, 2, 4, 5, 6])
@pytest.mark.parametrize("options", [{}, {"records": OUTPUTS}, {"patience": 1, "lr": 1.0}], ids=str)
def test_every_step(stop, options):
    """Also where evaluations, the best slots and a patience that runs out lie before it or behind it."""
    with tuning(**options) as run:
        run.train()
        last = run.state["step"]
    if stop <= last:
        assert resumed_error(stop, **options) == 0


def test_stopped_within_an_evaluation_or_an_update(tmp_path):
    """The step in which the interruption falls is done again."""
    with tuning() as whole:
        whole.train()
        expected = everything(whole)
    for method, number in (("score", 1), ("score", 2), ("gradient", 1), ("gradient", 5)):
        with tuning() as run, tuning() as resumed:
            real, calls = getattr(run, method), []

            def stops(*arguments, real=real, calls=calls, number=number):
                calls.append(arguments)
                if len(calls) == number:
                    raise KeyboardInterrupt
                return real(*arguments)

            setattr(run, method, stops)
            with pytest.raises(KeyboardInterrupt):
                run.train(tmp_path / "c")
            resumed.resume(tmp_path / "c")
            resumed.train()
            assert everything(resumed) == expected


def test_checkpoints_are_written_at_evaluations_and_every_fifty_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("minicompress.tuning.run.KEEP_EVERY", 3)
    seen = []

    def progress(run):
        if (tmp_path / "c").exists():
            with tuning(steps=8, evaluate_every=4) as other:
                other.resume(tmp_path / "c")
                seen.append(other.state["step"])

    with tuning(steps=8, evaluate_every=4) as run:
        run.train(tmp_path / "c", progress)
    assert seen == [3, 4, 4, 6, 6, 8]


def test_a_snapshot_stays_as_it_is_and_holds_the_best_slots_once():
    with tuning(lr=0.3) as run:
        seen = []

        def progress(run):
            tree = run.completed[0]
            assert tree["best"] is run.best and tree["raw"] is not run.raw
            seen.append((tree, {name: a.tobytes() for name, a in flatten(tree).items()}))

        run.train(progress=progress)
        assert len({id(tree["best"]) for tree, _ in seen}) > 1, "the best never changed"
        for tree, before in seen:
            assert {name: a.tobytes() for name, a in flatten(tree).items()} == before


def test_the_start_is_hashed_once(tmp_path, monkeypatch):
    with tuning() as run:
        before = run.facts()
        monkeypatch.setattr("minicompress.tuning.run.bytes_hash", None)
        assert run.facts() == before and len(before["start"]) == 16


def test_seconds_go_on(tmp_path):
    with tuning() as run, tuning() as resumed:
        with pytest.raises(KeyboardInterrupt):
            run.train(tmp_path / "c", until(3))
        resumed.resume(tmp_path / "c")
        before = dict(resumed.seconds)
        assert before == run.completed[1]["seconds"] and min(before.values()) > 0
        resumed.train()
        assert all(resumed.seconds[name] > before[name] for name in before)


def test_the_same_recipe_gives_the_same_bits_and_another_seed_others():
    found = []
    for seed in (0, 0, 1):
        with tuning(seed=seed, method="p-tuning") as run:
            run.train()
            found.append(everything(run))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"{}"])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    (tmp_path / "c").write_bytes(content)
    with tuning() as run, pytest.raises(ValueError, match="not a checkpoint of this program.*delete it"):
        run.resume(tmp_path / "c")


def test_float32_stays_float32(tmp_path):
    import letters

    for method in ("prompt", "prefix", "deep", "p-tuning"):
        with tuning(method=method, model=letters.model(dtype=np.float32)) as run:
            run.train(tmp_path / "c")
            run.resume(tmp_path / "c")
            tree = run.snapshot()[0]
            assert {a.dtype for a in flatten(tree).values()} == {np.dtype(np.float32)}
            assert run.prompt().slots.dtype == np.float32

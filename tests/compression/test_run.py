"""One compression: decided by its recipe, stopped anywhere, taken up again bit for bit."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from minicompress.compression.objectives import TOP_K
from minicompress.compression.problem import Recipe, check_positions
from minicompress.compression.run import Run, initial_slots
from minicompress.evaluation.baselines import evaluate
from minicompress.training.checkpoints import load_tree
from minicompress.trees import flatten


def facts(run):
    """Everything that training changes, as bytes."""
    state = {"slots": run.slots, "m": run.state["m"]["slots"], "v": run.state["v"]["slots"]}
    return {name: (a.dtype, a.tobytes()) for name, a in state.items()}, run.state["step"]


def stopped_at(run, last, checkpoint, **options):
    def progress(step, steps, loss):
        if step == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train_slots(checkpoint, progress, **options)


def test_the_same_recipe_gives_the_same_bits(new_run):
    first, second, other = new_run(), new_run(), new_run(seed=1)
    for run in (first, second, other):
        run.train_slots()
    assert facts(first) == facts(second) != facts(other)


@pytest.mark.parametrize("loss, temperature", [("kl", 1.0), ("kl", 2.0), ("likelihood", 1.0), ("js", 2.0)])
@pytest.mark.parametrize("last", [1, 2, 3, 4, 5, 6])
def test_a_run_stopped_anywhere_and_resumed_equals_one_that_was_not(last, loss, temperature, new_run, tmp_path):
    whole, broken = new_run(loss=loss, temperature=temperature), new_run(loss=loss, temperature=temperature)
    whole.train_slots()
    stopped_at(broken, last, tmp_path / "c")
    resumed = new_run(loss=loss, temperature=temperature)
    resumed.resume(tmp_path / "c")
    assert resumed.state["step"] == last and facts(resumed) == facts(broken)
    resumed.train_slots(tmp_path / "c")
    assert facts(resumed) == facts(whole)


def test_stopped_before_the_first_step_ends_and_again_after_it(new_run, tmp_path):
    """The interruption may come anywhere, also between two steps, as a step is computed."""
    whole, run = new_run(), new_run()
    whole.train_slots()
    expects, calls = run.expects.logp, []

    def logp(numbers):
        calls.append(numbers)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return expects(numbers)

    run.expects.logp = logp
    with pytest.raises(KeyboardInterrupt):
        run.train_slots(tmp_path / "c")
    resumed = new_run()
    resumed.resume(tmp_path / "c")
    resumed.train_slots()
    assert facts(resumed) == facts(whole)


def test_a_checkpoint_every_few_steps(new_run, tmp_path):
    run, steps = new_run(), []

    def progress(step, *_):
        if (tmp_path / "c").exists():
            other = new_run()
            other.resume(tmp_path / "c")
            steps.append(other.state["step"])

    run.train_slots(tmp_path / "c", progress, every=2)
    assert steps == [2, 2, 4, 4]


def test_a_resumed_run_has_spent_what_was_spent_before(new_run, tmp_path):
    stopped, resumed = new_run(), new_run()
    stopped_at(stopped, 4, tmp_path / "c")
    resumed.resume(tmp_path / "c")
    assert resumed.seconds_training == pytest.approx(stopped.seconds_training)
    resumed.train_slots()
    assert resumed.seconds > resumed.seconds_training > stopped.seconds_training > 0


@pytest.mark.parametrize("change", [{"steps": 7}, {"seed": 1}, {"slots": 4}, {"lr": 0.01}, {"loss": "likelihood"}])
def test_the_checkpoint_of_another_recipe_is_refused(change, new_run, tmp_path):
    stopped_at(new_run(), 2, tmp_path / "c")
    with pytest.raises(ValueError, match="belongs to a run with another recipe; leave out --resume"):
        new_run(**change).resume(tmp_path / "c")


def test_the_checkpoint_of_another_context_is_refused(new_run, small_model, shards, tmp_path):
    stopped_at(new_run(), 2, tmp_path / "c")
    other = Run(small_model, small_model, "Another text", Recipe(slots=3, steps=6, rows=4),
                tmp_path / "queries.jsonl", shards=shards)  # fmt: skip
    with pytest.raises(ValueError, match="another context"):
        other.resume(tmp_path / "c")


def test_a_run_keeps_the_names_of_what_it_began_with(new_run):
    """The files may change while it trains."""
    run = new_run()
    before = run.facts()
    run.model = run.teacher = run.model._replace(hashed=lambda: "1" * 16)
    assert run.facts() == before and before["model"] == "0" * 16


def test_the_checkpoint_of_another_teacher_is_refused(new_run, small_model, shards, tmp_path):
    """The teacher's distributions are what the slots follow: another teacher is another run."""
    stopped_at(new_run(), 2, tmp_path / "c")
    teacher = small_model._replace(hashed=lambda: "1" * 16)
    other = Run(small_model, teacher, new_run().text, Recipe(slots=3, steps=6, rows=4),
                tmp_path / "queries.jsonl", shards=shards)  # fmt: skip
    with pytest.raises(ValueError, match="another teacher"):
        other.resume(tmp_path / "c")


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"{}"])
def test_a_file_that_is_no_checkpoint_is_refused(content, new_run, tmp_path):
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(ValueError, match="not a checkpoint of this program.*delete it"):
        new_run().resume(tmp_path / "c")


LOSSES = [{"loss": loss} for loss in ("reverse-kl", "js")] + [{"loss": loss, "top_k": 5} for loss in TOP_K]
each_loss = pytest.mark.parametrize("options", LOSSES, ids=lambda options: options["loss"])


@each_loss
def test_every_loss_trains_and_is_resumed(options, new_run, tmp_path):
    seen, whole, broken, plain = [], new_run(**options, steps=30), new_run(**options), new_run()
    whole.train_slots(progress=lambda step, steps, loss: seen.append(loss))
    assert np.mean(seen[-5:]) < np.mean(seen[:5]) and np.isfinite(whole.slots).all()
    whole = new_run(**options)
    whole.train_slots()
    stopped_at(broken, 3, tmp_path / "c")
    resumed = new_run(**options)
    resumed.resume(tmp_path / "c")
    resumed.train_slots()
    plain.train_slots()
    assert facts(resumed) == facts(whole) != facts(plain)


@pytest.mark.parametrize("options, words", [
    ({"loss": "mse"}, "'mse'; it can be kl or"),
    ({"loss": "top-k"}, "top_k is None and the loss top-k"),
    ({"loss": "kl", "top_k": 5}, "the others have none"),
    ({"loss": "top-k-tail", "top_k": 0}, "from 1 to 2,048"),
    ({"loss": "top-k-tail", "top_k": 2049}, "top_k is 2,049; it must be from 1 to 2,048"),
], ids=str)  # fmt: skip
def test_a_loss_that_cannot_be_is_refused(options, words, new_run):
    with pytest.raises(ValueError, match=words):
        new_run(**options)


def test_the_checkpoint_of_a_recipe_without_a_top_k_is_resumed(new_run, tmp_path):
    """As one is that was written before there was a choice; with a top_k it is another recipe."""
    whole, broken = new_run(), new_run()
    stopped_at(broken, 2, tmp_path / "c")
    _, told = load_tree(tmp_path / "c")
    assert "top_k" not in told["recipe"]
    resumed = new_run()
    resumed.resume(tmp_path / "c")
    for run in (whole, resumed):
        run.train_slots()
    assert facts(resumed) == facts(whole)
    stopped_at(new_run(loss="top-k", top_k=5), 2, tmp_path / "c")
    with pytest.raises(ValueError, match="another recipe"):
        new_run(loss="top-k", top_k=6).resume(tmp_path / "c")


def test_the_prompt_remembers_how_it_was_made(new_run):
    run = new_run(loss="top-k-tail", top_k=5)
    run.train_slots()
    provenance = json.loads(json.dumps(run.prompt().provenance))
    said = {name: value for name, value in asdict(run.recipe).items() if value is not None}
    assert provenance["model"] == "0" * 16 and provenance["recipe"] == said and said["queries"] == "file"
    assert provenance["context_tokens"] == len(run.ids) and provenance["shards"] == 2
    assert run.prompt().slots.shape == (3, 24) and run.prompt().slots.dtype == np.float32


def test_training_changes_no_weight_and_not_the_initial_slots(new_run, small_model):
    before = {name: w.tobytes() for name, w in flatten(small_model.pair[0]).items()}
    run = new_run()
    initial = run.initial.tobytes()
    run.train_slots()
    assert run.initial.tobytes() == initial != run.slots.tobytes()
    assert {name: w.tobytes() for name, w in flatten(small_model.pair[0]).items()} == before


def test_as_many_slots_as_tokens_close_the_whole_gap_before_the_first_step(new_run):
    run = new_run(slots=len(new_run().ids), steps=0)
    run.train_slots()
    rows = evaluate(run)["rows"]
    for name in ("init", "sigma", "first", "last", "full"):
        assert abs(rows[name]["kl"]) <= 1e-6 and rows[name]["gap_closed"] == pytest.approx(1, abs=1e-5)
        assert rows[name]["top1_agreement"] == 1
    assert rows["none"]["gap_closed"] == 0 and rows["none"]["kl"] > 0.01


@pytest.mark.parametrize("init", ["text", "vocab", "noise", "some other words"])
def test_where_the_slots_begin(init, small_model):
    recipe = Recipe(slots=5, init=init)
    first, second = (initial_slots(small_model, [7, 8, 9, 10, 11], recipe) for _ in range(2))
    assert first.shape == (5, 24) and first.dtype == np.float32 and first.tobytes() == second.tobytes()
    if init == "text":
        assert (first == small_model.wte[[7, 8, 9, 10, 11]]).all()


def test_self_study_decides_the_queries_by_the_seed(small_model, shards):
    def queries(seed):
        run = Run(small_model, small_model, "A short text.", Recipe(slots=2, seed=seed, self_study=6), shards=shards)
        return [q.ids for q in run.train], [q.ids for q in run.held]

    assert queries(0) == queries(0) != queries(1)


def test_positions_are_counted_with_the_arithmetic(small_model):
    with pytest.raises(ValueError, match="n_positions is 128; 1,010 context tokens \\+ 20 slots need 1,030"):
        check_positions(small_model.pair[1], context_tokens=1010, slots=20)
    check_positions(small_model.pair[1], context_tokens=100, slots=28)


def test_teachers_of_another_vocabulary_are_refused(small_model, shards):
    class Other:
        get_vocab = staticmethod(dict)

    with pytest.raises(ValueError, match="different vocabularies"):
        Run(small_model, small_model._replace(tokenizer=Other), "text", Recipe(), shards=shards)

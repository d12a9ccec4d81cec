"""A compression into every carrier, at every kind of positions, from the first step to the table."""

import json

import numpy as np
import pytest

import letters
import strict_device
from minicompress.arrays import to_host
from minicompress.compression.problem import Recipe
from minicompress.compression.queries import answer_greedily
from minicompress.compression.run import Run
from minicompress.compression.teacher import Teacher
from minicompress.evaluation.baselines import evaluate, trained_prefixes
from minicompress.evaluation.metrics import score
from minicompress.prompts.carriers import slots_shape
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.trees import flatten, tree_map

OPTIONS = [
    {"carrier": carrier, "positions": positions} | beta
    for carrier, beta in (("embeddings", {}), ("hidden", {}), ("kv", {}), ("kv", {"beta": True}))
    for positions in ("compact", "logical", "unshifted")
]
each = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))


@pytest.fixture
def new_run(shards, tmp_path):
    return lambda **changes: letters.run(tmp_path, shards, **changes)


def facts(run):
    """Everything that training changes, as bytes."""
    state = {"slots": run.slots, "m": run.state["m"]["slots"], "v": run.state["v"]["slots"]}
    return {name: (x.dtype, x.tobytes()) for name, x in flatten(state).items()}, run.state["step"]


@each
def test_training_lowers_the_loss_and_moves_every_number(options, new_run):
    run, losses = new_run(steps=40, rows=8, lr=0.1, **options), []
    initial = {name: x.copy() for name, x in flatten(run.initial).items()}
    run.train_slots(progress=lambda step, steps, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    for name, x in flatten(run.slots).items():
        assert (x != initial[name]).mean() > 0.99 and x.shape == initial[name].shape
        assert (flatten(run.initial)[name] == initial[name]).all()


@each
@pytest.mark.parametrize("last", [1, 3])
def test_a_run_resumed_equals_one_that_was_not_stopped(options, last, new_run, tmp_path):
    whole, broken, resumed = (new_run(steps=4, **options) for _ in range(3))
    whole.train_slots()

    def stop(step, *_):
        if step == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken.train_slots(tmp_path / "c", stop)
    resumed.resume(tmp_path / "c")
    assert resumed.state["step"] == last and facts(resumed) == facts(broken)
    resumed.train_slots(tmp_path / "c")
    assert facts(resumed) == facts(whole)


@pytest.mark.parametrize("other", [{"carrier": "hidden"}, {"positions": "logical"}, {"beta": True}])
def test_the_checkpoint_of_another_carrier_is_refused(other, new_run, tmp_path):
    new_run(carrier="kv").save(tmp_path / "c")
    with pytest.raises(ValueError, match="belongs to a run with another recipe"):
        new_run(**{"carrier": "kv"} | other).resume(tmp_path / "c")


@each
def test_what_is_saved_is_what_the_table_judges(options, new_run, tmp_path):
    run = new_run(**options)
    run.train_slots()
    run.prompt().save(tmp_path / "p")
    prompt, (params, config) = SoftPrompt.load(tmp_path / "p"), run.model.pair
    prompt.check_model(config)
    assert prompt.slots.shape == slots_shape(options["carrier"], config, 4) and prompt.length == 4
    assert (prompt.beta is not None) == ("beta" in options)
    assert prompt.start == {"compact": 4, "logical": len(letters.TEXT), "unshifted": 0}[options["positions"]]
    assert json.loads(json.dumps(prompt.provenance))["recipe"]["carrier"] == options["carrier"]
    held = Teacher(run.teacher.pair, run.read, run.held, run.shards)
    told = score(run.model.pair, run.model.tokenizer, prompt.prefix(params, config), run.held, held, run.shards)
    rows = evaluate(run)["rows"]
    assert rows["sigma"]["kl"] == told.mean_kl and rows["sigma"]["positions"] == 4
    assert rows["sigma"]["kl"] != rows["init"]["kl"]


@each
def test_as_many_slots_as_tokens_begin_as_the_context(options, new_run):
    """Only where tokens begin elsewhere than behind that context does anything differ."""
    run = new_run(slots=len(letters.TEXT), steps=0, **options)
    run.train_slots()
    row = evaluate(run)["rows"]["sigma"]
    if options["positions"] == "unshifted":
        assert row["kl"] > 1e-3
    else:
        assert abs(row["kl"]) <= 1e-13 and row["gap_closed"] == pytest.approx(1, abs=1e-12)


@each
def test_controls_are_of_the_same_carrier(options, new_run):
    run = new_run(steps=2, **options)
    run.train_slots()
    found = trained_prefixes(run, letters.OTHER)
    starts = {"compact": (4, 4), "unshifted": (0, 0), "logical": (len(letters.OTHER), len(letters.TEXT))}
    assert (found["other"].start, found["queries"].start) == starts[options["positions"]]
    assert len(found["other"].past[0]) == (3 if "beta" in options else 2)


@each
def test_questions_are_answered_behind_every_carrier(options, new_run):
    run = new_run(**options)
    prefix = run.as_prompt(run.slots).prefix(*run.model.pair)
    answers = answer_greedily(*run.model[:2], prefix, ["who is tom?", "is it cold?"])
    assert len(answers) == 2 and all(isinstance(answer, str) for answer in answers)


def test_an_answer_ends_at_the_last_position_wherever_tokens_begin():
    """96 positions: with tokens from 70 on, a question of 18 letters leaves room for 8; none is wasted, none too many."""
    given = letters.model()
    kv = np.random.default_rng(0).standard_normal(slots_shape("kv", letters.CONFIG, 90))
    long = "?" * 14
    for positions, offset, room in (("logical", 70, 26), ("unshifted", None, 96), ("logical", 95 - 21, 22)):
        prefix = SoftPrompt(kv, "kv", positions, offset).prefix(*given.pair)
        (answer,) = answer_greedily(given.pair, given.tokenizer, prefix, [long])
        assert len(answer) <= min(32, room - len(f"Q: {long}\nA:"))


@pytest.mark.parametrize("positions", ["logical", "unshifted"])
def test_only_behind_compact_slots_do_slots_and_query_share_the_positions(positions, new_run):
    """60 slots and 48 tokens of a query are more than 96 positions; apart from one another they fit."""
    with pytest.raises(ValueError, match=r"n_positions is 96; 60 slots \+ 48 tokens of a query need 108"):
        new_run(slots=60, carrier="kv")
    run = new_run(slots=60, carrier="kv", positions=positions, steps=1)
    run.train_slots()
    with pytest.raises(ValueError, match="n_positions is 96; 97 slots need 97"):
        new_run(slots=97, carrier="kv", positions=positions)


@pytest.mark.parametrize("options", OPTIONS[1::3], ids=lambda o: "-".join(map(str, o.values())))
def test_a_run_on_another_device(options, xp, shards, tmp_path):
    letters.write_questions(tmp_path)
    recipe = Recipe(slots=3, steps=3, rows=4, **options)

    def run(xp):
        given = letters.model()
        given = given._replace(pair=(tree_map(xp.asarray, given.pair[0]), given.pair[1]))
        made = Run(given, given, letters.TEXT, recipe, tmp_path / "questions.jsonl", shards=shards)
        made.train_slots()
        return made

    here, there = run(np), run(xp)
    exact = 0 if xp in (np, strict_device) else 1e-9
    for name, x in flatten(there.slots).items():
        assert np.abs(to_host(x) - flatten(here.slots)[name]).max() <= exact
    ours, theirs = (evaluate(made)["rows"]["sigma"] for made in (here, there))
    assert theirs["kl"] == pytest.approx(ours["kl"], abs=exact, rel=1e-12)
    prompt = there.prompt()
    assert isinstance(prompt.slots, np.ndarray) and isinstance(prompt.initial, np.ndarray)
    assert (prompt.initial == here.prompt().initial).all()

"""Slots that begin as another producer's, a first one that stays, and any few of them that do alone."""

from dataclasses import replace

import numpy as np
import pytest

import letters
from minicompress.compression.matching import attention_matching
from minicompress.compression.run import PROMPT_FILE, initial_slots
from minicompress.compression.select import SELECTORS
from minicompress.compression.teacher import Teacher
from minicompress.evaluation.baselines import trained_prefixes
from minicompress.evaluation.metrics import score
from minicompress.prompts.carriers import cut
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.training.schedules import any_prefix
from minicompress.trees import flatten

CARRIERS = [{"carrier": "embeddings"}, {"carrier": "hidden"}, {"carrier": "kv"}, {"carrier": "kv", "beta": True}]
each = pytest.mark.parametrize("options", CARRIERS, ids=lambda o: "-".join(map(str, o.values())))


@pytest.fixture
def new_run(shards, tmp_path):
    return lambda **changes: letters.run(tmp_path, shards, **changes)


def written(path, prompt):
    replace(prompt, provenance={"model": "0"}).save(path)
    return str(path)


def kl(run, prompt):
    held = Teacher(run.teacher.pair, run.read, run.held, run.shards)
    return score(run.model.pair, run.model.tokenizer, prompt.prefix(*run.model.pair), run.held, held, run.shards).mean_kl


@each
def test_the_first_slot_stays_and_all_others_move(options, new_run):
    run = new_run(freeze_first=True, steps=4, lr=0.1, **options)
    run.train_slots()
    first = lambda tree: flatten(cut(tree, 1))
    assert all((x == first(run.initial)[name]).all() for name, x in first(run.slots).items())
    for name, x in flatten(run.slots).items():
        moved = x != flatten(run.initial)[name]
        assert (moved[..., 1:] if name == "beta" else moved[..., 1:, :]).all()


@each
def test_a_run_that_trains_any_prefix_is_resumed_to_the_bit(options, new_run, tmp_path):
    whole, broken, resumed = (new_run(steps=6, any_prefix=True, freeze_first=True, **options) for _ in range(3))
    whole.train_slots()

    def stop(step, *_):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken.train_slots(tmp_path / "c", stop)
    resumed.resume(tmp_path / "c")
    resumed.train_slots()
    bits = lambda run: {name: x.tobytes() for name, x in flatten(run.slots).items()}
    assert bits(whole) == bits(resumed)


@pytest.mark.parametrize("positions, start", [("compact", None), ("logical", len(letters.TEXT)), ("unshifted", 0)])
def test_few_slots_stand_in_training_as_they_will_alone(positions, start, new_run):
    run = new_run(carrier="kv", positions=positions, any_prefix=True, steps=1)
    run.train_slots()
    for seed in range(8):
        used = any_prefix(4, np.random.default_rng(seed))
        prefix, _ = run.fewer(np.random.default_rng(seed)).read(*run.model.pair, run.slots)
        assert prefix.length == used and prefix.start == (used if start is None else start)


def test_any_prefix_draws_half_of_the_steps_whole_and_the_rest_evenly_in_the_logarithm():
    drawn = np.array([any_prefix(16, np.random.default_rng(seed)) for seed in range(4000)])
    assert drawn.min() == 1 and drawn.max() == 16
    assert abs((drawn == 16).mean() - 0.5 - 0.5 * np.log(16 / 15.5) / np.log(16)) < 0.03
    assert abs((drawn == 1).mean() - 0.5 * np.log(1.5) / np.log(16)) < 0.02  # what rounds to 1 lies below 1.5
    assert any_prefix(1, np.random.default_rng(0)) == 1


@pytest.mark.parametrize("name", ["pooled-kv", "first", "h2o"])
def test_it_begins_as_another_producers_result(name, new_run, tmp_path):
    pair, ids = letters.model().pair, letters.model().tokenizer.encode(letters.TEXT).ids
    made = SELECTORS[name](pair, ids, 4, np.random.default_rng(0))
    init = written(tmp_path / f"p{PROMPT_FILE}", made)
    kinds = {"carrier": "kv", "positions": made.positions, "offset": made.offset}
    run = new_run(init=init, steps=8, lr=0.03, **kinds)
    assert (run.initial == made.slots).all()
    begun, before = run.as_prompt(run.initial), kl(run, made)
    assert kl(run, begun) == before and begun.offset == made.offset
    run.train_slots()
    assert kl(run, run.as_prompt(run.slots)) < before


def test_masses_come_along_and_what_is_absent_stays_so(new_run, tmp_path):
    pair, ids = letters.model().pair, letters.model().tokenizer.encode(letters.TEXT).ids
    made = attention_matching(pair, ids, 4, [ids[:9], ids[9:16]])
    made = replace(made, beta=made.beta.copy())
    made.beta[0, 1, 2] = -np.inf
    init = written(tmp_path / f"p{PROMPT_FILE}", made)
    run = new_run(init=init, carrier="kv", beta=True, positions="logical", steps=5, lr=0.1)
    assert (run.initial["beta"] == made.beta).all()
    run.train_slots()
    assert run.slots["beta"][0, 1, 2] == -np.inf and np.isfinite(run.slots["slots"]).all()
    assert np.isfinite(np.delete(run.slots["beta"].ravel(), np.flatnonzero(made.beta.ravel() == -np.inf))).all()
    with pytest.raises(ValueError, match="a mass for every key; add --beta"):
        new_run(init=init, carrier="kv", positions="logical")


@pytest.mark.parametrize("carrier", ["hidden", "kv"])
def test_embeddings_begin_any_carrier_and_say_the_same(carrier, new_run, tmp_path):
    made = SoftPrompt(np.random.default_rng(3).standard_normal((6, letters.CONFIG.n_embd)))
    run = new_run(init=written(tmp_path / f"p{PROMPT_FILE}", made), carrier=carrier, slots=5)
    assert kl(run, run.as_prompt(run.initial)) == pytest.approx(kl(run, made.first(5)), rel=1e-12)


@pytest.mark.parametrize("carrier, changes, said", [
    ("embeddings", {"slots": 7}, "has 6 slots, from which 7 cannot begin"),
    ("hidden", {"carrier": "kv"}, "has hidden, from which --carrier kv cannot begin"),
    ("embeddings", {"template": "[6]{text}"}, "has a template"),
    ("embeddings", {"model": "1"}, "was made for the model 1; this one is 0"),
])  # fmt: skip
def test_what_it_cannot_begin_as(carrier, changes, said, new_run, tmp_path):
    shape = {"embeddings": (6, 12), "hidden": (2, 6, 12)}[carrier]
    model = changes.pop("model", "0")
    prompt = SoftPrompt(np.ones(shape), carrier, template=changes.pop("template", None), provenance={"model": model})
    prompt.save(tmp_path / f"p{PROMPT_FILE}")
    with pytest.raises(ValueError, match=said):
        new_run(**{"init": str(tmp_path / f"p{PROMPT_FILE}"), "carrier": carrier} | changes)


def test_its_slots_are_a_copy(new_run, tmp_path):
    made = SoftPrompt(np.ones((4, 12)))
    run = new_run(init=written(tmp_path / f"p{PROMPT_FILE}", made), steps=2, lr=0.1)
    run.train_slots()
    assert (run.initial == 1).all() and (initial_slots(run.model, run.ids, run.recipe) == 1).all()


def test_a_control_does_not_begin_as_this_contexts_slots(new_run, tmp_path):
    """The slots of another context would else have learned this one."""
    made = SELECTORS["pooled-kv"](letters.model().pair, letters.model().tokenizer.encode(letters.TEXT).ids, 4, None)
    kinds = {"carrier": "kv", "positions": made.positions, "offset": made.offset, "steps": 0}
    run = new_run(init=written(tmp_path / f"p{PROMPT_FILE}", made), **kinds)
    other = trained_prefixes(run, letters.OTHER)["other"]
    plain = trained_prefixes(new_run(init="text", **kinds | {"offset": None}), letters.OTHER)["other"]
    for (k, v), (k_plain, v_plain) in zip(other.past, plain.past, strict=True):
        assert (k == k_plain).all() and (v == v_plain).all()
    assert other.start == len(letters.OTHER) != made.offset


def test_one_slot_that_stays_trains_nothing(new_run):
    with pytest.raises(ValueError, match="--freeze-first leaves nothing to train"):
        new_run(slots=1, freeze_first=True)

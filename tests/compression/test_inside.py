"""The internal match: its definition, its gradient by every oracle, behind every carrier, in a run and on a device."""

import numpy as np
import pytest
from compressing import Problem
from hypothesis import given
from hypothesis import strategies as st
from inside_checks import CHECKS, LOSSES, carrier_error, gradient, gradient_error, loss_error, match_error, sum_by_hand
from test_run import facts, stopped_at

import letters
import strict_device
from minicompress.arrays import to_host
from minicompress.compression import inside
from minicompress.compression.problem import Recipe
from minicompress.compression.run import Run
from minicompress.gpt2 import block, model
from minicompress.gpt2 import prefix as prefixes
from minicompress.trees import tree_map
from minicompress.verification.oracles import central_difference, leaning_direction, relative_error, taylor_rates
from test_planted_bugs import Bug, planted_error

BUGS = [
    Bug("no two in the slope", "match", inside.match_backward, "2 * share", "share"),
    Bug("the scale forgotten in the loss", "match", inside.match, "1 / (scale[:, None, None] *", "1 / (1 + 0 * scale[:, None, None] *"),
    Bug("summed over layers", "match", inside.match, "(x.shape[0] * x.shape[2])", "x.shape[2]"),
    Bug("the state after the token, not before it", "loss, hidden", inside.look, "scored[:, 1:]", "np.roll(scored, 1, 1)[:, 1:]"),
    Bug("the stream before each block", "loss, hidden", inside.look, "stream[1:]", "stream[:-1]"),
    Bug("gradients at the wrong places", "gradient, hidden", inside.look_backward, "scored[:, 1:]", "np.roll(scored, 1, 1)[:, 1:]"),
    Bug("a layer too late", "gradient, hidden", inside.look_backward,
        '[xp.zeros_like(layers["hidden"][0]), *layers["hidden"]]', '[*layers["hidden"], xp.zeros_like(layers["hidden"][0])]'),
    Bug("attention's part dropped", "gradient, attention", inside.look_backward, 'layers.get("attention")', "None"),
    Bug("weights of a sum left out of the gradient", "gradient, 0.5*hidden+2*attention", inside.objective_inside,
        "match_backward(dlosses, cache)", "match_backward(dlosses / term.weight, cache)"),
    Bug("a second term of a kind in place of the first", "loss, kl+0.3*hidden", inside.asked_inside, "losses.sum() + found", "found"),
    Bug("the scale of one query alone", "loss, hidden", inside.TeacherInside.mean_square, "for x in xs) / sum(x[0].size for x in xs)",
        "for x in xs[:1]) / xs[0][0].size"),
    Bug("a scale for all layers", "loss, attention", inside.TeacherInside.mean_square, ".sum((1, 2)) for", ".sum() * np.ones(len(x)) for"),
    Bug("the last stream's gradient before the last norm", "gradient, hidden", model.backward, "dx + dstream[-1]", "dx"),
    Bug("the stream's gradient dropped between blocks", "gradient, hidden", model.backward, "dx + dstream[layer]", "dx"),
    Bug("asked of attention in another layer", "gradient, attention", model.backward, "dattended[layer]", "dattended[-1 - layer]"),
    Bug("asked of attention, given to the stream as well", "gradient, attention", block.block_backward, "dx += da", "dx += dadded"),
    Bug("what attention adds, with x", "loss, attention", block.block, "attended.append(a.copy())", "attended.append(a + x)"),
    Bug("a view of what is added to", "loss, attention", block.block, "attended.append(a.copy())", "attended.append(a)"),
    Bug("asked inside, not handed on", "gradient, kl+0.3*hidden", prefixes.predictors_backward, "dstream, dattended)\n", "None, dattended)\n"),
]  # fmt: skip
each_loss = pytest.mark.parametrize("loss", LOSSES)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-12


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert not planted_error(bug, CHECKS, monkeypatch, (ValueError,)) <= 1e-10


@each_loss
@pytest.mark.parametrize("first", [True, False], ids=["first scored", "first not scored"])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_the_complex_step(loss, first, shards):
    assert gradient_error(loss, 1, first, shards) <= 1e-12 and loss_error(loss, first) <= 1e-13


@given(loss=st.sampled_from(LOSSES), seed=st.integers(0, 2**32 - 1), first=st.booleans())
def test_finite_differences(loss, seed, first):
    assert gradient_error(loss, seed, first, 1, central_difference) <= 1e-6


@given(seed=st.integers(0, 2**32 - 1))
def test_finite_differences_of_the_match_alone(seed):
    assert match_error(central_difference, seed) <= 1e-6


@pytest.mark.parametrize("carrier", ["embeddings", "hidden", "kv"])
@pytest.mark.parametrize("loss", LOSSES[:3])
def test_behind_every_carrier(carrier, loss):
    assert carrier_error(carrier, loss) <= 1e-7


@each_loss
def test_taylor(loss):
    problem = Problem(3, first=False)
    _, dslots = gradient(problem, loss)
    f, u = sum_by_hand(problem, loss), leaning_direction(problem.rng, dslots)
    rates = lambda gradient: taylor_rates(lambda slots: f(slots).sum(), problem.slots, u, gradient, h=1e-3)
    assert min(rates(dslots)) > 1.9 and max(rates(1.1 * dslots)) < 1.5


@each_loss
def test_shards_change_the_rounding_alone(loss):
    (one, d_one), *others = [gradient(Problem(1, first=False), loss, n) for n in (1, 2, 3, 5)]
    for other, d_other in others:
        assert relative_error(other, one) <= 1e-13 and relative_error(d_other, d_one) <= 1e-13


def test_queries_of_a_single_token_have_nothing_inside():
    problem = Problem()
    problem.queries = [type(problem.queries[0])([5], 0), *problem.queries[:1]]
    problem.ids, problem.scored = (a[[3, 0]][:, :6] for a in (problem.ids, problem.scored))
    problem.ids[0, :], problem.scored[0, :], problem.scored[0, 0], problem.ids[0, 0] = 0, False, True, 5
    mean, dslots = gradient(problem, "hidden", 2)
    assert relative_error(mean, sum_by_hand(problem, "hidden")(problem.slots)[0]) <= 1e-13 and np.isfinite(dslots).all()


OPTIONS = [{"loss": "hidden"}, {"loss": "attention+0.5*kl"}, {"loss": "hidden", "places": "first:1"},
           {"loss": "kl+hidden", "carrier": "kv"}, {"loss": "attention", "carrier": "lora"}]  # fmt: skip
each = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))


@each
def test_a_run_learns_and_is_resumed(options, shards, tmp_path):
    new_run = lambda **changes: letters.run(tmp_path, shards, **{"steps": 6, "rows": 4, "lr": 0.05} | options | changes)
    long, seen = new_run(steps=40, rows=8), []
    long.train_slots(progress=lambda step, steps, loss: seen.append(loss))
    assert np.mean(seen[-5:]) < 0.95 * np.mean(seen[:5])
    whole, broken, resumed = new_run(), new_run(), new_run()
    whole.train_slots()
    if options.get("carrier") != "lora":
        stopped_at(broken, 3, tmp_path / "c")
        resumed.resume(tmp_path / "c")
        resumed.train_slots()
        assert facts(resumed) == facts(whole)


def test_the_student_s_own_rows_are_looked_into_anew(shards):
    run = Run(letters.model(), letters.model(), letters.TEXT, Recipe(slots=3, steps=4, rows=3, self_study=9, loss="kl+hidden",
              queries="on-policy", refresh=2), shards=shards)  # fmt: skip
    before = run.inside
    run.train_slots()
    assert run.inside is not before and len(run.inside.kept["hidden"]) == len(run.asked)


def test_models_of_other_sizes_have_nothing_to_match(shards, tmp_path):
    small, config = letters.model().pair
    teacher = letters.model()._replace(pair=(small, type(config)(**vars(config) | {"n_layer": 1})))
    with pytest.raises(ValueError, match="--loss hidden compares layer by layer; .* 2 layers of 12 and 1 layers of 12"):
        letters.run(tmp_path, shards, teacher=teacher, loss="hidden")


def test_a_run_on_another_device(xp, shards, tmp_path):
    letters.write_questions(tmp_path)
    recipe = Recipe(slots=3, steps=3, rows=4, loss="kl+hidden+0.5*attention", places="changed")

    def run(xp):
        given = letters.model()
        given = given._replace(pair=(tree_map(xp.asarray, given.pair[0]), given.pair[1]))
        made = Run(given, given, letters.TEXT, recipe, tmp_path / "questions.jsonl", shards=shards)
        made.train_slots()
        return made

    exact = 0 if xp in (np, strict_device) else 1e-9
    assert np.abs(to_host(run(xp).slots) - run(np).slots).max() <= exact

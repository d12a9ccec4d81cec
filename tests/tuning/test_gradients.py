"""The gradient of what is trained, from the loss of the answers through model, door and encoder, for all that fits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunes import FITS, LABELS, OUTPUTS, gradient_error, losses, perturbed, tuning

from minicompress.trees import flatten, tree_map, unflatten
from minicompress.tuning.recipe import trained
from minicompress.verification.oracles import central_difference, relative_error, taylor_rates

each = pytest.mark.parametrize("method, how", FITS)


@each
@pytest.mark.parametrize("changes", [{"slots": 1}, {"slots": 5, "positions": "unshifted"}], ids=str)
def test_complex_step(method, how, changes):
    if (how, changes["slots"]) != ("cartridge", 1):
        assert gradient_error(method, how, seed=1, records=OUTPUTS, **changes) <= 1e-12


@pytest.mark.parametrize("how", ["direct", "low-rank", "mlp", "lstm"])
def test_complex_step_where_the_template_places_the_slots(how):
    method = "p-tuning" if how in ("mlp", "lstm") else "prompt"
    assert gradient_error(method, how, template="[2]{text}[a 1]:[a] is", records=LABELS) <= 1e-12


@each
@given(seed=st.integers(0, 2**32 - 1), slots=st.integers(2, 4), positions=st.sampled_from(["compact", "unshifted"]))
def test_finite_differences(method, how, seed, slots, positions):
    assert gradient_error(method, how, central_difference, seed, slots=slots, positions=positions) <= 1e-6


@each
def test_taylor(method, how):
    """Along the gradient itself, all trained arrays at once."""
    with tuning(method=method, parameterisation=how) as run:
        queries, raw = run.task.train[:4], perturbed(run, 3).raw
        _, draw = run.gradient(queries)
        arrays, slopes = flatten(trained(raw)), flatten(trained(draw))
        flat = lambda tree: np.concatenate([a.ravel() for a in tree.values()])
        ends = np.cumsum([a.size for a in arrays.values()])[:-1]

        def f(x):
            parts = [p.reshape(a.shape) for p, a in zip(np.split(x, ends), arrays.values(), strict=True)]
            return losses(run, queries)(raw | unflatten(dict(zip(arrays, parts, strict=True)))).sum()

        g = flat(slopes)
        u = g / np.linalg.norm(g)
        assert min(taylor_rates(f, flat(arrays), u, g, h=1e-3)) > 1.9
        assert max(taylor_rates(f, flat(arrays), u, 1.1 * g, h=1e-3)) < 1.5


@each
def test_shards_change_the_rounding_alone(method, how):
    found = []
    for n in (1, 2, 3):
        with tuning(method=method, parameterisation=how, n=n) as run:
            found.append(run.gradient(perturbed(run).task.train[:5]))
    for loss, draw in found[1:]:
        assert relative_error(loss, found[0][0]) <= 1e-13
        for name, g in flatten(draw).items():
            assert relative_error(g, flatten(found[0][1])[name]) <= 1e-11, name


@each
def test_a_step_changes_no_weight_of_the_model(method, how):
    with tuning(method=method, parameterisation=how, weight_decay=0.1) as run:
        weights = {name: w.tobytes() for name, w in flatten(run.model.pair[0]).items()}
        stays = tree_map(np.copy, {name: a for name, a in run.raw.items() if name not in trained(run.raw)})
        initial, start = run.initial.copy(), flatten(tree_map(np.copy, trained(run.raw)))
        run.train()
        assert {name: w.tobytes() for name, w in flatten(run.model.pair[0]).items()} == weights
        assert all(np.array_equal(run.raw[name], a) for name, a in stays.items())
        assert np.array_equal(run.initial, initial)
        assert all((a != start[name]).any() for name, a in flatten(trained(run.raw)).items())

"""A whole tuning on another device: read, trained, evaluated, looked at, saved and resumed."""

import numpy as np
import pytest
from tunes import FITS, LABELS, OUTPUTS, tuning

import letters
import strict_device
from minicompress.arrays import to_host
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.trees import flatten, tree_map
from minicompress.tuning.outcome import outcome
from minicompress.tuning.start import recycle


def there(xp, model=None):
    model = model or letters.model()
    return model._replace(pair=(tree_map(xp.asarray, model.pair[0]), model.pair[1]))


CASES = [*((m, h, LABELS, None) for m, h in FITS), ("prompt", "direct", OUTPUTS, None), ("p-tuning", "mlp", LABELS, "[2]{text}[1]:")]


@pytest.mark.parametrize("method, how, records, template", CASES, ids=str)
def test_a_tuning(xp, method, how, records, template, tmp_path):
    options = {"records": records, "method": method, "parameterisation": how, "steps": 3, "template": template}
    options |= {"weight_decay": 0.1, "slots": None if template else 3}

    def run(xp):
        with tuning(model=there(xp), **options) as made, tuning(model=there(xp), **options) as again:
            made.train(tmp_path / "c")
            again.resume(tmp_path / "c")
            assert all(type(a) is type(made.model.wte) for a in flatten(again.raw).values())
            return outcome(made), made.prompt(), tree_map(to_host, again.raw)

    (here, ours, raw), (far, theirs, again) = run(np), run(xp)
    tolerance = 0 if xp is strict_device else 1e-6
    np.testing.assert_allclose(theirs.slots, ours.slots, rtol=tolerance)
    for name, a in flatten(again).items():
        np.testing.assert_allclose(a, flatten(raw)[name], rtol=tolerance)
    assert far["loss"] == pytest.approx(here["loss"], rel=tolerance, abs=0)
    assert far["diagnosis"] == here["diagnosis"] and far["measured"]["felt"] == pytest.approx(here["measured"]["felt"], rel=tolerance)
    assert [h["loss"] for h in far["history"]] == pytest.approx([h["loss"] for h in here["history"]], rel=tolerance)


def test_beginnings(xp):
    slots = np.random.default_rng(0).standard_normal((2, 12))

    def run(xp, **options):
        with tuning(model=there(xp), **options) as made:
            return {name: to_host(a) for name, a in flatten(made.raw).items()}

    for options in ({"template": "[2: ab]{text}[1]"}, {"init": "normal"}, {"init": "labels:ab,c", "method": "deep"}):
        for name, a in run(xp, **options).items():
            np.testing.assert_allclose(a, run(np, **options)[name], rtol=0 if xp is strict_device else 1e-12)
    for method in ("prompt", "prefix"):
        given = lambda xp: SoftPrompt(xp.asarray(slots))
        ours, theirs = run(np, method=method, given=given(np)), run(xp, method=method, given=given(xp))
        np.testing.assert_allclose(theirs["slots"], ours["slots"], rtol=0 if xp is strict_device else 1e-12)
    mapped = recycle(SoftPrompt(xp.asarray(slots)), there(xp, letters.model(1)), there(xp))
    assert type(mapped.slots) is type(there(xp).wte)

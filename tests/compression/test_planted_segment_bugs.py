"""Bugs planted in compressors that read segment by segment, one edit each, that a check of `segmenting.py` must catch."""

import pytest
from segmenting import CHECKS

from minicompress.compression import amortised, compressor, segments
from test_planted_bugs import Bug, planted_error

BUGS = [
    Bug("slots stand one place too early", "mask and cache", segments.read_segment,
        "start + len(ids)\n", "start + len(ids) - 1\n"),
    Bug("rows begin at the slots", "mask and cache", compressor.start_after, "slots * method.advances", "0"),
    Bug("slots see no tokens", "mask and cache", segments.read_segment,
        "forward(of_slots, config, x, before, keep=keep)", "forward(of_slots, config, x, prefix.past, keep=keep)"),
    Bug("what slots ask of the state forgotten", "horizon None, ccm", segments.read_segment_backward,
        "[tuple(a + b for a, b in zip(*pair, strict=True)) for pair in zip(dstate, dpast, strict=True)]", "dpast"),
    Bug("what tokens ask of the state forgotten", "horizon None, autocompressor", segments.read_segment_backward,
        "[tuple(a + b for a, b in zip(*pair, strict=True)) for pair in zip(dstate, dpast, strict=True)]", "dstate"),
    Bug("tokens ask nothing of the weights", "gradient, gist", segments.read_segment_backward,
        "backward(silent, cache, dpresent, grads[0])", "backward(silent, cache, dpresent)"),
    Bug("tokens' embeddings at the slots' positions", "gradient, gist", segments.read_segment_backward,
        "grads[0], start - len(ids))", "grads[0], start)"),
    Bug("slots ask nothing of their positions", "gradient, autocompressor", segments.read_segment_backward,
        '+= dx[0]', '+= 0 * dx[0]'),
    Bug("a mean of equal weights", "horizon None, ccm-mean", segments.merge_backward,
        "dmerged * (1 - 1 / count), dmerged / count", "dmerged / 2, dmerged / 2"),
    Bug("new slots before old ones", "horizon None, ccm", segments.merge_backward,
        "array_module(dmerged).split(dmerged, [length], axis=axis_of(dmerged))",
        "array_module(dmerged).split(dmerged, [length], axis=axis_of(dmerged))[::-1]"),
    Bug("a horizon that cuts nothing", "horizon 1, rmt", segments.states_backward,
        "number % horizon == 0", "False"),
    Bug("a horizon one segment late", "horizon 2, autocompressor", segments.states_backward,
        "number % horizon == 0", "number % horizon == 1"),
    Bug("the written state's gradient lost", "horizon None, rmt", segments.states_backward,
        "carried = add(dbegins, dseen)", "carried = dseen"),
    Bug("the seen state's gradient lost", "horizon None, rmt", segments.states_backward,
        "carried = add(dbegins, dseen)", "carried = dbegins"),
    Bug("the first segment's slots in front forgotten", "horizon None, rmt", segments.states_backward,
        "return add(dslots, carried)", "return dslots"),
    Bug("LoRA's tokens not adapted in ICAE", "gradient, icae", amortised.compressor_gradient,
        '(None if method.adapts == "slots" else grads, grads)', "(None, grads)"),
    Bug("the reader asks nothing of its weights", "gradient, gist", amortised.ask_all,
        "asked_by_rows(reader, prefix, ids, scored, objective, grads)", "asked_by_rows(reader, prefix, ids, scored, objective)"),
    Bug("a weight forgotten", "weights", amortised.ask_all, "weight * scale", "scale"),
    Bug("the first context alone", "gradient, ccm", amortised.compressor_gradient,
        "sum(dslots[1:], dslots[0])", "dslots[0]"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert planted_error(bug, CHECKS, monkeypatch, impossible=(ValueError, TypeError)) > 1e-6

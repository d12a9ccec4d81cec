"""Bugs planted in compression, one edit each, that a check of `compressing.py` must catch."""

import pytest
from compressing import CHECKS

from minicompress.compression import objectives
from minicompress.evaluation import metrics
from minicompress.gpt2 import prefix
from minicompress.prompts import gradient
from test_planted_bugs import Bug, planted_error

BUGS = [
    Bug("targets shifted by one", "predictors", prefix.predictors,
        "[xp.broadcast_to(first, (B, 1, C)), hidden]", "[hidden, xp.broadcast_to(first, (B, 1, C))]"),
    Bug("tokens not moved on by the slots", "predictors", prefix.predictors,
        "read, prefix.start", "read, 0"),
    Bug("slots without positions", "predictors", prefix.read_slots,
        "slots[None] + positions(params, P)", "slots[None]"),
    Bug("the teacher reads one token too few", "teacher", prefix.read_tokens,
        "np.asarray(ids)[None]", "np.asarray(ids)[None, :-1]"),
    Bug("the teacher's last state is its first", "teacher", prefix.read_tokens,
        "hidden[:, -1:]", "hidden[:, :1]"),
    Bug("the first token's gradient dropped", "gradient, kl", prefix.predictors_backward,
        "shared(dall[:, :1], first)", "0 * shared(dall[:, :1], first)"),
    Bug("the first token's gradient averaged over the rows", "gradient, kl", prefix.predictors_backward,
        "shared(dall[:, :1], first)", "dall[:, :1].mean(0, keepdims=True)"),
    Bug("the last slot's gradient at the first slot", "gradient, likelihood", prefix.read_slots_backward,
        "dhidden[:, -1:] = dlast", "dhidden[:, :1] = dlast"),
    Bug("what the rows asked of the slots dropped", "gradient, kl", prefix.read_slots_backward,
        "backward(dhidden, cache, dpast, grads)", "backward(dhidden, cache, None, grads)"),
    Bug("a mean per shard", "loss, kl", gradient.over_shards,
        "make_objective(rows, weight)", "make_objective(rows, 1 / int(scored[rows].sum()))"),
    Bug("a mean over the padded batch", "loss, likelihood", gradient.over_shards,
        "1 / int(scored.sum())", "1 / scored.size"),
    Bug("the gradient of the first shard alone", "gradient, likelihood", gradient.slots_gradient,
        "total(asked)", "asked[0]"),
    Bug("the past's gradient of the first shard alone", "gradient, kl", gradient.total,
        "sum(parts[1:], parts[0])", "parts[0]"),
    Bug("the student's temperature forgotten", "definition of kl at T = 2", objectives.divergence,
        ", temperature=temperature", ""),
    Bug("another number of tokens", "definition of top-k-tail at T = 2", objectives.read_loss,
        '{"k": top_k}', '{"k": top_k + 1}'),
    Bug("weights of a sum forgotten", "sum", objectives.objective_of,
        "theirs, weight * term.weight", "theirs, weight"),
    Bug("the likelihood's weight forgotten", "sum", objectives.objective_of,
        "targets(), weight * term.weight", "targets(), weight"),
    Bug("the gradient of the last term alone", "gradient, kl+0.5*likelihood", objectives.objective_of,
        "sum(dlogits)", "dlogits[-1]"),
    Bug("β on the student's side", "beta", objectives.read_loss,
        'number(beta, part, "its β", 1)', '1 - number(beta, part, "its β", 1)'),
    Bug("every loss the KL", "definition of js at T = 2", objectives.divergence,
        "DIVERGENCES[loss]", 'DIVERGENCES["kl"]'),
    Bug("weights left out of the gradient", "gradient, reverse-kl", objectives.divergence,
        "full_like(losses, weight)", "full_like(losses, 1)"),
    Bug("the teacher's places in the wrong order", "lossless", objectives.divergence,
        "teacher_logp[rows]", "teacher_logp[::-1]"),
    Bug("scored by KL the other way round", "score", metrics.score,
        "(xp.exp(theirs) * (theirs - ours))", "(xp.exp(ours) * (ours - theirs))"),
    Bug("nats called bits", "score", metrics.score,
        "* BITS", "* 1"),
    Bug("the gap as a mean of ratios", "gap", metrics.gap_closed,
        "1 - row.mean_kl / none.mean_kl",
        "float(np.mean([1 - b.mean() / a.mean() for a, b in zip(none.kl, row.kl)]))"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert not planted_error(bug, CHECKS, monkeypatch) <= 1e-10

"""Bugs planted in the real source, one edit each: a check that lets one pass is no check.

Each plant is an old text and a new one inside one function or class. The edited one takes the place of
the real one; then the named check, which the other tests share, must fail.
Where the old text is gone because the source was rewritten, say the same bug in the new words.
"""

import inspect
import re
import sys
import textwrap
from dataclasses import dataclass

import pytest

from checks import CHECKS
from minicompress.gpt2 import block, head, model
from minicompress.layers import activations, attention, divergences, embedding, gelu, layernorm, linear, losses, lstm


@dataclass(frozen=True)
class Bug:
    name: str
    caught_by: str
    function: object
    old: str
    new: str


BUGS = [
    # LayerNorm
    Bug("eps forgotten in the backward", "gradient of layernorm", layernorm.layernorm_backward,
        "g -= xhat * stretch", "g -= xhat * stretch / (xhat * xhat).mean(-1, keepdims=True)"),
    Bug("eps outside the root", "definition of layernorm", layernorm.layernorm,
        "+ eps) ** -0.5", ") ** -0.5"),
    Bug("unbiased variance", "definition of layernorm", layernorm.layernorm,
        "(d * d).mean(-1, keepdims=True)", "(d * d).sum(-1, keepdims=True) / (d.shape[-1] - 1)"),
    Bug("the stretch is left in", "gradient of layernorm", layernorm.layernorm_backward,
        "g -= xhat * stretch", "pass"),
    Bug("the shift is left in", "gradient of layernorm", layernorm.layernorm_backward,
        "g -= shift", "pass"),
    # GELU
    Bug("the exact GELU of erf", "definition of gelu", gelu.curve,
        "out = array_module(x).tanh(inner)", "out = array_module(x).vectorize(math.erf)(x / math.sqrt(2))"),
    Bug("the derivative of the cube forgotten", "gradient of gelu", gelu.times_slope,
        "t * (3 * CUBE * ROOT)", "t * 0"),
    Bug("the inner derivative forgotten", "gradient of gelu", gelu.times_slope,
        "dx += ROOT  # u'", "dx = 1 + 0 * x"),
    # ReLU, tanh, LSTM
    Bug("ReLU's slope 1 everywhere", "gradient of relu", activations.relu_backward,
        "array_module(dout).where(off, 0, dout)", "dout"),
    Bug("negative numbers come through", "definition of relu", activations.relu,
        "where(off, 0, x)", "where(off, 0.01 * x, x)"),
    Bug("tanh's slope not squared", "gradient of tanh", activations.tanh_backward,
        "out * out", "out"),
    Bug("gates in another order", "definition of lstm", lstm.gates,
        "i, f, g, o = z", "i, f, o, g = z"),
    Bug("one of two biases forgotten", "definition of lstm", lstm.lstm,
        "bias_ih + bias_hh", "bias_ih"),
    Bug("the reverse direction reads onward", "definition of lstm, reverse", lstm.lstm,
        "reversed(range(T)) if reverse else range(T)", "range(T)"),
    Bug("the reverse direction's output not turned back", "definition of lstm, reverse", lstm.lstm,
        "out[:, t] = state", "out[:, len(steps)] = state"),
    Bug("steps backwards in the forward's order", "gradient of lstm", lstm.lstm_backward,
        "reversed(steps)", "steps"),
    Bug("the forget gate sees the new memory", "gradient of lstm", lstm.lstm_backward,
        "dcell * cell_before", "dcell * (f * cell_before + i * g)"),
    Bug("memory's gradient past the forget gate", "gradient of lstm", lstm.lstm_backward,
        "dcell = dcell * f", "pass"),
    Bug("memory's gradient cut after one step", "gradient of lstm", lstm.lstm_backward,
        "dcell = dcell + dstate", "dcell = dstate"),
    Bug("truncated: no gradient from step to step", "gradient of lstm", lstm.lstm_backward,
        "dstate = dasked[:, t] @ weight_hh", "dstate = 0"),
    Bug("tanh of the memory without its slope", "gradient of lstm, reverse", lstm.lstm_backward,
        " * (1 - tanh_cell * tanh_cell)", ""),
    Bug("the output gate's slope forgotten", "gradient of lstm", lstm.lstm_backward,
        "do * o * (1 - o)", "do"),
    Bug("hidden weights meet the step's own output", "gradient of lstm", lstm.lstm,
        "(cache, steps, before, weight_hh)", "(cache, steps, out, weight_hh)"),
    Bug("the second bias gets no gradient", "gradient of lstm", lstm.lstm_backward,
        'grads["bias_hh"] += rows.sum(0)', "pass"),
    # linear, embedding
    Bug("the bias's gradient lost", "gradient of weights", linear.linear_backward,
        'if "bias" in grads', "if False"),
    Bug("weight gradients replaced, not added", "gradient of weights", linear.linear_backward,
        'grads["weight"] +=', 'grads["weight"][...] ='),
    Bug("a repeated token counted once", "gradient of embedding", embedding.embedding_backward,
        'add_at(grads["weight"], ids.reshape(-1), ', 'grads["weight"].__setitem__(ids.reshape(-1), '),
    # attention
    Bug("scale missing in the forward", "definition of attention", attention.attention,
        "q * (1 / math.sqrt(q.shape[-1]))", "q * 1"),
    Bug("scale missing in dq", "gradient of attention", attention.attention_backward,
        "dq *= 1 / math.sqrt(q.shape[-1])", "pass"),
    Bug("scale twice in dq", "gradient of attention", attention.attention_backward,
        "dq *= 1 / math.sqrt(q.shape[-1])", "dq *= 1 / q.shape[-1]"),
    Bug("scale twice in dk", "gradient of attention", attention.attention_backward,
        "dk = dscores", "dk = 1 / math.sqrt(q.shape[-1]) * dscores"),
    Bug("a query sees the next token", "causal", attention.attention,
        "xp.tri(T, dtype=bool)", "xp.tri(T, k=1, dtype=bool)"),
    Bug("a query does not see itself", "definition of attention", attention.attention,
        "if T > 1:\n        seen = xp.tri(T, dtype=bool)",
        "if T > 1:\n        seen = xp.tri(T, k=-1, dtype=bool) | (xp.arange(T) == 0)"),
    Bug("dv from probabilities not transposed", "gradient of attention", attention.attention_backward,
        "dv = probs[..., -T:].swapaxes(-1, -2)", "dv = probs[..., -T:]"),
    Bug("softmax's sum forgotten", "gradient of softmax", attention.softmax_backward,
        "dprobs - ", "dprobs - 0 * "),
    Bug("dq lacks the past's share", "gradient of attention, shared past", attention.attention_backward,
        "dq += dscores[..., :-T] @ past[0]", "pass"),
    Bug("a shared past's gradient from one row", "gradient of slots", attention.shared,
        "d.sum(0, keepdims=True)", "d[:1]"),
    Bug("a shared past's gradient averaged", "gradient of slots", attention.shared,
        "d.sum(0, keepdims=True)", "d.mean(0, keepdims=True)"),
    Bug("the past's keys and values confused", "gradient of slots", attention.attention_backward,
        "zip((dpast_k, dpast_v, *dbeta)", "zip((dpast_v, dpast_k, *dbeta)"),
    # block, model, head
    Bug("what later tokens asked is dropped", "gradient of slots", block.self_attention_backward,
        "if dpresent is not None", "if False"),
    Bug("later tokens' wish for values dropped", "gradient of slots", block.self_attention_backward,
        "dv += dpresent[1]", "pass"),
    Bug("the MLP's residual gradient dropped", "gradient of slots", block.block_backward,
        "da += dout", "pass"),
    Bug("attention's residual gradient dropped", "gradient of slots", block.block_backward,
        "dx += da", "pass"),
    Bug("blocks backwards in the forward's order", "gradient of slots", model.backward,
        "reversed(range(len(caches)))", "range(len(caches))"),
    Bug("dpast in the wrong order", "gradient of slots", model.backward,
        "dpasts[::-1]", "dpasts"),
    Bug("heads and channels mixed up", "golden logits", block.self_attention,
        "reshape(B, T, 3, n_head, -1).transpose(2, 0, 3, 1, 4)",
        "reshape(B, T, 3, -1, n_head).transpose(2, 0, 4, 1, 3)"),
    Bug("positions not moved on by the prompt", "hard text", model.embed,
        "ids.shape[1], offset", "ids.shape[1], 0"),
    Bug("positions moved twice", "golden loss", model.embed,
        "ids.shape[1], offset", "ids.shape[1], 2 * offset"),
    Bug("the position table's gradient at the wrong rows", "gradient of weights", model.embed_backward,
        "[offset : offset +", "[0 : 0 +"),
    Bug("the tied head's gradient lost", "gradient of weights", head.head_loss,
        "head_weight(grads)[...] += logits.T @ hidden[rows]", "pass"),
    # losses
    Bug("the target forgotten", "gradient of cross-entropy", losses.cross_entropy_backward,
        "dlogits[xp.arange(len(targets)), targets] -= 1", "pass"),
    Bug("rows' weights forgotten", "gradient of slots", losses.cross_entropy_backward,
        "dlogits *= dout[:, None]", "pass"),
    Bug("KL the other way round", "definition of kl", losses.kl_divergence,
        "(p * (teacher_logp - logp))", "(xp.exp(logp) * (logp - teacher_logp))"),
    Bug("KL's factor T² forgotten", "definition of kl at T = 2", losses.kl_divergence,
        "T * T * (p", "(p"),
    Bug("KL's gradient without T", "gradient of kl at T = 2", losses.kl_divergence_backward,
        "dlogits *= T * dout", "dlogits *= dout"),
    Bug("KL's gradient with the other sign", "gradient of slots, kl", losses.kl_divergence_backward,
        "dlogits -= p", "dlogits = p - dlogits"),
    Bug("the student's temperature forgotten", "definition of kl at T = 2", losses.kl_divergence,
        "logits / T if T != 1 else logits", "logits"),
    # divergences
    Bug("reverse KL's mean left in", "gradient of reverse kl", divergences.reverse_kl_backward,
        "a - kl[:, None]", "a"),
    Bug("reverse KL's gradient over the teacher", "gradient of reverse kl", divergences.reverse_kl,
        "(q, a, kl, T)", "(array_module(q).exp(teacher_logp), a, kl, T)"),
    Bug("reverse KL's mean times T²", "gradient of reverse kl at T = 2", divergences.reverse_kl,
        "(q, a, kl, T)", "(q, a, T * T * kl, T)"),
    Bug("reverse KL's factor T² forgotten", "definition of reverse kl at T = 2", divergences.reverse_kl,
        "T * T * kl,", "kl,"),
    Bug("teacher and student confused in the mixture", "definition of js at beta = 0.2", divergences.over_mixture,
        "(1 - beta) * below, beta * below", "beta * below, (1 - beta) * below"),
    Bug("both over the larger", "definition of js", divergences.over_mixture,
        "larger, larger + d), ", "larger, larger), "),
    Bug("the mixture's slope forgotten", "gradient of js", divergences.jensen_shannon_backward,
        "b - (q * b).sum(-1, keepdims=True)", "b"),
    Bug("β where 1-β belongs", "gradient of js at beta = 0.2", divergences.jensen_shannon_backward,
        "(1 - beta)", "beta"),
    Bug("the two terms not weighted", "definition of js", divergences.jensen_shannon,
        "beta * p * a + (1 - beta) * q * b", "p * a + q * b"),
    Bug("the least likely tokens", "definition of top-k kl", divergences.top_of,
        "argpartition(-teacher_logp", "argpartition(teacher_logp"),
    Bug("one token too few", "definition of top-k tail kl", divergences.top_of,
        "[:, :k]", "[:, : k - 1]"),
    Bug("renormalised where it should not be", "definition of top-k kl", divergences.top_k_kl,
        "p = xp.exp(logp)", "p = xp.exp(logp) / xp.exp(logp).sum(-1, keepdims=True)"),
    Bug("the mass of the top taken for one", "gradient of top-k kl", divergences.top_k_kl_backward,
        "dlogits *= p.sum(-1, keepdims=True)", "pass"),
    Bug("the tail gets no gradient", "gradient of top-k kl", divergences.top_k_kl_backward,
        "dlogits[top] -= p", "dtop = dlogits[top] - p; dlogits *= 0; dlogits[top] = dtop"),
    Bug("the student alone renormalised", "definition of top-k renormalised kl", divergences.top_k_renormalised_kl,
        "log_softmax(teacher_logp[top])", "teacher_logp[top]"),
    Bug("the teacher's temperature twice", "definition of top-k renormalised kl at T = 2",
        divergences.top_k_renormalised_kl, "log_softmax(teacher_logp[top])", "log_softmax(teacher_logp[top] / temperature)"),
    Bug("the top's gradient in another order", "gradient of top-k renormalised kl",
        divergences.top_k_renormalised_kl_backward, "dlogits[top] = dtop", "dlogits[top] = dtop[:, ::-1]"),
    Bug("the bucket's gradient to each in full", "gradient of top-k tail kl", divergences.tail_bucket,
        "(rest / total, top)", "(0 * rest + 1, top)"),
    Bug("the bucket's gradient shared out evenly", "gradient of top-k tail kl", divergences.tail_bucket,
        "(rest / total, top)", "((0 * rest + 1) / (rest.shape[1] - top[1].shape[1]), top)"),
    Bug("the top in the bucket as well", "definition of top-k tail kl", divergences.tail_bucket,
        "rest[top] = -math.inf", "pass"),
    Bug("the bucket's largest left out of its logarithm", "definition of top-k tail kl", divergences.tail_bucket,
        "most + xp.log(total)", "xp.log(total)"),
    Bug("the bucket dropped", "gradient of top-k tail kl", divergences.tail_bucket_backward,
        "share * dout[:, -1:]", "0 * share"),
    Bug("the bucket's T² forgotten", "definition of top-k tail kl at T = 2", divergences.top_k_tail_kl,
        "T * T * out", "out"),
    Bug("the bucket's gradient times T²", "gradient of top-k tail kl at T = 2", divergences.top_k_tail_kl_backward,
        "dlogits *= T", "dlogits *= T * T"),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-13


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert not planted_error(bug, CHECKS, monkeypatch) <= 1e-10  # not a number is an answer too


def planted_error(bug, checks, monkeypatch, impossible=()):
    """What the bug's check says with the bug in place: ∞ where it cannot even be computed, by one of these errors."""
    check = checks[bug.caught_by]  # looked up first: a check that is not there catches nothing
    plant(bug, monkeypatch)
    try:
        return check()
    except impossible:
        return float("inf")


def plant(bug, monkeypatch):
    """Puts the edited function's code into the real one, wherever it is held; an edited class, in every module."""
    source = textwrap.dedent(inspect.getsource(bug.function))  # of a method too
    assert source.count(bug.old) == 1, f"{bug.old!r} is not once in {bug.function.__name__}: rewrite this plant"
    name, scope = bug.function.__name__, {}
    if inspect.isfunction(bug.function):  # without a decorator, which would register the edited one for good
        source = source[re.search(r"^def ", source, re.MULTILINE).start() :]
    exec(source.replace(bug.old, bug.new), vars(sys.modules[bug.function.__module__]), scope)
    if inspect.isfunction(bug.function):
        for part in ("__code__", "__defaults__", "__kwdefaults__"):
            monkeypatch.setattr(bug.function, part, getattr(scope[name], part))
        return
    for module in list(sys.modules.values()):
        if vars(module).get(name) is bug.function:
            monkeypatch.setattr(module, name, scope[name])

"""Bugs planted above the model, one edit each: generation, traces, and what a compression is measured by."""

import pytest

import generating
import outer_checks
import table_by_hand
import tracing
from minicompress.compression import queries, teacher
from minicompress.evaluation import baselines, metrics
from minicompress.gpt2 import generate, prefix
from minicompress.prompts import initialise, soft_prompt
from minicompress.training import adamw
from minicompress.verification import trace
from test_planted_bugs import Bug, planted_error

CHECKS = generating.CHECKS | tracing.CHECKS | table_by_hand.CHECKS
CHECKS |= {"spacing": outer_checks.spacing_error, "vocabulary": outer_checks.vocabulary_error,
           "unusable slots": outer_checks.refusal_error, "interval": outer_checks.gap_interval_error,
           "costs": outer_checks.costs_error, "adamw": outer_checks.adamw_error}  # fmt: skip
BUGS = [
    # generation
    Bug("new tokens not moved on by the prefix", "generation after slots", generate.generate,
        "prefix.start + lengths + step", "lengths + step"),
    Bug("new tokens placed after the longest row", "generation after nothing", generate.generate,
        "prefix.start + lengths + step", "prefix.start + lengths.max() + step"),
    Bug("all new tokens at one position", "generation after text", generate.generate,
        "prefix.start + lengths + step", "prefix.start + lengths"),
    Bug("padding written after instead of the last token", "generation after nothing", generate.prefill,
        "lengths - 1", "lengths * 0 + lengths.max() - 1"),
    Bug("the text reads without its prefix's positions", "generation after slots", generate.prefill,
        "embed(params, ids, prefix.start, prefix.slots, lengths)", "embed(params, ids)"),
    Bug("keys of padding are seen", "generation after nothing", generate.Memory,
        "prefix.mask is not None or not (lengths == T).all()", "False"),
    Bug("the prefix is hidden as if it were padding", "generation after text", generate.Memory,
        "np.ones((len(lengths), P), bool) if", "np.zeros((len(lengths), P), bool) if"),
    Bug("a new token's keys overwrite the one before", "generation after nothing", generate.Memory,
        "self.size += 1", "pass"),
    Bug("a new token does not see itself", "generation after nothing", generate.Memory,
        "np.ones((len(lengths), room), bool)", "np.ones((len(lengths), 1), bool) & (np.arange(room) > 0)"),
    Bug("the prefix's values where its keys belong", "generation after slots", generate.Memory,
        "past = prefix.past[layer] if P", "past = prefix.past[layer][::-1] if P"),
    Bug("temperature as a factor", "sample", generate.sample,
        ".astype(np.float64) / temperature", ".astype(np.float64) * temperature"),
    Bug("one token too many among the k", "sample", generate.sample,
        "np.partition(scores, -top_k)[..., [-top_k]]", "np.partition(scores, -top_k)[..., [-top_k - 1]]"),
    Bug("the token that reaches p is left out", "sample", generate.sample,
        "falling.cumsum(-1) - falling >= top_p", "falling.cumsum(-1) >= top_p"),
    Bug("the nucleus put back in the order of its mass", "sample", generate.sample,
        "np.put_along_axis(probs, order, np.where(beyond, 0, falling), -1)", "probs = np.where(beyond, 0, falling)"),
    Bug("draws of a mass that was cut off", "sample", generate.sample,
        "* sums[:, -1:]", "* 1"),
    # what stands before the rows
    Bug("one token alone behind the slots is lost", "trace, kl of single tokens", prefix.predictors,
        "if ids.shape[1] == 1", "if False"),
    # traces
    Bug("the first token is scored without a prompt", "trace, loss without a prompt", trace.scored_rows,
        "scored[:, 0] &= prompt is not None and prompt.carrier == \"embeddings\" and not in_rows", "pass"),
    Bug("padding is scored", "trace, kl", trace.scored_rows,
        "(targets != IGNORED) & real", "(targets != IGNORED) | ~real"),
    Bug("every place counts in the mean", "trace, loss", trace.make_objective,
        "1 / int(scored.sum())", "1 / scored.size"),
    Bug("the teacher has not read the context", "trace, kl", trace.make_objective,
        "read_tokens(*teacher, teacher_context)", "read_tokens(*teacher, teacher_context[:1])"),
    Bug("logits of padding are left in", "trace, forward", trace.run_both_ways,
        "logits(params, out) * mask[..., None]", "logits(params, out)"),
    Bug("attention of padding is left in", "trace, forward", trace.inside_block,
        'probabilities(cache["attn"]["attention"]) * mask[:, None, :, None]', 'probabilities(cache["attn"]["attention"])'),
    Bug("tokens are not moved on by the prompt", "trace, forward", trace.run_both_ways,
        "embed(params, ids, prefix.start, prefix.slots)", "embed(params, ids, 0, prefix.slots)"),
    Bug("the first slot predicts the first token", "trace, forward", prefix.read_slots,
        "hidden[:, -1:]", "hidden[:, :1]"),
    Bug("a label scores the prediction after it", "trace, loss", trace.run_both_ways,
        "[xp.broadcast_to(first, (B, 1, config.n_embd)), out[:, :-1]]", "[out]"),
    Bug("the first token's gradient from one row", "trace, gradient of the prompt", trace.run_both_ways,
        "dstates[:, :1].sum(0, keepdims=True)", "dstates[:1, :1].sum(0, keepdims=True)"),
    Bug("what the rows asked of the slots is dropped", "trace, gradient of the prompt, kl", prefix.read_slots_backward,
        "backward(dhidden, cache, dpast, grads)", "backward(dhidden, cache, None, grads)"),
    Bug("the slots' positions get no gradient", "trace, gradient of the weights", prefix.read_slots_backward,
        'grads["wpe"]["weight"][: dx.shape[1]] += dx[0]', "pass"),
    Bug("the tokens' positions get it at the slots'", "trace, gradient of the weights", trace.run_both_ways,
        "embed_backward(dx, ids, grads, prefix.start)", "embed_backward(dx, ids, grads)"),
    Bug("the slots' way through the weights is left out", "trace, gradient of the weights", trace.run_both_ways,
        "read_backward(asked, back_prompt, grads)", "read_backward(asked, back_prompt)"),
    # prompts, training, costs
    Bug("the text's last token is never picked", "spacing", initialise.from_tokens,
        "np.linspace(0, len(ids) - 1, slots)", "np.linspace(0, len(ids) - 1, slots, endpoint=False)"),
    Bug("the first tokens instead of evenly spaced ones", "spacing", initialise.from_tokens,
        "np.linspace(0, len(ids) - 1, slots)", "np.arange(slots)"),
    Bug("words drawn twice", "vocabulary", initialise.from_vocabulary,
        "replace=slots > n", "replace=True"),
    Bug("slots that are not numbers are taken", "unusable slots", soft_prompt.SoftPrompt,
        " or not np.isfinite(self.slots).all()", ""),
    Bug("places drawn again instead of queries", "interval", metrics.gap_closed,
        "size=(draws, len(sums))", "size=(draws, 20 * len(sums))"),
    Bug("keys without values are counted", "costs", baselines.costs,
        "2 * config.n_layer", "config.n_layer"),
    Bug("paid back as if slots were free to read", "costs", baselines.costs,
        "run.seconds / (full - sigma)", "run.seconds / full"),
    Bug("decay goes through the moments", "adamw", adamw.adamw_step,
        "m *= b1\n", "m *= b1; g = g + weight_decay * p\n"),
    Bug("the first moment is not corrected", "adamw", adamw.adamw_step,
        "lr / (1 - b1**t)", "lr"),
    # the table
    Bug("the last tokens called the first", "table", baselines.prefixes,
        "ids[:k]", "ids[-k:]"),
    Bug("trained slots called untrained", "table", baselines.prefixes,
        "prompt.prefix(*reader)", "made['sigma'].prefix(*reader)"),
    Bug("the full context one token short", "table", baselines.prefixes,
        '"full": ids,', '"full": ids[:-1],'),
    Bug("the table of the training queries", "table", baselines.evaluate,
        "prefix, run.held, held, shards", "prefix, run.train, Teacher(run.teacher.pair, run.read, run.train, run.shards), shards"),
    Bug("a gap of the untrained slots", "table", baselines.evaluate,
        'gap_closed(scores["none"], s,', 'gap_closed(scores["none"], scores["init"],'),
    Bug("the median called the 95% quantile", "table", metrics.Scores,
        "0.95", "0.5"),
    Bug("a mean over queries instead of places", "table", metrics.Scores,
        "np.concatenate(self.kl).mean()", "np.mean([kl.mean() for kl in self.kl])"),
    Bug("the likeliest token held against the unlikeliest", "table", metrics.score,
        "theirs.argmax(-1)", "theirs.argmin(-1)"),
    Bug("recall without anything in front", "table", metrics.recall,
        "answer_greedily(model, tokenizer, prefix,", "answer_greedily(model, tokenizer, None,"),
    Bug("half an answer is recalled", "table", metrics.recall,
        "ours == q.answer.strip()", "ours[:3] == q.answer.strip()[:3]"),
    Bug("states of queries cut at the wrong places", "table", teacher.Teacher,
        "[len(q.targets) for q in chosen]", "[len(q.ids) for q in chosen]"),
    Bug("the question is scored too", "scored tokens", queries.pad,
        "list(query.targets)", "list(range(1, len(query.ids)))"),
    Bug("the last token is not scored", "scored tokens", queries.pad,
        "list(query.targets)", "list(query.targets)[:-1]"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert not planted_error(bug, CHECKS, monkeypatch, (ValueError, IndexError)) <= 1e-10

"""Bugs planted around the mathematics, one edit each: training, prompts, a run and its queries, agreement and costs."""

import pytest

import outer_checks
import run_checks
from minicompress.compression import gradient, queries, run
from minicompress.evaluation import baselines, metrics
from minicompress.prompts import initialise, soft_prompt
from minicompress.training import adamw, checkpoints, language_model, schedules, shards
from test_planted_bugs import Bug, plant

CHECKS = run_checks.CHECKS | {
    "adamw": outer_checks.adamw_error,
    "schedule": outer_checks.schedule_error,
    "checkpoint": outer_checks.checkpoint_error,
    "language model": lambda: max(outer_checks.language_model_errors().values()),
    "prompt's file": lambda: outer_checks.prompt_file_error("float64"),
    "unusable slots": outer_checks.refusal_error,
    "spacing": outer_checks.spacing_error,
    "vocabulary": outer_checks.vocabulary_error,
    "quantile": outer_checks.quantile_error,
    "interval": outer_checks.gap_interval_error,
    "agreement": outer_checks.agreement_error,
    "recall": outer_checks.recall_error,
    "rows": outer_checks.rows_error,
    "costs": outer_checks.costs_error,
}
BUGS = [
    # training
    Bug("decay of vectors too", "adamw", adamw.adamw_step,
        " and p.ndim > 1", ""),
    Bug("the second moment is not corrected", "adamw", adamw.adamw_step,
        "1 / math.sqrt(1 - b2**t)", "1.0"),
    Bug("eps under the root", "adamw", adamw.adamw_step,
        "(array_module(p).sqrt(v) * root + eps)", "array_module(p).sqrt(v * root * root + eps)"),
    Bug("clipped one by one", "clipping", adamw.clip_by_global_norm,
        "g *= limit / norm", "g *= min(1, limit / math.sqrt((g * g).sum()))"),
    Bug("short gradients are stretched", "clipping", adamw.clip_by_global_norm,
        "norm > limit", "norm"),
    Bug("not a number passes", "clipping", adamw.clip_by_global_norm,
        "not math.isfinite(norm)", "norm == math.inf"),
    Bug("warm-up begins with a step of nothing", "schedule", schedules.warmup_cosine,
        "(step + 1) / warmup", "step / warmup"),
    Bug("the cosine begins at step 0", "schedule", schedules.warmup_cosine,
        "(step - warmup) / max(1, steps - warmup)", "step / steps"),
    Bug("the rate rises again after the end", "schedule", schedules.warmup_cosine,
        "min(1.0, (step - warmup) / max(1, steps - warmup))", "(step - warmup) / max(1, steps - warmup)"),
    Bug("a mean per shard", "language model", language_model.language_model_step,
        "weights[rows].reshape(-1) / total", "weights[rows].reshape(-1) / max(1e-9, weights[rows].sum())"),
    Bug("the gradient of the first shard alone", "language model", language_model.language_model_step,
        "grads[1:]", "grads[1:1]"),
    Bug("targets not shifted", "language model", language_model.language_model_step,
        "tokens[rows, 1:]", "tokens[rows, :-1]"),
    Bug("positions' gradient at the wrong rows", "language model", language_model.language_model_step,
        "embed_backward(dx, params, ids, grads, offset)", "embed_backward(dx, params, ids, grads)"),
    Bug("arrays saved as they lie in memory", "checkpoint", checkpoints.save_arrays,
        'np.asarray(to_host(array), order="C")', "to_host(array)"),
    Bug("one-dimensional where it had no dimension", "checkpoint", checkpoints.save_arrays,
        'np.asarray(to_host(array), order="C")', "np.ascontiguousarray(to_host(array))"),
    Bug("written in place", "writing", checkpoints.replace_file,
        "write(beside)", "write(path)"),
    Bug("half a file left beside", "writing", checkpoints.replace_file,
        "beside.unlink(missing_ok=True)", "pass"),
    Bug("BLAS keeps one thread", "shards", shards.Shards,
        "self._limit.__exit__(*exception)", "pass"),
    Bug("BLAS threads within threads", "shards", shards.Shards,
        "limits=1 if self.n > 1 else None", "limits=None"),
    Bug("the last row is lost", "shards", shards.Shards,
        "rows * i // n", "(rows - 1) * i // n"),
    # prompts
    Bug("a short text is stretched, not repeated", "spacing", initialise.from_tokens,
        "if len(ids) < slots", "if False"),
    Bug("words of the vocabulary's first half", "vocabulary", initialise.from_vocabulary,
        "rng.choice(n,", "rng.choice(9,"),
    Bug("slots saved in single precision", "prompt's file", soft_prompt.SoftPrompt,
        "{self.carrier: self.slots}", '{self.carrier: self.slots.astype("float32")}'),
    Bug("no slot at all is a prompt", "unusable slots", soft_prompt.SoftPrompt,
        " or not self.slots.size", ""),
    # a run
    Bug("moments not taken up", "resume", run.Run,
        '"m": {"slots": m}, "v": {"slots": v}', '"m": {"slots": 0 * m}, "v": {"slots": 0 * v}'),
    Bug("moments confused", "resume", run.Run,
        'for name in ("slots", "m", "v")', 'for name in ("slots", "v", "v")'),
    Bug("steps counted from the start again", "resume", run.Run,
        '"step": facts["step"]', '"step": 0'),
    Bug("checkpoints of another recipe are taken up", "foreign checkpoints", checkpoints.load_own,
        "if (theirs := facts.get(name)) == value", 'if name == "recipe" or (theirs := facts.get(name)) == value'),
    Bug("the teacher is no part of a run", "foreign checkpoints", run.Run,
        ' "teacher": teacher.hash,', ""),
    Bug("the same batches by every seed", "batches", gradient.train_slots,
        "default_rng((seed, step))", "default_rng(step)"),
    Bug("the same batch at every step", "batches", gradient.train_slots,
        "default_rng((seed, step))", "default_rng(seed)"),
    Bug("queries drawn twice for one batch", "batches", gradient.train_slots,
        "replace=False", "replace=True"),
    Bug("another start trained in place", "another start", run.Run,
        "changes), slots, copied(slots)", "changes), slots, slots"),
    Bug("a changed recipe changes the run's own", "another start", run.Run,
        "other.recipe, other.initial", "self.recipe, other.initial"),
    Bug("the untrained slots are what is saved", "prompt", run.Run,
        "self.as_prompt(tree_map(to_host, self.slots)", "self.as_prompt(tree_map(to_host, self.initial)"),
    Bug("the teacher's temperature forgotten", "temperature", run.Run,
        "shards, temperature=recipe.temperature)", "shards)"),
    Bug("trained on what is evaluated", "evaluate on", run.Run,
        "[q for q in written if q.key not in asked]", "written"),
    Bug("the letters of its name instead of words drawn", "starts", initialise.initialise,
        'name == "vocab" and', 'name == "words" and'),
    Bug("the text whatever is asked for", "starts", initialise.initialise,
        'context_ids if how in ("text", "first") else', "context_ids if True else"),
    Bug("the same start by every seed", "starts", run.initial_slots,
        "(recipe.seed, 2)", "2"),
    Bug("the last position is never used", "positions", run.check_positions,
        "need > config.n_positions", "need >= config.n_positions"),
    # queries
    Bug("held out by row, not by question", "hold out", queries.hold_out,
        "[q for q in queries if q.key not in held]", "queries[len(held) :]"),
    Bug("a fifth of the rows, not of the questions", "hold out", queries.hold_out,
        "round(share * len(keys))", "round(share * len(queries))"),
    Bug("the teacher's own answer is to be recalled", "file", queries.file_queries,
        "given, answer))", "given, given))"),
    Bug("a text of one token is a query", "file", queries.text_query,
        "len(ids) > 1", "len(ids)"),
    Bug("lines counted from nought", "lines", queries.read_queries,
        "enumerate(lines, 1)", "enumerate(lines)"),
    Bug("questions of numbers", "lines", queries.read_queries,
        "not isinstance(question, str) or ", ""),
    Bug("the teacher writes without the context", "self study", queries.self_study,
        "steps, prefix, line_ends", "steps, None, line_ends"),
    Bug("said twice, asked twice", "self study", queries.self_study,
        "seen.add(text)", "pass"),
    Bug("an empty answer is an answer", "self study", queries.self_study,
        "if mark and answer.strip()", "if mark"),
    # evaluation
    Bug("the quantile of each query's mean", "quantile", metrics.Scores,
        "np.quantile(np.concatenate(self.kl), 0.95)", "np.quantile([kl.mean() for kl in self.kl], 0.95)"),
    Bug("a 90% interval", "interval", metrics.gap_closed,
        "[0.025, 0.975]", "[0.26, 0.74]"),
    Bug("means of queries resampled, not their sums", "interval", metrics.gap_closed,
        "(a.sum(), b.sum())", "(a.sum(), b.mean())"),
    Bug("queries cut at the wrong places", "agreement", metrics.score,
        "np.cumsum([len(queries[i].ids) - queries[i].start for i in numbers])", "np.cumsum([1 for i in numbers])"),
    Bug("queries without an answer count as not recalled", "recall", metrics.recall,
        "float(np.mean(", "len(known) / len(queries) * float(np.mean("),
    Bug("spaces around an answer count", "recall", metrics.recall,
        "q.answer.strip()", "q.answer"),
    Bug("the last tokens are one too few", "rows", baselines.prefixes,
        "run.ids[-k:]", "run.ids[1 - k :]"),
    Bug("the ratio upside down", "costs", baselines.costs,
        "n / k,", "k / n,"),
    Bug("two bytes for every number", "costs", baselines.costs,
        "run.model.wte.dtype.itemsize", "2"),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-12


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    plant(bug, monkeypatch)
    assert not CHECKS[bug.caught_by]() <= 1e-10

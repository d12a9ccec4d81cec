"""The table that every compression must stand in: what else could have stood before the question."""

import time
from dataclasses import replace

import numpy as np

from minicompress.arrays import to_host
from minicompress.compression.queries import pad
from minicompress.compression.run import PROMPT_FILE, Run, initial_slots
from minicompress.compression.select import SELECTORS
from minicompress.compression.teacher import Teacher
from minicompress.evaluation.metrics import gap_closed, score
from minicompress.gpt2.prefix import Prefix, predictors, read_tokens


def prefixes(problem, made=None, reader=None):
    """{name: prefix} of the cheap rows: none, full, first and last k tokens, and what was `made` of the context.

    made: {"sigma": a SoftPrompt or LowRankWeights, and "init", as it began}; default: as a run has them. reader: the
    pair that reads sigma, where this is a model of its own; default: the run's.
    """
    pair, ids, k = problem.model.pair, problem.ids, problem.recipe.slots
    read = {"full": ids, "first": ids[:k], "last": ids[-k:]}
    rows = {"none": Prefix()} | {name: read_tokens(*pair, some) for name, some in read.items()}
    reader, made = reader or problem.reader, made or problem.made()
    return rows | {name: prompt.prefix(*reader) for name, prompt in made.items()}


def selected(problem):
    """{name: prefix} of what each selector leaves of the context in as many slots; {} where it has fewer tokens."""
    pair, ids, k, seed = problem.model.pair, problem.ids, problem.recipe.slots, problem.recipe.seed
    rows = {} if k > len(ids) else {name: f for name, f in SELECTORS.items() if name not in ("first", "last")}
    return {name: f(pair, ids, k, np.random.default_rng(seed)).prefix(*pair) for name, f in rows.items()}


def trained_prefixes(run, other_text, progress=None):
    """Two controls trained alike: the slots of another context, and slots that saw only the written answers.

    `queries` starts from vocabulary and follows the likelihood of the training queries' answers;
    neither the context's tokens nor the teacher's distributions reach it.
    """
    begins = {"init": "text", "offset": None} if run.recipe.init.endswith(PROMPT_FILE) else {}  # not as this context
    wrong = Run(run.model, run.teacher, other_text, replace(run.recipe, **begins), *run.files, shards=run.shards)
    wrong.train_slots(progress=progress)
    drawn = replace(run.recipe, init="vocab", seed=run.recipe.seed + 3)
    task = run.with_start(initial_slots(run.model, run.ids, drawn), loss="likelihood", top_k=None)
    task.train_slots(progress=progress)
    return {name: r.as_prompt(r.slots).prefix(*run.model.pair) for name, r in (("other", wrong), ("queries", task))}


def evaluate(run, extra=None, made=None, reader=None):
    """Scores of every row on the held-out queries -> a dict ready for JSON: rows, gap, costs.

    run: or a Problem, with what was `made` of it and the pair that reads this; extra: more rows, {name: prefix}.
    """
    held = Teacher(run.teacher.pair, run.read, run.held, run.shards)
    rows = prefixes(run, made, reader) | (extra or {})
    model, shards = run.model, run.shards
    reads = lambda name: reader or run.reader if name == "sigma" else model.pair
    scores = {n: score(reads(n), model.tokenizer, prefix, run.held, held, shards) for n, prefix in rows.items()}
    table = {}
    for name, prefix in rows.items():
        s = scores[name]
        gap, interval = gap_closed(scores["none"], s, np.random.default_rng(run.recipe.seed))
        table[name] = {"positions": prefix.length, "kl": s.mean_kl, "kl_p95": s.p95_kl, "gap_closed": gap,
                       "gap_closed_interval": interval, "top1_agreement": s.agreement, "recall": s.recall}  # fmt: skip
    return {"rows": table, "queries": len(run.held), **costs(run, made, reader)}


def costs(run, made=None, reader=None):
    """Ratio, bytes of keys and values, and after how many queries the compression has paid for itself."""
    pair, made = reader or run.reader, (made or run.made())["sigma"]
    config, k, n = pair[1], made.length, len(run.ids)
    per_position = 2 * config.n_layer * config.n_embd * run.model.wte.dtype.itemsize
    ids, scored = pad(run.held[:1])

    def seconds(pair, read):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            to_host(predictors(*pair, read(*pair), ids, scored, keep="nothing")[0])
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    full = seconds(run.model.pair, lambda *pair: read_tokens(*pair, run.ids))
    sigma = seconds(pair, made.prefix)
    return {"slots": run.recipe.slots, "context_tokens": n, "ratio": n / k if k else None,
            "kv_bytes_context": n * per_position, "kv_bytes_slots": k * per_position, "seconds": run.seconds,
            "seconds_per_query_full": full, "seconds_per_query_sigma": sigma,
            "break_even_queries": run.seconds / (full - sigma) if full > sigma else None}  # fmt: skip


def summary(result):
    """The table's main numbers under flat names."""
    rows = result["rows"]
    flat = {f"kl_{name}": rows[name]["kl"] for name in ("none", "init", "sigma") if name in rows}
    flat |= {f"recall_{name}": rows[name]["recall"] for name in ("full", "none", "sigma")}
    return flat | {name: rows["sigma"][name] for name in ("gap_closed", "gap_closed_interval", "top1_agreement")}

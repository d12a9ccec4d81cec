"""Checks of what stands around the mathematics, each a function that returns an error, which planted bugs share."""

import contextlib
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import letters
from helpers import TINY, random_ids, random_params, tree_errors
from minicompress.compression.queries import Query
from minicompress.evaluation import baselines, metrics
from minicompress.evaluation.baselines import costs, prefixes
from minicompress.evaluation.metrics import Scores, gap_closed, recall, score
from minicompress.gpt2 import embed, forward, logits
from minicompress.gpt2.model import positions
from minicompress.layers.losses import log_softmax
from minicompress.prompts.initialise import from_tokens, from_vocabulary
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.training.checkpoints import load_tree, save_tree
from minicompress.training.language_model import language_model_step
from minicompress.training.schedules import warmup_cosine
from minicompress.training.shards import Shards
from minicompress.trees import flatten
from minicompress.verification.oracles import complex_step, relative_error


def random_tree(rng):
    return {"w": rng.standard_normal((4, 3)), "deep": {"b": rng.standard_normal(5), "w": rng.standard_normal((2, 2))}}


def textbook_adamw(p, grads, rates, betas, eps, decay):
    """Algorithm 2 of Loshchilov & Hutter 2019 for one number, with decay in units of the learning rate."""
    (b1, b2), m, v = betas, 0.0, 0.0
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p -= lr * (m / (1 - b1**t) / (math.sqrt(v / (1 - b2**t)) + eps) + decay * p)
    return p


def adamw_error(decay=0.1, betas=(0.9, 0.999), eps=1e-8):
    """Twelve steps at falling rates, every number of a tree against the textbook's."""
    rng, rates = np.random.default_rng(0), [0.1 / t for t in range(1, 13)]
    params, steps = random_tree(rng), [random_tree(rng) for _ in rates]
    state, expected = adamw_init(params), {}
    for name, p in flatten(params).items():
        told = [[flatten(grads)[name][i] for grads in steps] for i in np.ndindex(p.shape)]
        rate = decay if p.ndim > 1 else 0.0
        numbers = [textbook_adamw(x, g, rates, betas, eps, rate) for x, g in zip(p.flat, told, strict=True)]
        expected[name] = np.reshape(numbers, p.shape)
    for grads, lr in zip(steps, rates, strict=True):
        adamw_step(params, grads, state, lr, betas, eps, decay)
    return max(relative_error(p, expected[name]) for name, p in flatten(params).items())


def schedule_error():
    """Four steps up to 0.8, eight down to a tenth of it: the cosine's quarters, and what lies beyond the end."""
    half = math.sqrt(0.5)
    by_hand = {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 4: 0.8, 6: 0.08 + 0.36 * (1 + half), 8: 0.44,
               10: 0.08 + 0.36 * (1 - half), 12: 0.08, 13: 0.08, 1000: 0.08}  # fmt: skip
    rates = [warmup_cosine(step, 12, 0.8, warmup=4, final=0.1) for step in by_hand]
    return relative_error(rates, list(by_hand.values()))


def checkpoint_error():
    """How many arrays of odd shapes, layouts and dtypes do not come back as they were."""
    a = np.arange(24.0).reshape(4, 6) / 7
    tree = {"0-d": np.array(1.5), "transposed": a.T, "strided": a[::2, ::-3], "reversed": a[::-1], "columns": a[:, 1:3],
            "fortran": np.asfortranarray(a), "spread": np.broadcast_to(a[0], (3, 6)), "empty": a[:0], "bool": a > 1,
            "float16": a.astype(np.float16), "int32": a.astype(np.int32)}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        save_tree(Path(folder) / "c", tree)
        back = load_tree(Path(folder) / "c")[0]
    return sum(
        (back[n].dtype, back[n].shape, back[n].tolist()) != (b.dtype, b.shape, b.tolist()) for n, b in tree.items()
    )


def batch(seed=0, config=TINY, B=5, T=6):
    """A random model, tokens (B, T + 1), and weights (B, T) of which a third are zero, the second row's all."""
    rng = np.random.default_rng(seed)
    params, tokens, weights = random_params(config, rng), random_ids(config, rng, B, T + 1), rng.random((B, T))
    weights[rng.random((B, T)) < 1 / 3] = 0
    weights[1] = 0
    return params, tokens, weights


def language_model_losses(params, config, tokens, offset=0):
    """-log p of every target, read and scored in one go: (B T,)."""
    hidden, _, _ = forward(params, config, embed(params, tokens[:, :-1], offset), keep="nothing")
    logp = log_softmax(logits(params, hidden)).reshape(-1, config.vocab_size)
    return -logp[np.arange(len(logp)), tokens[:, 1:].reshape(-1)]


def language_model_errors(oracle=complex_step, config=TINY, offset=3, n=2):
    """{name: error} of every weight's gradient."""
    params, tokens, weights = batch(config=config)
    with Shards(n) as shards:
        _, grads = language_model_step(params, config, tokens, weights, shards, offset)
    share = (weights / weights.sum()).reshape(-1)
    f = lambda p: language_model_losses(p, config, tokens, offset)
    return tree_errors(oracle, f, params, grads, share, np.random.default_rng(1))


def prompt_file_error(dtype=np.float32):
    """1 where slots, their dtype or where they came from are not what was saved."""
    slots = (np.random.default_rng(0).standard_normal((4, 6)) / 3).astype(dtype)
    slots[0, :3] = -0.0, np.finfo(dtype).tiny, np.finfo(dtype).eps
    prompt = SoftPrompt(slots, provenance={"model": "0" * 16, "steps": 3})
    with tempfile.TemporaryDirectory() as folder:
        prompt.save(Path(folder) / "p")
        back = SoftPrompt.load(Path(folder) / "p")
    facts = [(p.slots.dtype, p.slots.tobytes(), p.provenance, p.carrier, p.positions) for p in (prompt, back)]
    return float(facts[0] != facts[1])


def refusal_error():
    """How many unusable slots a prompt's file may hold all the same."""
    accepted = 0
    with tempfile.TemporaryDirectory() as folder:
        for slots in (np.zeros((0, 3)), np.zeros(3), np.full((2, 3), np.nan), np.full((2, 3), np.inf)):
            SoftPrompt(slots).save(Path(folder) / "p")
            with contextlib.suppress(ValueError):
                accepted += bool(SoftPrompt.load(Path(folder) / "p"))
    return accepted


def spacing_error():
    """How many texts are not picked from as by hand."""
    wte, ids = np.arange(10.0)[:, None], np.arange(10)
    by_hand = {(10, 4): [0, 3, 6, 9], (10, 1): [0], (10, 2): [0, 9], (9, 5): [0, 2, 4, 6, 8], (6, 4): [0, 2, 3, 5],
               (3, 3): [0, 1, 2], (3, 7): [0, 1, 2, 0, 1, 2, 0], (1, 2): [0, 0]}  # fmt: skip
    return sum(from_tokens(wte, ids[:n], slots)[:, 0].tolist() != told for (n, slots), told in by_hand.items())


def vocabulary_error():
    """How often a word is drawn twice, or none of the vocabulary's last quarter is drawn at all."""
    wte, repeats, last = np.arange(12.0)[:, None], 0, False
    for seed in range(20):
        drawn = from_vocabulary(wte, 9, np.random.default_rng(seed))[:, 0]
        repeats += 9 - len(set(drawn.tolist()))
        last |= drawn.max() >= 9
    return repeats + (not last)


def quantile_error():
    """The 95% quantile of 0..20 is 19, and of 0, 1 lies 0.95 of the way, whatever query a place belongs to."""
    many, two = Scores([np.arange(12.0), np.arange(12.0, 21)], []), Scores([np.array([1.0]), np.array([0.0])], [])
    return relative_error([many.p95_kl, two.p95_kl], [19, 0.95])


def gap_interval_error():
    """Of two queries a quarter of all draws takes one twice, a quarter the other: the interval spans their ratios."""
    none, sigma = (
        Scores([np.array([4.0]), np.array([1.0, 1.0])], []),
        Scores([np.array([1.0]), np.array([0.5, 0.9])], []),
    )
    return relative_error(gap_closed(none, sigma, np.random.default_rng(0))[1], [1 - 1.4 / 2, 1 - 1 / 4])


def agreement_error():
    """One query of two places and one of one; the likeliest tokens agree at the first and the third."""

    class Teacher:
        logp = staticmethod(lambda numbers: log_softmax(np.array([[3.0, 0, 1], [0, 3, 1], [1, 0, 3]])))

    queries = [Query([0, 1, 2], 1), Query([0, 1], 1)]
    with pytest.MonkeyPatch.context() as patch, Shards(1) as shards:
        patch.setattr(metrics, "predictors", lambda *_, **__: (None, None))
        patch.setattr(metrics, "logits", lambda *_: np.array([[5.0, 4, 0], [5, 4, 0], [0, 4, 5]]))
        told = score((None, None), None, None, queries, Teacher, shards)
    return float([agree.tolist() for agree in told.agree] != [[True, False], [True]])


def recall_error():
    """Four known answers: right, right but for spaces around it, wrong, right in part. The fifth query has none."""
    written = {"a": "yes", "b": "two words", "c": "no", "d": "a dog and a cat"}
    known = {"a": "yes", "b": " two words ", "c": "yes", "d": "a dog", "e": None}
    queries = [Query([0, 1], 1, question, answer) for question, answer in known.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "answer_greedily", lambda model, tokenizer, prefix, asked: [written[q] for q in asked])
        return abs(recall(None, None, None, queries) - 0.5)


@contextlib.contextmanager
def letters_run(*text, **options):
    """A small run in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, Shards(2) as shards:
        yield letters.run(Path(folder), shards, *text, **options)


def relative_distance(prefix, other):
    """Of two prefixes, the largest relative error of keys, values and the last state; 1 where lengths differ."""
    if prefix.length != other.length:
        return 1.0
    pairs = zip(prefix.past, other.past, strict=True)
    arrays = [(a, b) for one, two in pairs for a, b in zip(one, two, strict=True)] + [(prefix.last, other.last)]
    return max(relative_error(a, b) for a, b in arrays)


def rows_error():
    """Keys, values and last state of every row, against embeddings put together by hand."""
    with letters_run() as run:
        run.slots += 1.0
        (params, config), wte = run.model.pair, run.model.wte
        rows = prefixes(run)
        ids, k = run.ids, run.recipe.slots
        fronts = {"full": wte[ids], "first": wte[ids[:k]], "last": wte[ids[len(ids) - k :]],
                  "init": run.slots - 1.0, "sigma": run.slots}  # fmt: skip
        errors = [float(rows["none"].length != 0 or rows["none"].past is not None)]
        for name, front in fronts.items():
            hidden, past, _ = forward(params, config, front[None] + positions(params, len(front)))
            expected = type(rows[name])(past, hidden[:, -1:], len(front))
            errors.append(relative_distance(rows[name], expected))
        return max(errors)


def clock(durations):
    """A stand-in for `time`: whatever is measured takes these seconds, one after the other."""
    times = iter([t for seconds in durations for t in (0.0, float(seconds))])
    return SimpleNamespace(perf_counter=lambda: next(times))


def costs_error():
    """29 tokens in 4 slots, 2 layers of 12 channels in float64; 3 s a query against 1 s, after 12 s of training."""
    with letters_run() as run, pytest.MonkeyPatch.context() as patch:
        run.seconds = 12.0
        patch.setattr(baselines, "time", clock([3] * 5 + [1] * 5))
        found = costs(run)
    names = ("ratio", "kv_bytes_context", "kv_bytes_slots", "break_even_queries", "seconds")
    return relative_error([found[name] for name in names], [7.25, 29 * 2 * 2 * 12 * 8, 4 * 2 * 2 * 12 * 8, 6, 12])

"""A tuning in miniature, of single letters in float64, and the gradient of what it trains.

The checks here and in `tune_rows.py`, `tune_runs.py` and `tune_signs.py` are functions that planted bugs share: each returns
a relative error, or counts what is wrong. Modules are asked for their functions at the time of the call.
"""

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np

import letters
from helpers import tree_errors
from minicompress.compression.objectives import likelihood
from minicompress.compression.queries import pad
from minicompress.gpt2 import forward, head_loss, logits
from minicompress.gpt2.model import positions
from minicompress.gpt2.prefix import predictors
from minicompress.layers.losses import log_softmax
from minicompress.training.shards import Shards
from minicompress.trees import tree_map
from minicompress.tuning.recipe import METHODS, STAYS, Recipe, trained
from minicompress.tuning.run import Tuning
from minicompress.verification.oracles import complex_step, relative_error

LABELS = [{"text": f"the {name}", "label": label} for label, names in {
    "pet": ("dog", "cat", "goat", "parrot", "hen"), "food": ("soup", "rice", "bread", "fig", "pie"), "job": ("cook", "smith"),
}.items() for name in names]  # fmt: skip
OUTPUTS = [{"input": a, "output": b} for a, b in zip("abcdefgh", ("no", "yes", "no no", "a", "yes", "so", "no", "c"), strict=True)]
FITS = [(method, how) for method, (_, fitting) in METHODS.items() for how in fitting]


def write(folder, records, name="data.jsonl"):
    path = Path(folder) / name
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@contextlib.contextmanager
def tuning(records=LABELS, held=None, given=None, model=None, n=2, **changes):
    """A Tuning that has not begun, in a folder of its own; `changes` to its recipe."""
    with tempfile.TemporaryDirectory() as folder, Shards(n) as shards:
        files = [rows and write(folder, rows, name) for rows, name in ((records, "data"), (held, "valid"))]
        settings = Recipe(**{"slots": None if "template" in changes else 3, "steps": 6, "rows": 4, "evaluate_every": 2} | changes)
        yield Tuning(model or letters.model(), settings, *files, given, shards)


def raises(words, f, *arguments, **options):
    """Whether f raises a ValueError of one line that holds these words."""
    try:
        f(*arguments, **options)
    except ValueError as error:
        return words in str(error) and "\n" not in str(error)
    return False


# Gradients.


def perturbed(run, seed=0):
    """The run, its raw arrays with nothing special about them."""
    rng = np.random.default_rng(seed)
    run.raw = tree_map(lambda w: w + 0.3 * rng.standard_normal(w.shape), run.raw)
    return run


def losses(run, queries):
    """f(raw) -> each answer token's share in the mean loss, behind the run's own door."""
    ids, scored = pad(queries)
    objective = likelihood(ids[scored], 1 / scored.sum())

    def f(raw):
        prefix, _ = run.door.read(*run.model.pair, raw)
        return head_loss(run.model.pair[0], predictors(*run.model.pair, prefix, ids, scored)[0], objective)[0]

    return f


def gradient_error(method, how, oracle=complex_step, seed=0, records=LABELS, **changes):
    """The worst gradient of a trained array, from the loss of some rows through model, door and encoder."""
    with tuning(records, method=method, parameterisation=how, **changes) as run:
        perturbed(run, seed)
        queries = run.task.train[:4]
        _, draw = run.gradient(queries)
        whole, cotangent = losses(run, queries), np.ones(sum(len(q.ids) - q.start for q in queries))
        stays = {name: a for name, a in run.raw.items() if name in STAYS}
        f = lambda tree: whole(stays | tree)
        return max(tree_errors(oracle, f, trained(run.raw), trained(draw), cotangent, np.random.default_rng(seed)).values())


def in_one_go(run, slots, ids):
    """Log-probabilities (T, V) that predict each token of one row, which is read at once behind embeddings, or with them."""
    params, config = run.model.pair
    wte, P = params["wte"]["weight"], 0 if run.as_prompt(slots).in_rows else len(slots)
    tokens = np.array([slots[-1 - i] if i < 0 else wte[i] for i in ids])
    x = np.concatenate([slots[:P], tokens]) + positions(params, P + len(ids))
    hidden = forward(params, config, x[None], keep="nothing")[0][0]
    before = hidden[P - 1 : -1] if P else np.concatenate([np.full_like(hidden[:1], np.nan), hidden[:-1]])
    return log_softmax(logits(params, before))


def loss_error(**changes):
    """The mean over all answers' tokens of -log p, each row read alone and in one go."""
    with tuning(OUTPUTS, **changes) as run:
        slots, queries = run.bake(perturbed(run).raw)[0], run.task.train[:5]
        terms = []
        for q in queries:
            logp = in_one_go(run, slots, q.ids)
            terms += [-logp[t, q.ids[t]] for t in range(q.start, len(q.ids))]
        return relative_error(run.gradient(queries)[0], np.mean(terms)) + relative_error(
            run.gradient(queries, slots)[0], np.mean(terms)
        )

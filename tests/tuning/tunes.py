"""A tuning in miniature, of single letters in float64, and its checks as functions that planted bugs share.

A check returns a relative error, or counts what is wrong. Modules are asked for their functions at the time of the call.
"""

import contextlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import letters
from helpers import tree_errors
from minicompress.compression.objectives import likelihood
from minicompress.compression.queries import Query, pad
from minicompress.gpt2 import forward, head_loss, logits
from minicompress.gpt2.model import positions
from minicompress.gpt2.prefix import Prefix, predictors
from minicompress.layers.attention import probabilities
from minicompress.layers.losses import log_softmax
from minicompress.prompts.carriers import slots_shape
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.training.shards import Shards
from minicompress.trees import flatten, tree_map
from minicompress.tuning import diagnosis, examples, rows, scores, start
from minicompress.tuning.recipe import METHODS, STAYS, Recipe, settled, trained
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


# Rows.


def rows_error():
    """Rows by hand: what is read, where the answer begins, and the answer itself."""
    said = lambda run, q: (letters.Letters().decode(q.ids[: q.start]), letters.Letters().decode(q.ids[q.start :]))
    wrong = 0
    with tuning(held=LABELS[:2]) as run:
        wrong += [said(run, q) for q in run.task.held] != [("Q: the dog\nA:", " pet"), ("Q: the cat\nA:", " pet")]
        wrong += [q.answer for q in run.task.held] != ["pet", "pet"] or list(run.task.words) != ["food", "job", "pet"]
    with tuning(held=LABELS[4:6], verbalizer={"pet": "yes", "food": "no"}, template="{text} is it?") as run:
        wrong += [said(run, q) for q in run.task.held] != [("the hen is it?", " yes"), ("the soup is it?", " no")]
        wrong += (run.task.unnamed, run.task.unused) != (("job",), ())
    with tuning(OUTPUTS, held=OUTPUTS[2:3]) as run:
        wrong += [said(run, q) for q in run.task.held] != [("Q: c\nA:", " no no\n")] or run.task.words != {}
        wrong += run.task.unnamed != () or len(run.task.train) != 8
    with tuning(OUTPUTS, held=OUTPUTS[:1], template="[2]{input}[1]") as run:
        wrong += run.task.held[0].ids[:4] != [-1, -2, 7, -3] or run.recipe.slots != 3
    return wrong


def room_error():
    """A long text is cut to exactly the room that slots, template and the longest word leave; one that fits is not."""
    long = [{"text": "a" * n, "label": label} for n, label in ((200, "x"), (86, "yy"), (5, "x"))]
    wrong = 0
    for slots, template in ((3, "{text}:"), (None, "[2]{text}[1]:")):
        with tuning(long[1:], held=long, slots=slots, template=template) as run:
            sizes = [q.start for q in run.task.held]  # 96 positions: 3 slots, text, a colon, and " yy"
            inside = 3 * (slots is None)
            wrong += sizes != [90 + inside, 87 + inside, 6 + inside] or run.task.cut != 1
    wrong += not raises("90 slots + 6 tokens of the template + 5 tokens of the longest answer need 101", tuning(slots=90).__enter__)
    return wrong


def hold_out_error():
    """A fifth is held out, by its text, by the seed alone, and never trained on."""
    with tuning(LABELS + LABELS) as run, tuning(LABELS + LABELS) as again, tuning(LABELS + LABELS, seed=1) as other:
        asked = lambda some: {q.question for q in some}
        shared = asked(run.task.train) & asked(run.task.held)
        sizes = len(run.task.held) != 4 or len(run.task.train) != 20
        return len(shared) + sizes + (run.task != again.task) + (run.task.held == other.task.held)


def verbalizer_error():
    right = rows.read_verbalizer(" good = very great,bad=terrible") == {"good": "very great", "bad": "terrible"}
    wrong = ["", "good", "good=", "=great", "a=b,,c=d", "a=b,a=c"]
    accepted = sum(not raises("--verbalizer", rows.read_verbalizer, text) for text in wrong)
    alike = {"pet": "x", "food": "x", "job": "y"}
    return accepted + (not right) + (not raises("the same word", tuning(verbalizer=alike).__enter__))


def lines_error():
    """How many wrong lines pass, or are called by another number."""
    wrong = ["[]", "{", "3", "{}", '{"text": "a"}', '{"text": "a", "label": 3.5}', '{"text": "a", "label": true}',
             '{"text": "a", "label": ""}', '{"text": "a", "label": "b", "output": "c"}', '{"text": "a", "label": "b\\nc"}',
             '{"text": "a", "label": null}', '{"text": "a", "label": "\\ud800"}', '{"input": "a", "output": "b"}']  # fmt: skip
    accepted = 0
    with tempfile.TemporaryDirectory() as folder:
        for line in wrong:
            (path := Path(folder) / "f").write_text('{"text": "a\u2028b", "label": 3}\n\n' + line)
            accepted += not raises(f"{path}, line 3", examples.read_examples, path)
        (path := Path(folder) / "f").write_text('{"text": "a\u2028b", "label": 3, "more": [1]}\n\n')
        kind, (one,) = examples.read_examples(path)
    told = (kind, one.fields, one.answer, one.where)
    return accepted + (told != ("label", {"text": "a\u2028b", "more": [1]}, "3", f"{path}, line 1"))


# Scores.


def label_scores_error():
    """Log-likelihoods of words of one, two and three tokens, some with a common beginning, each row read alone."""
    with tuning() as run:
        slots, queries = run.initial, run.task.held + run.task.train[:3]
        words = [[7], [8, 9], [8, 10], [8, 9, 11], [12]]
        found = scores.label_scores(run.model.pair, run.as_prompt(slots).prefix(*run.model.pair), queries, words, run.shards)
        truth = np.empty(found.shape)
        for n, q in enumerate(queries):
            for k, word in enumerate(words):
                logp = in_one_go(run, slots, q.ids[: q.start] + word)[q.start :]
                truth[n, k] = sum(logp[t, token] for t, token in enumerate(word))
        return relative_error(found, truth)


def label_result_error():
    """Two of four right; the loss over the tokens of the right words; macro-F1 by hand."""
    table = np.log([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.4, 0.5, 0.1]])
    queries = [Query([0], 0, None, answer) for answer in ("a", "b", "b", "a")]
    found = scores.label_result(table, queries, {"a": [1], "b": [2, 3], "c": [4]})
    loss = -np.log([0.7, 0.3, 0.5, 0.4]).sum() / 6
    wrong = found["predicted"] != {"a": 2, "b": 2, "c": 0}
    f1 = scores.macro_f1(np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 3]))  # 4/5, 2/3, 0 and 0
    return wrong + relative_error([found["loss"], found["accuracy"], found["macro_f1"], f1], [loss, 0.5, 0.5, (0.8 + 2 / 3) / 4])


def output_result_error():
    """Loss and greedy answers of free texts, each row read alone, token by token."""
    with tuning(OUTPUTS, held=OUTPUTS) as run:
        slots, tokenizer = run.initial, letters.Letters()
        result = run.score(run.as_prompt(slots).prefix(*run.model.pair), run.task.held)
        written = scores.write_answers(run.model.pair, tokenizer, run.as_prompt(slots).prefix(*run.model.pair), run.task.held, run.shards)
        terms, wrong = [], 0
        for q, ours in zip(run.task.held, written, strict=True):
            logp = in_one_go(run, slots, q.ids)
            terms += [-logp[t, q.ids[t]] for t in range(q.start, len(q.ids))]
            ids = list(q.ids[: q.start])
            while len(ids) - q.start < 7 and "\n" not in tokenizer.decode(ids[q.start :]):  # " no no" and its line end
                ids.append(int(in_one_go(run, slots, [*ids, 0])[-1].argmax()))
            wrong += tokenizer.decode(ids[q.start :]).split("\n")[0].strip() != ours
    return wrong + relative_error(result["loss"], np.mean(terms)) + (result["written"] != 8)


def exact_match_error():
    """Right, right but for spaces around it, wrong, right in part; only the first four are written."""
    queries = [Query([0, 1], 1, str(i), answer) for i, answer in enumerate(("yes", "two words", "yes", "a dog", "no"))]
    written = [" yes\n\nQ", " two words \n", " no\n", " a dog and\n"]
    with pytest.MonkeyPatch.context() as patch, Shards(1) as shards:
        ids = iter(map(letters.Letters().encode, written))
        patch.setattr(scores, "generate", lambda params, config, rows, *_: [next(ids).ids for _ in rows])
        patch.setattr(scores, "over_queries", lambda model, prefix, queries, *_: [-0.5 for _ in queries])
        found = scores.evaluate((None, None), letters.Letters(), Prefix(), queries, {}, shards, decode=4)
    return float(found != {"loss": 0.5, "exact_match": 0.5, "written": 4, "different": 4})


def better_error():
    """What is better than what, by either measure; equal is not better."""
    result = lambda loss, hits: {"loss": loss, "accuracy": hits}
    cases = [(result(1, 0.5), result(2, 0.9), "loss", True), (result(1, 0.5), result(2, 0.9), "accuracy", False),
             (result(2, 0.5), result(1, 0.5), "accuracy", False), (result(1, 0.5), result(2, 0.5), "accuracy", True),
             (result(1, 0.5), result(1, 0.9), "loss", False), (result(9, 0), None, "loss", True),
             ({"loss": 1, "exact_match": 0.5}, {"loss": 0, "exact_match": 0.2}, "accuracy", True)]  # fmt: skip
    return sum(scores.better(one, best, by) != told for one, best, by, told in cases)


# The run.


def until(step):
    def progress(run):
        if run.state["step"] == step:
            raise KeyboardInterrupt

    return progress


def everything(run):
    """All that training changes, but the seconds, as bytes."""
    tree, counted = run.snapshot()
    arrays = {name: (a.dtype, a.tobytes()) for name, a in sorted(flatten(tree).items())}
    return arrays, {name: value for name, value in counted.items() if name != "seconds"}


def resumed_error(stop, **options):
    """A tuning stopped after some step, saved, taken up and ended, against one that was never stopped."""
    with tuning(**options) as whole, tuning(**options) as broken, tuning(**options) as resumed:
        whole.train()
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.suppress(KeyboardInterrupt):
                broken.train(Path(folder) / "c", until(stop))
            resumed.resume(Path(folder) / "c")
        wrong = everything(resumed) != everything(broken) or resumed.state["step"] != stop
        resumed.train()
        return wrong + (everything(resumed) != everything(whole))


def torn_error():
    """An interruption after the arrays have moved, before the step is counted as done: the step is done again."""
    with tuning() as whole, tuning() as broken, tuning() as resumed, tempfile.TemporaryDirectory() as folder:
        whole.train()
        calls, step = [], broken.take_step

        def torn():
            calls.append(step())
            if len(calls) == 4:
                raise KeyboardInterrupt
            return calls[-1]

        broken.take_step = torn
        with contextlib.suppress(KeyboardInterrupt):
            broken.train(Path(folder) / "c")
        resumed.resume(Path(folder) / "c")
        wrong = resumed.state["step"] != 3
        resumed.train()
        return wrong + (everything(resumed) != everything(whole))


def foreign_error():
    """How many checkpoints of another tuning are taken up all the same."""
    one, two = (SoftPrompt(number * np.ones((3, 12))) for number in (1, 2))
    others = [{"lr": 0.5}, {"slots": 4}, {"seed": 1}, {"method": "deep"}, {"records": LABELS[:-1]}, {"held": LABELS[:2]},
              {"model": letters.model()._replace(hash="9")}, {"given": one}, {"n": 1}, {"verbalizer": {"pet": "a"}}]  # fmt: skip
    accepted = 0
    with tuning() as run, tempfile.TemporaryDirectory() as folder:
        run.save(Path(folder) / "c")
        for other in others:
            with tuning(**other) as wrong:
                accepted += not raises("belongs to a run with another", wrong.resume, Path(folder) / "c")
    with tuning(given=one) as run, tuning(given=two) as other, tempfile.TemporaryDirectory() as folder:
        run.save(Path(folder) / "c")
        return accepted + (not raises("another start", other.resume, Path(folder) / "c"))


def batches(seed):
    """The texts of each step's batch."""
    with tuning(held=LABELS[:2], steps=5, seed=seed) as run:
        asked, gradient = [], run.gradient
        run.gradient = lambda queries: (asked.append(tuple(q.question for q in queries)), gradient(queries))[1]
        run.train()
        return asked


def batches_error():
    """Four different rows a step, other ones as the steps go, others by another seed, the same by the same."""
    first = batches(0)
    return sum(len(set(b)) != 4 for b in first) + (len(set(first)) == 1) + (first == batches(1)) + (first != batches(0))


def step_error():
    """One step against AdamW by hand: clipped, warmed up, decayed; what stays, stays."""
    with tuning(method="prefix", parameterisation="cartridge", clip=1e-3, warmup=4, weight_decay=0.1, lr=0.2) as run:
        slots, frozen = run.raw["slots"].copy(), run.raw["frozen"].copy()
        numbers = np.sort(np.random.default_rng((0, 0)).choice(len(run.task.train), 4, replace=False))
        _, draw = run.gradient([run.task.train[i] for i in numbers])
        g = draw["slots"] * 1e-3 / np.linalg.norm(draw["slots"])
        run.take_step()
        rate = 0.2 / 4
        expected = slots * (1 - rate * 0.1) - rate * g / (np.abs(g) + 1e-8)
        return relative_error(run.raw["slots"], expected) + float((run.raw["frozen"] != frozen).any())


def best_error():
    """What is saved is the best evaluation's slots, and scores in the file as it did then."""
    wrong = 0
    for by in ("loss", "accuracy"):
        with tuning(best_by=by, lr=0.4, steps=12) as run:
            kept, evaluate = {}, run.evaluate
            run.evaluate = lambda: (evaluate(), kept.setdefault(run.state["step"], tree_map(np.copy, run.raw)))  # noqa: B023
            run.train()
            ranks = [(h["accuracy"] if by == "accuracy" else 0, -h["loss"]) for h in run.history]
            wrong += run.best_at != ranks.index(max(ranks)) or [h["step"] for h in run.history] != [0, 2, 4, 6, 8, 10, 12]
            wrong += not np.array_equal(run.best["slots"], kept[run.history[run.best_at]["step"]]["slots"])
            with tempfile.TemporaryDirectory() as folder:
                run.prompt().save(Path(folder) / "p")
                back = SoftPrompt.load(Path(folder) / "p")
            again = run.score(back.prefix(*run.model.pair), run.task.held)
            wrong += any(again[name] != run.history[run.best_at][name] for name in again)
            wrong += not np.array_equal(run.bake(back.raw)[0], back.slots) or back.template != run.recipe.template
            wrong += not np.array_equal(back.initial, run.initial) or back.provenance["best_step"] != run.history[run.best_at]["step"]
    return wrong


def patience_error():
    """Evaluations of a made-up loss: training ends at the second in a row that is not better than the best."""
    wrong = 0
    for told, ends in (([5, 4, 4.5, 3, 3.1, 3.2, 1], 5), ([5, 6, 7, 1], 2), ([5, 4, 3, 2, 1], 4)):
        losses = iter(told)
        with tuning(evaluate_every=1, patience=2, steps=len(told) - 1) as run:
            run.score = lambda *_: {"loss": next(losses), "accuracy": 0.0, "predicted": {}}  # noqa: B023
            run.train()
            wrong += run.state["step"] != ends or run.best_at != told[: ends + 1].index(min(told[: ends + 1]))
    return wrong


def history_error():
    """The training loss of an evaluation is the mean of the last steps, here three, or of as many as there were."""
    with tuning(evaluate_every=2, steps=6) as run, pytest.MonkeyPatch.context() as patch:
        patch.setattr("minicompress.tuning.run.RECENT", 3)
        told, step = [], run.take_step
        run.take_step = lambda: (told.append(step()), told[-1])[1]
        run.train()
        found = [h["train_loss"] for h in run.history]
    return (found[0] is not None) + relative_error(found[1:], [np.mean(told[:2]), np.mean(told[1:4]), np.mean(told[3:])])


# Recipes and beginnings.


def fits_error():
    """How many pairs of method and parameterisation are taken though they do not fit, or refused though they do."""
    tokenizer, config = letters.Letters(), letters.CONFIG
    names, wrong = {how for _, how in FITS}, 0
    for method in METHODS:
        for how in sorted(names):
            refused = raises(f"--parameterisation {how} does not fit --method {method}", settled,
                             Recipe(method, how), "label", tokenizer, config)  # fmt: skip
            wrong += refused == ((method, how) in FITS)
    return wrong


def options_error():
    """How many options that would do nothing, or contradict, are taken."""
    prompt = lambda **options: (Recipe(**options), False)
    cases = {
        "--rank": prompt(rank=2), "--hidden": prompt(hidden=2), "--frozen": prompt(frozen=1, method="prefix"),
        "--rank belongs": prompt(method="p-tuning", rank=2), "--init says": prompt(method="p-tuning", init="noise"),
        "--init says where": prompt(method="prefix", parameterisation="mlp", init="vocab"),
        "two beginnings": (Recipe(init="vocab"), True), "shows nothing": prompt(template="abc"),
        "stand in every layer": prompt(method="prefix", template="[1]{text}"),
        "--slots is 2": prompt(slots=2, template="[1]{text}"), "--positions unshifted": prompt(positions="unshifted", template="[1]{text}"),
        "begins slots at words": prompt(method="p-tuning", template="[: a]{text}"),
        "leaves none to train": prompt(method="prefix", parameterisation="cartridge", frozen=8),
    }  # fmt: skip
    return sum(not raises(words, settled, one, "label", letters.Letters(), letters.CONFIG, given)
               for words, (one, given) in cases.items())  # fmt: skip


def defaults_error():
    """What a recipe is filled with."""
    fill = lambda kind="label", **options: settled(Recipe(**options), kind, letters.Letters(), letters.CONFIG)
    told = [fill(), fill("output", method="p-tuning"), fill(method="prefix", parameterisation="cartridge"),
            fill(parameterisation="low-rank", template="[2]{text}[1: b]", lr=0.5)]  # fmt: skip
    names = ("parameterisation", "slots", "hidden", "rank", "frozen", "init", "template", "lr")
    found = [tuple(getattr(one, name) for name in names) for one in told]
    return sum(one != by_hand for one, by_hand in zip(found, [
        ("direct", 8, None, None, None, "vocab", "Q: {text}\\nA:", 0.03),
        ("mlp", 8, 12, None, None, None, "Q: {input}\\nA:", 0.003),
        ("cartridge", 8, None, None, 1, "vocab", "Q: {text}\\nA:", 0.1),
        ("low-rank", 3, None, 4, None, "vocab", "[2]{text}[1: b]", 0.5),
    ], strict=True))  # fmt: skip


def sizes_error():
    """Raw arrays are as large as the options say."""
    cases = [({"method": "prompt", "parameterisation": "low-rank", "rank": 2}, "a", (3, 2)),
             ({"method": "prefix", "parameterisation": "cartridge", "frozen": 2}, "slots", (2, 2, 3, 1, 4)),
             ({"method": "prefix", "parameterisation": "mlp", "hidden": 5}, "transform.0.weight", (12, 5)),
             ({"method": "p-tuning", "hidden": 5}, "mlp_head.2.weight", (5, 5)),
             ({"method": "p-tuning", "parameterisation": "lstm", "hidden": 5}, "lstm_head.1.onward.weight_hh", (20, 5)),
             ({"method": "deep", "slots": 4}, "slots", (2, 4, 12))]  # fmt: skip
    wrong = 0
    for options, name, shape in cases:
        with tuning(**options) as run:
            wrong += flatten(run.raw)[name].shape != shape
    return wrong


def beginnings_error():
    """Slots at a template's words, at another prompt's slots, cut or repeated, and read into every layer."""
    wte, wrong = letters.model().wte, 0
    given = SoftPrompt(np.random.default_rng(1).standard_normal((2, 12)))
    with tuning(template="[1]{text}[2: b]") as run:
        wrong += not np.array_equal(run.raw["slots"][1:], wte[letters.Letters().encode(" b").ids])
        wrong += not (run.raw["slots"][0] == wte).all(-1).any()
    with tuning(given=given, slots=3) as run, tuning(given=given, slots=1) as cut:
        wrong += not np.array_equal(run.raw["slots"], given.slots[[0, 1, 0]]) or not np.array_equal(cut.raw["slots"], given.slots[:1])
    with tuning(given=given, slots=2, method="prefix") as run, tuning(given=given, slots=2) as flat:
        query = run.task.train[:4]
        wrong += relative_error(run.gradient(query)[0], flat.gradient(query)[0]) > 1e-12
    with tuning(method="prefix") as run, tuning(method="prefix", given=SoftPrompt(run.raw["slots"], "kv"), slots=3) as again:
        wrong += not np.array_equal(run.raw["slots"], again.raw["slots"])
    wrong += not raises("--method prompt needs embeddings", tuning(given=SoftPrompt(np.ones(slots_shape("kv", letters.CONFIG, 3)), "kv")).__enter__)
    return wrong


def encoder_error():
    """An encoder goes on from the raw arrays that another prompt keeps, of the same shape only."""
    with tuning(method="p-tuning") as run:
        run.train()
        prompt = run.prompt()
        with tuning(method="p-tuning", given=prompt) as on:
            wrong = any(not np.array_equal(a, flatten(on.raw)[name]) for name, a in flatten(run.best).items())
            wrong += not np.array_equal(on.initial, prompt.slots)
    for other in ({"hidden": 5}, {"slots": 2}, {"parameterisation": "lstm"}):
        wrong += not raises("--init-from keeps no", tuning(method="p-tuning", given=prompt, **other).__enter__)
    return wrong + (not raises("keeps no mlp", tuning(method="p-tuning", given=replace(prompt, raw=None)).__enter__))


def recycle_error():
    """Where the other model's embeddings are these, mapped, the map is found and slots go the same way."""
    rng, source = np.random.default_rng(0), letters.model(1)
    mapping = rng.standard_normal((12, 12))
    params = source.pair[0] | {"wte": {"weight": source.wte @ mapping}}
    target = source._replace(pair=(params, source.pair[1]))
    slots = rng.standard_normal((3, 12))
    found = start.recycle(SoftPrompt(slots, raw={"slots": slots}), source, target)
    other = source._replace(tokenizer=SimpleNamespace(get_vocab=dict))
    wrong = not raises("vocabulary", start.recycle, SoftPrompt(slots), source, other)
    wrong += not raises("has kv", start.recycle, SoftPrompt(np.ones((2, 2, 3, 3, 4)), "kv"), source, target)
    return wrong + relative_error(found.slots, slots @ mapping) * 1e-2 + (found.raw is not None)


# Diagnosis.


def attention_error():
    """The share of attention on slots, of a row with its slots read in one go."""
    errors = []
    for options in ({}, {"template": "[2]{text}[1]:"}, {"slots": 1}):
        with tuning(**options) as run:
            slots, queries, (params, config) = run.initial, run.task.train[:3], run.model.pair
            found, stream = diagnosis.attention_on_slots(run, slots, queries)
            for row, q in enumerate(queries):
                front = 0 if run.as_prompt(slots).in_rows else len(slots)
                x = np.concatenate([slots[:front], [slots[-1 - i] if i < 0 else params["wte"]["weight"][i] for i in q.ids[: q.start]]])
                layers = []
                _, _, (caches, _) = forward(params, config, (x + positions(params, len(x)))[None], watch=layers)
                layers = [layer[0] for layer in layers]
                soft = np.array([True] * front + [i < 0 for i in q.ids[: q.start]])
                truth = [probabilities(c["attn"]["attention"])[0, :, -1][:, soft].sum(-1) for c in caches]
                errors.append(relative_error(found[:, row], truth))
                errors += [relative_error(x[row, : q.start], y[front:]) for x, y in zip(stream, layers[:-1], strict=True)]
    return max(errors)


def measured_error(**options):
    """Gradient, movement and length of slots, by their definitions."""
    with tuning(steps=3, **options) as run:
        run.train()
        found, slots = diagnosis.measure(run), run.bake(run.raw)[0]
        loss, dslots = run.gradient(run.task.train[:16], slots)
        lengths = np.linalg.norm(slots, axis=1)
        felt = [np.linalg.norm(d) * np.median(lengths) / loss for d in dslots]
        moved = np.linalg.norm(slots - run.initial) / np.linalg.norm(run.initial)
        ratio = lengths.mean() / np.linalg.norm(run.model.wte, axis=1).mean()
        return relative_error([*found["felt"], found["moved"], found["length_ratio"]], [*felt, moved, ratio])


def attentive(run, slot, sign):
    """The run, in whose model all queries lean one way, and this slot's keys along it, or against it."""
    for layer in run.model.pair[0]["h"].values():
        layer["attn"]["c_attn"]["bias"][:12] += 2
    run.raw["slots"][:, 0, :, slot] = sign * 1000.0
    return run


def provoked():
    """{what is said: a Tuning of which it must be said, or the lines}, each at the end of a short training."""
    found = {}

    def say(words, prepare=lambda run: run, **options):
        with tuning(**options) as run:
            prepare(run).train()
            found[words] = diagnosis.diagnose(run)[1]

    def cut_off(run):
        for layer in run.model.pair[0]["h"].values():
            layer["attn"]["c_proj"]["weight"][...] = 0
        return run

    def switched_off(run):
        run.raw["mlp_head"]["0"]["bias"][...] = -1e6
        return run

    deaf = lambda run: attentive(run, 1, -1)
    taken = lambda run: attentive(run, slice(None), 1)
    still = {"lr": 1e-9}
    say("no slot feels a gradient", cut_off, **still)
    say("1 of 3 slots feel no gradient: 1", deaf, method="prefix", **still)
    say("the encoder lets no gradient through", switched_off, method="p-tuning", **still)
    say("of their length: --lr or --steps is too small", **still)
    say("times as long as the model's own embeddings", lr=1000.0)
    say("times as long as the model's own hidden states", method="deep", lr=1000.0)
    say("100% of the heads attend to slots alone", taken, method="prefix", **still)
    say("that of always giving the labels' frequencies", **still)
    say("every prediction is 'tool': accuracy 0.0%", verbalizer={"tool": "a"})  # the shortest word
    say("the label 'job' is held out, but no training example has it", records=LABELS[:10], held=LABELS)
    say("5 of 12 held-out texts are trained on as well", records=LABELS[:5], held=LABELS)
    say("the label 'job' is not in the verbalizer", verbalizer={"pet": "a", "food": "b"})
    say("the verbalizer names 'tool', which no example has", verbalizer={"tool": "a"})
    say("the words of 'food', 'job', 'pet' begin with the same token")  # all begin with a space, here a token of its own
    say("the word of 'food' begins with the whole word of 'pet', which", verbalizer={"pet": "a", "food": "ab"})
    say("no evaluation was better than the untrained slots", lambda run: worse(run))
    say("every answer that is written is the same", lambda run: mute(run), records=OUTPUTS, held=OUTPUTS)
    return found


def worse(run):
    losses = iter(range(1, 100))
    run.score = lambda *_: {"loss": next(losses), "accuracy": 0.0, "predicted": {"pet": 1, "food": 1}}
    return run


def mute(run):
    """The run, whose model writes line ends only."""
    run.model.pair[0]["ln_f"]["bias"][...] = 1000 * run.model.wte[0]
    return run


def provoked_error():
    """How many of the lines are not said where they must be."""
    return sum(not any(words in line for line in lines) for words, lines in provoked().items())


def length_error():
    """Hidden states three and five times as long as the median of their layer's."""
    run = SimpleNamespace(recipe=SimpleNamespace(carrier="hidden"))
    stream = [np.ones((1, 3, 4)) * np.array([1, 2, 100])[:, None], np.ones((1, 3, 4))]
    slots = np.stack([np.full((2, 4), 6.0), np.full((2, 4), 5.0)])
    return relative_error(diagnosis.length_ratio(run, slots, stream), 4)


def unprovoked_error():
    """What is said without a reason: of arguments that are only just in order."""
    task = SimpleNamespace(words={"a": [1], "b": [2]}, unnamed=(), unused=(),
                           train=[Query([0], 0, str(i), "ab"[i % 2]) for i in range(8)],
                           held=[Query([0], 0, f"h{i}", "aab"[i % 3]) for i in range(6)])  # fmt: skip
    best = {"predicted": {"a": 5, "b": 1}, "accuracy": 0.7}
    lines = diagnosis.gradient_lines([2e-4, 1]) + diagnosis.gradient_lines([1, 1], True)
    lines += diagnosis.movement_lines(0.02, 0.5) + diagnosis.length_lines("kv", None)
    lines += diagnosis.length_lines("embeddings", 40) + diagnosis.length_lines("hidden", 10)
    lines += diagnosis.prediction_lines(best, task) + diagnosis.frequency_lines(0.69, task)
    lines += diagnosis.frequency_lines(None, task) + diagnosis.data_lines(task, SimpleNamespace(decode=lambda ids: "a"))
    said = diagnosis.prediction_lines(best | {"accuracy": 2 / 3}, task), diagnosis.frequency_lines(0.70, task)
    return len(lines) + sum(len(some) != 1 for some in said)


CHECKS = {
    **{f"gradient of {method}, {how}": lambda method=method, how=how: gradient_error(method, how) for method, how in FITS},
    "gradient, slots in rows": lambda: gradient_error("prompt", "direct", template="[1]{text}[a 1]:[a]"),
    "loss": loss_error,
    "loss, slots in rows": lambda: loss_error(template="{input}[2]:[1]"),
    "rows": rows_error,
    "room": room_error,
    "hold out": hold_out_error,
    "verbalizer": verbalizer_error,
    "lines": lines_error,
    "label scores": label_scores_error,
    "label result": label_result_error,
    "output result": output_result_error,
    "exact match": exact_match_error,
    "better": better_error,
    "resumed": lambda: resumed_error(3),
    "resumed, a network": lambda: resumed_error(3, method="p-tuning"),
    "torn": torn_error,
    "foreign": foreign_error,
    "batches": batches_error,
    "step": step_error,
    "best": best_error,
    "patience": patience_error,
    "history": history_error,
    "fits": fits_error,
    "options": options_error,
    "defaults": defaults_error,
    "sizes": sizes_error,
    "beginnings": beginnings_error,
    "encoder": encoder_error,
    "recycle": recycle_error,
    "attention": attention_error,
    "measured": measured_error,
    "measured, a network": lambda: measured_error(method="p-tuning"),
    "length": length_error,
    "provoked": provoked_error,
    "unprovoked": unprovoked_error,
}  # fmt: skip

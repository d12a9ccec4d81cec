"""Checks of a run, of recipes and of beginnings."""

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tunes import FITS, LABELS, raises, tuning

import letters
from minicompress.prompts.carriers import slots_shape
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.trees import flatten, tree_map
from minicompress.tuning import start
from minicompress.tuning.recipe import METHODS, Recipe, settled
from minicompress.verification.oracles import relative_error


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
              {"model": letters.model()._replace(hashed=lambda: "9")}, {"given": one}, {"verbalizer": {"pet": "a"}}]  # fmt: skip
    accepted = 0
    with tuning() as run, tempfile.TemporaryDirectory() as folder:
        run.save(Path(folder) / "c")
        for other in others:
            with tuning(**other) as wrong:
                accepted += not raises("belongs to a run with another", wrong.resume, Path(folder) / "c")
    with tuning(given=one) as run, tuning(given=two) as other, tempfile.TemporaryDirectory() as folder:
        run.save(Path(folder) / "c")
        accepted += not raises("another start", other.resume, Path(folder) / "c")
    with tuning(n=3) as run, tuning(n=2) as other, tempfile.TemporaryDirectory() as folder:
        run.save(Path(folder) / "c")
        words = "belongs to a run on 3 threads; --threads 3 goes on from it"
        return accepted + (not raises(words, other.resume, Path(folder) / "c"))


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
    kv = np.ones(slots_shape("kv", letters.CONFIG, 3))
    masses = np.zeros((2, 3, 3))
    with tuning(method="prefix", given=SoftPrompt(kv, "kv", beta=masses)) as run:
        wrong += not np.array_equal(run.raw["slots"], kv)
    wrong += not raises("--init-from has log-masses", tuning(method="prefix", given=SoftPrompt(kv, "kv", beta=masses - 1)).__enter__)
    wrong += not raises("begin at position 9 (logical)", tuning(given=replace(given, positions="logical", offset=9)).__enter__)
    wrong += not raises("--method prompt needs embeddings", tuning(given=SoftPrompt(kv, "kv")).__enter__)
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
    return wrong + relative_error(found.slots, slots @ mapping) + (found.raw is not None)

"""Checks of what a tuning says about itself."""

from types import SimpleNamespace

import numpy as np
from tunes import LABELS, OUTPUTS, tuning

from minicompress.compression.queries import Query
from minicompress.gpt2 import forward
from minicompress.gpt2.model import positions
from minicompress.layers.attention import probabilities
from minicompress.tuning import diagnosis
from minicompress.verification.oracles import relative_error


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

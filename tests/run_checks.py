"""Checks of a run and its queries, and of what training stands on: each a function that counts what is wrong."""

import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

import letters
from minicompress.compression import queries
from minicompress.compression.problem import Recipe, check_positions
from minicompress.compression.queries import Query, file_queries, hold_out, read_queries, self_study
from minicompress.compression.run import Run, initial_slots
from minicompress.gpt2.prefix import read_tokens
from minicompress.layers.losses import log_softmax
from minicompress.training.adamw import clip_by_global_norm
from minicompress.training.checkpoints import replace_file
from minicompress.training.shards import Shards
from minicompress.verification.oracles import relative_error
from outer_checks import letters_run


def raises(error, f, *arguments):
    """Whether f raises an error of that kind, and no other."""
    try:
        f(*arguments)
    except error:
        return True
    return False


def until(last):
    def progress(step, *_):
        if step == last:
            raise KeyboardInterrupt

    return progress


def resume_error():
    """A run stopped after its second step of four and taken up again, against one that was not."""
    with letters_run(steps=4) as whole, letters_run(steps=4) as broken, letters_run(steps=4) as resumed:
        whole.train_slots()
        with tempfile.TemporaryDirectory() as folder:
            assert raises(KeyboardInterrupt, broken.train_slots, Path(folder) / "c", until(2))
            resumed.resume(Path(folder) / "c")
        right = resumed.state["step"] == 2 and resumed.slots.tobytes() == broken.slots.tobytes()
        resumed.train_slots()
        return float(not right or resumed.slots.tobytes() != whole.slots.tobytes())


def foreign_checkpoints():
    """How many checkpoints of another run are taken up all the same."""
    others = [{"text": letters.OTHER}, {"teacher": letters.model()._replace(hashed=lambda: "9")}, {"lr": 0.5}, {"slots": 5}]
    accepted = 0
    with letters_run() as run, tempfile.TemporaryDirectory() as folder:
        run.save(Path(folder) / "c")
        for other in others:
            with letters_run(**other) as wrong:
                accepted += not raises(ValueError, wrong.resume, Path(folder) / "c")
        with letters_run() as wrong:
            wrong.train = wrong.train[1:]
            accepted += not raises(ValueError, wrong.resume, Path(folder) / "c")
    return accepted


def batches(seed):
    """The queries of each step's batch, as they are asked of the teacher."""
    with letters_run(seed=0, steps=5) as run:
        asked, logp = [[] for _ in range(5)], run.expects.logp
        run.recipe = Recipe(slots=4, steps=5, rows=4, seed=seed)
        run.expects = SimpleNamespace(logp=lambda n: (asked[run.state["step"]].extend(n.tolist()), logp(n))[1])
        run.train_slots()
        return [sorted(numbers) for numbers in asked]


def batches_error():
    """Four different queries a step, other ones as the steps go, and others by another seed."""
    first, other = batches(0), batches(1)
    repeats = sum(len(set(numbers)) != 4 for numbers in first)
    return repeats + (len(set(map(tuple, first))) == 1) + (first == other) + (first != batches(0))


def with_start_error():
    """Training from another start leaves the run, its slots and that start alone."""
    with letters_run() as run:
        start = run.slots + 1.0
        other = run.with_start(start, loss="likelihood", steps=2)
        other.train_slots()
        moved = (other.slots != start).all() and (other.initial == start).all() and other.state["step"] == 2
        alone = (start == run.slots + 1.0).all() and run.state["step"] == 0 and run.recipe.loss == "kl"
        return float(not (moved and alone and (run.slots == run.initial).all()))


def prompt_error():
    """The prompt holds the trained slots, and says of which model and text they are."""
    with letters_run() as run:
        run.train_slots()
        prompt = run.prompt()
        facts = {"model": "0", "teacher": "0", "context_tokens": len(letters.TEXT), "queries": len(run.train)}
        wrong = [name for name, value in facts.items() if prompt.provenance[name] != value]
        return len(wrong) + (prompt.slots.tobytes() != run.slots.tobytes()) + (prompt.slots == run.initial).all()


def temperature_error():
    """What the training follows is the teacher's distribution at the recipe's temperature."""
    with letters_run(temperature=3.0) as hot, letters_run() as plain:
        return relative_error(hot.expects.logp([0, 1]), log_softmax(plain.expects.logp([0, 1]) / 3))


def evaluate_on_error():
    """Queries asked in the evaluation, their text repeated in the other file, are never trained on."""
    with Shards(1) as shards, tempfile.TemporaryDirectory() as folder:
        path, other = letters.write_questions(Path(folder)), Path(folder) / "other.jsonl"
        shared = path.read_text().splitlines()[:3]
        other.write_text("\n".join([*shared, '{"question": "is ann a cat?", "answer": "no"}']))
        model = letters.model()
        run = Run(model, model, letters.TEXT, Recipe(slots=2), path, other, shards)
        trained, held = {q.question for q in run.train}, [q.question for q in run.held]
    expected = [json.loads(line)["question"] for line in shared] + ["is ann a cat?"]
    return len(trained & set(held)) + (held != expected) + (len(trained) < 3)


def starts_error():
    """How many of the four beginnings are not what they are called."""
    model, text = letters.model(), [7, 8, 9, 10, 11, 12]
    start = lambda init, seed=0: initial_slots(model, text, Recipe(slots=3, init=init, seed=seed))
    words = model.wte[[letters.LETTERS.index(letter) for letter in "cat"]]
    in_vocabulary = (start("vocab")[:, None] == model.wte).all(-1).any(1).all()
    in_text = (start("vocab")[:, None] == model.wte[text]).all(-1).any(1).all()
    noise = (start("noise")[:, None] == model.wte).all(-1).any()
    return ((start("text") != model.wte[[7, 9, 12]]).any() + (start("cat") != words).any() + (not in_vocabulary)
            + in_text + noise + (start("noise") == start("noise", 1)).any()
            + (start("vocab") == start("vocab", 1)).all())  # fmt: skip


def positions_error():
    """Exactly as many positions as there are do fit; one more does not."""
    config = letters.CONFIG
    return raises(ValueError, lambda: check_positions(config, a=90, b=6)) + (
        not raises(ValueError, lambda: check_positions(config, a=90, b=7))
    )


def hold_out_error():
    """Ten questions asked twice: two of them are held out, both times, and none is lost."""
    asked = [Query([i, i], 1, f"q{i % 10}") for i in range(20)]
    train, held = hold_out(asked, 0.2, np.random.default_rng(0))
    kept, out = {q.question for q in train}, {q.question for q in held}
    return len(kept & out) + abs(len(out) - 2) + abs(len(held) - 4) + abs(len(train) - 16)


def file_error():
    """Lines with an answer, without one (the teacher then gives its own, which nobody is to recall), and of plain text."""
    lines = ['{"question": "a?", "answer": "yes"}', '{"question": "b?"}', "plain", "x"]
    model, prefix = letters.model(), read_tokens(*letters.model().pair, [7, 8, 9])
    own = queries.answer_greedily(model.pair, model.tokenizer, prefix, ["b?"])[0]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "q").write_text("\n".join(lines))
        teacher = SimpleNamespace(pair=model.pair, tokenizer=model.tokenizer)
        found = file_queries(teacher, prefix, Path(folder) / "q")
    told = [
        (model.tokenizer.decode(q.ids[: q.start]), model.tokenizer.decode(q.ids[q.start :]), q.answer) for q in found
    ]
    return float(told != [("Q: a?\nA:", " yes\n", "yes"), ("Q: b?\nA:", f" {own}\n", None), ("p", "lain", None)])


def lines_error():
    """How many wrong lines pass, or are called by another number."""
    wrong = ['{"question": 3}', '{"answer": "a"}', '{"question": "a", "answer": 3}', "{"]
    passed = sum(not raises(ValueError, read_queries, [line], "f") for line in wrong)
    told = ""
    try:
        read_queries(["one", "", '{"answer": "a"}'], "f")
    except ValueError as error:
        told = str(error)
    return passed + (not told.startswith("f, line 3: "))


def self_study_error():
    """What the teacher is made to write, and the queries that are to come of it."""
    written = [" who?\nA: tom\n", " who?\nA: tom\n", " who?\nA:\n", " why\n", " a?\nA: b\nA: c"]
    tokenizer, seen = letters.Letters(), []

    def generate(params, config, rows, steps, prefix, stop, **options):
        seen.append((rows, prefix, options["temperature"], stop(0, tokenizer.encode("a\nb\n").ids)))
        return [tokenizer.encode(text).ids for text in written]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queries, "generate", generate)
        found = self_study(letters.model().pair, tokenizer, "prefix", 5, None)
    told = [(tokenizer.decode(q.ids), q.start, q.question, q.answer) for q in found]
    by_hand = [("Q: who?\nA: tom\n", 10, "who?", None), ("Q: who?\nA:\n", 1, None, None), ("Q: why\n", 1, None, None),
               ("Q: a?\nA: b\nA: c\n", 8, "a?", None)]  # fmt: skip
    return (told != by_hand) + (seen != [([tokenizer.encode("Q:").ids] * 5, "prefix", 1.0, True)])


def clipping_error():
    """A joint length of 13 cut to 6.5, one of 5 left alone, and one that is no number."""
    long, short = ({"a": np.array([3.0, 4.0]), "b": np.array([[b]])} for b in (12.0, 0.0))
    lengths = clip_by_global_norm(long, 6.5), clip_by_global_norm(short, 6.5)
    passed = not raises(FloatingPointError, clip_by_global_norm, {"a": np.array([np.nan])}, 1.0)
    return passed + relative_error([*lengths, *long["a"], *long["b"][0], *short["a"]], [13, 5, 1.5, 2, 6, 3, 4])


def writing_error():
    """A write that fails half-way leaves the old file, alone; one that ends takes its place."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c"
        path.write_text("old")
        failed = raises(TypeError, replace_file, path, lambda beside: beside.write_text("half") + "")
        left = (os.listdir(folder), path.read_text())
        replace_file(path, lambda beside: beside.write_text("new"))
        return float(not failed or left != (["c"], "old") or path.read_text() != "new")


def shards_error():
    """Five rows in three shards, in order; one BLAS thread within, as many as before outside."""
    blas = ThreadpoolController().select(user_api="blas")
    count = lambda: {library["num_threads"] for library in blas.info()}
    with blas.limit(limits=2):
        before = count()
        with Shards(3) as shards:
            within, parts = count(), shards.map(lambda rows: (rows.start, rows.stop), 5)
        after = count()
    return (parts != [(0, 1), (1, 3), (3, 5)]) + (within - {1} != set()) + (before != after)


CHECKS = {
    "resume": resume_error,
    "foreign checkpoints": foreign_checkpoints,
    "batches": batches_error,
    "another start": with_start_error,
    "prompt": prompt_error,
    "temperature": temperature_error,
    "evaluate on": evaluate_on_error,
    "starts": starts_error,
    "positions": positions_error,
    "hold out": hold_out_error,
    "file": file_error,
    "lines": lines_error,
    "self study": self_study_error,
    "clipping": clipping_error,
    "writing": writing_error,
    "shards": shards_error,
}

"""The rows that train the embedded model: answers stand in the context, what is held out never occurs, runs resume."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import weights_loader

FOLDER = Path(__file__).parents[1] / "examples/embedded_model"
SEEDS = range(40)


@pytest.fixture(scope="module")
def scripts():
    """The modules of examples/embedded_model, as its scripts see them."""
    sys.path.insert(0, str(FOLDER))
    import corpus
    import notes
    import tasks
    import train

    yield {"corpus": corpus, "notes": notes, "tasks": tasks, "train": train}
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(weights_loader.EMBEDDED / "tokenizer.json"))


def drawn(scripts, seed, held_out):
    return scripts["notes"].notes(np.random.default_rng(seed), 3, 11, held_out)


@pytest.mark.parametrize("held_out", [False, True])
def test_every_answer_stands_in_the_notes_once(scripts, held_out):
    for seed in SEEDS:
        context = drawn(scripts, seed, held_out)
        words = context.text.replace(".", " ").replace(",", " ").split()
        for q in context.questions:
            assert words.count(q.answer) == 1, (q, context.text)


def others(notes, q, held_out):
    return [form for f in (notes.KINDS[q.kind].questions, notes.OF_ANY_KIND) for form in notes.phrasings(f, not held_out)]


def test_what_is_held_out_never_occurs_in_training(scripts):
    notes = scripts["notes"]
    for seed in SEEDS:
        for held_out in (False, True):
            for q in drawn(scripts, seed, held_out).questions:
                assert notes.is_held_out_pair(q.person, q.kind, q.answer) == held_out
                forms = [notes.phrasings(f, held_out) for f in (notes.KINDS[q.kind].questions, notes.OF_ANY_KIND)]
                called = notes.CALLED.get(q.kind, q.kind)
                assert q.question in [form.format(n=q.person, k=called) for form in sum(forms, ())]
                assert q.question not in [form.format(n=q.person, k=called) for form in others(notes, q, held_out)]


@pytest.mark.parametrize("held_out", [False, True])
def test_what_the_demonstrations_show_gives_the_answers(scripts, held_out):
    tasks = scripts["tasks"]
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        looked_up, sorted_ = (tasks.task(rng, held_out, family) for family in ("lookup", "sort"))
        shown = looked_up.text.split("\n")
        for q in looked_up.questions:
            word = q.question.rstrip("?").split()[-1]
            (line,) = (i for i, text in enumerate(shown) if text.rstrip("?").split()[-1:] == [word])
            assert shown[line + 1] == f"A: {q.answer}" and tasks.is_held_out(word, q.answer) == held_out
        for q in sorted_.questions:
            assert f"A: {q.answer}\n" in sorted_.text and q.question not in sorted_.text


@pytest.mark.parametrize("step", [0, 1500, 6000])
def test_a_batch_is_a_function_of_its_seed_and_step(scripts, tokenizer, step):
    batch = scripts["corpus"].batch
    prose = np.arange(1, 2000, dtype=np.uint16)
    one, again, other = (batch(seed, step, tokenizer, prose, 2048) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert one[0].shape != other[0].shape or (one[0] != other[0]).any()
    tokens, weights, offset = one
    assert weights.shape == (len(tokens), tokens.shape[1] - 1) and offset + weights.shape[1] <= 512
    assert tokens.min() >= 0 and tokens.max() < 2048 and set(np.unique(weights)) <= set(np.float32([0, 0.1, 0.3, 1]))


def test_pairs_weigh_their_values(scripts, tokenizer):
    corpus, rng = scripts["corpus"], np.random.default_rng(0)
    pieces = scripts["notes"].pairs(rng, 4, "in a sentence", "by question")
    ids, weights = corpus.encode(tokenizer, [(text, 1.0 if value else corpus.LOW) for text, value in pieces])
    assert tokenizer.decode(ids) == "".join(text for text, _ in pieces)
    assert tokenizer.decode(ids[weights == 1]) == "".join(text for text, value in pieces if value)


def test_training_stopped_and_taken_up_again_gives_the_same_bits(scripts, tmp_path, monkeypatch):
    train, corpus = scripts["train"], scripts["corpus"]
    monkeypatch.setattr(corpus, "prose_tokens", lambda tokenizer: np.arange(1, 2000, dtype=np.uint16))
    monkeypatch.setattr(train, "EVERY", 2)
    monkeypatch.setattr(train, "CONFIG", train.Config(vocab_size=2048, n_positions=512, n_embd=12, n_layer=1, n_head=2))
    real = train.language_model_step

    def run(name, steps_until_killed=None):
        calls = []

        def step(*arguments):
            calls.append(1)
            if len(calls) == steps_until_killed:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(train, "language_model_step", step)
        monkeypatch.setattr(sys, "argv", ["train.py", "--out", str(tmp_path / name), "--tokens", "0.0105", "--threads", "2"])
        train.main()
        return (tmp_path / name / "checkpoint.safetensors").read_bytes()

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", steps_until_killed=4)
    assert run("stopped") == whole

"""Training rows for the embedded model: a mixture of rungs, from copying to questions about notes.

A document is a list of (token ids, weight): answers weigh 1, what leads to them 0.1, prose 0.3. A row packs documents
behind `<|endoftext|>`; prose fills what is left. A batch is a pure function of (seed, step).
"""

import json
import lzma
import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from notes import KINDS, NAMES, Question, ask, notes, pairs
from tasks import invented, task

DATA = Path(os.environ.get("MINICOMPRESS_DATA", Path(__file__).parents[2] / "../shared/data"))
CACHE = Path(os.environ.get("MINICOMPRESS_CACHE", Path.home() / ".cache/minicompress"))
BOOKS = ("storybooks_ccby", "se_cc0")
END = "<|endoftext|>"
LOW, PROSE = 0.1, 0.3

# until M tokens, row length, share of each rung; no shares: one copy a row, up to that long, all of a batch equally long
CURRICULUM = (
    (1.2, 48, None),
    (2.2, 200, None),
    (3.2, 128, (0.20, 0.15, 0.65, 0.00, 0.00, 0.00)),
    (5.0, 128, (0.10, 0.10, 0.35, 0.25, 0.20, 0.00)),
    (17.0, 256, (0.05, 0.05, 0.15, 0.40, 0.25, 0.10)),
    (22.0, 512, (0.05, 0.00, 0.05, 0.45, 0.25, 0.20)),
)
RUNGS = ("copy", "grid", "pairs", "notes", "tasks", "prose")


def mixture(tokens):
    """(row length, share of each rung) after so many training tokens."""
    length, shares = next((row[1:] for row in CURRICULUM if tokens < row[0] * 1e6), CURRICULUM[-1][1:])
    return length, shares and dict(zip(RUNGS, shares))


def read_books(split="train", names=BOOKS):
    for name in names:
        with lzma.open(DATA / "text" / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
            yield from (book["text"] for book in map(json.loads, lines) if book["split"] == split)


def questions_text(questions):
    return "".join(f"Q: {q.question}\nA: {q.answer}\n" for q in questions)


def tokenizer_texts(rng, count=6000, characters=3_000_000):
    """Notes, tasks, and about as much prose; every name and value often enough to become a token."""
    for i in range(count):
        context = (notes(rng, 3, 11), task(rng))[i % 3 == 2]
        yield context.text + questions_text(context.questions)
        yield " " + " ".join([*NAMES, *(value for kind in KINDS.values() for value in kind.values)])
        yield " " + " ".join(invented(rng, 20))
    for text in read_books():
        yield text[:max(0, characters)]
        characters -= len(text)


def train_tokenizer(texts, size=2048):
    """Byte-level BPE as GPT-2's; `<|endoftext|>` is token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def prose_tokens(tokenizer, split="train"):
    """All books as one array of ids, tokenised once and kept in the cache folder."""
    path = CACHE / f"prose-{split}-{tokenizer.get_vocab_size()}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = tokenizer.encode_batch([text + END for text in read_books(split)])
        np.save(path, np.concatenate([np.array(e.ids, np.uint16) for e in encoded]))
    return np.load(path, mmap_mode="r")


def copy_rows(rng, vocabulary, longest, tokens):
    """The first rung: every row one sequence said twice, as easy as it gets. -> ids [B, 2n+1], weights [B, 2n]"""
    n = int(rng.integers(6, longest))
    said = rng.integers(1, vocabulary, (tokens // (2 * n), n))
    ids = np.concatenate([np.zeros_like(said[:, :1]), said, said], axis=1).astype(np.int32)
    weights = np.zeros((len(ids), 2 * n), np.float32)
    weights[:, n + 1:] = 1  # the first token of the second saying cannot be known
    return ids, weights


def copy_document(rng, vocabulary):
    """Random tokens said twice: what an induction head is for."""
    said = rng.integers(1, vocabulary, rng.integers(6, 24))
    return np.r_[said, said], np.r_[np.zeros(len(said) + 1), np.ones(len(said) - 1)]


def grid_document(rng, vocabulary):
    """`a b value` for a few a and b, then all again, shuffled: a value belongs to both."""
    rows, columns = rng.integers(1, 5, 2)
    a, b, values = np.split(rng.choice(vocabulary - 1, rows + columns + rows * columns, replace=False) + 1, [rows, rows + columns])
    cells = np.array([(a[i // columns], b[i % columns], values[i]) for i in range(rows * columns)])
    said, again = rng.permutation(cells), rng.permutation(cells)
    if rng.random() < 0.5:
        again = again[:, [1, 0, 2]]
    return np.r_[said, again].ravel(), np.r_[np.zeros(said.size), np.tile([0, 0, 1.0], len(again))]


def encode(tokenizer, pieces):
    """(text, weight) pieces, which end where the tokenizer also would split, as ids and weights."""
    encoded = [e.ids for e in tokenizer.encode_batch([text for text, _ in pieces])]
    return np.concatenate(encoded), np.repeat([weight for _, weight in pieces], [len(ids) for ids in encoded])


def asked(context):
    """A context and its questions as pieces."""
    pieces = [(context.text, LOW)]
    for q in context.questions:
        pieces += [(f"Q: {q.question}\nA:", LOW), (f" {q.answer}\n", 1.0)]
    return pieces


def documents(rng, tokenizer, prose, shares):
    """An endless stream of (ids, weights)."""
    vocabulary = tokenizer.get_vocab_size()
    rungs, p = list(shares), list(shares.values())
    while True:
        rung = rungs[rng.choice(len(p), p=p)]
        if rung == "copy":
            yield copy_document(rng, vocabulary)
        elif rung == "grid":
            yield grid_document(rng, vocabulary)
        elif rung == "pairs":
            people = rng.integers(1, 6)
            yield encode(tokenizer, asked(pairs(rng, people, people * rng.integers(1, 4))))
        elif rung == "notes":
            people = rng.integers(1, 5)
            yield encode(tokenizer, asked(notes(rng, people, min(14, people * rng.integers(2, 5)))))
        elif rung == "tasks":
            yield encode(tokenizer, asked(task(rng)))
        else:
            start = rng.integers(len(prose) - 256)
            yield prose[start:start + rng.integers(64, 256)], None


def pack(stream, rows, length):
    """Documents until every row is full. -> ids [B, T+1] int32, weights [B, T] float32"""
    tokens, weights = np.zeros((rows, length + 1), np.int32), np.zeros((rows, length + 1), np.float32)
    for row in range(rows):
        end = 0
        while end < length:
            ids, weight = next(stream)
            stop = min(end + 1 + len(ids), length + 1)
            tokens[row, end + 1:stop] = ids[:stop - end - 1]
            weights[row, end] = LOW
            weights[row, end + 1:stop] = PROSE if weight is None else weight[:stop - end - 1]
            end = stop
    return tokens, weights[:, 1:]


def batch(seed, step, tokenizer, prose, tokens_per_batch=4096):
    """The batch of one step. -> ids [B, T+1] int32, weights [B, T] float32"""
    rng = np.random.default_rng((seed, step))
    length, shares = mixture(step * tokens_per_batch)
    if shares is None:
        return copy_rows(rng, tokenizer.get_vocab_size(), length // 2, tokens_per_batch)
    return pack(documents(rng, tokenizer, prose, shares), tokens_per_batch // length, length)


def batches(seed, tokenizer, tokens_per_batch=4096, step=0):
    """Batches without end, from `step` on; the curriculum says how long the rows are and what is in them."""
    prose = prose_tokens(tokenizer)
    while True:
        yield batch(seed, step, tokenizer, prose, tokens_per_batch)
        step += 1


if __name__ == "__main__":
    tokenizer = train_tokenizer(tokenizer_texts(np.random.default_rng(0)))
    tokenizer.save(str(Path(__file__).parents[2] / "weights_loader/embedded/tokenizer.json"))

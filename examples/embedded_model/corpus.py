"""Training rows for the embedded model: a ladder of rungs, from copying to questions about notes.

A document is a list of (token ids, weight): answers weigh 1, what leads to them 0.1, prose 0.3. All
documents of a batch come from one rung, one document a row, padded on the right, so that at first
there is nothing else to look at. A batch is a pure function of (seed, step).
"""

import json
import lzma
import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from notes import KINDS, NAMES, notes, pairs
from tasks import invented, task

DATA = Path(os.environ.get("MINICOMPRESS_DATA", Path(__file__).parents[2] / "../shared/data"))
CACHE = Path(os.environ.get("MINICOMPRESS_CACHE", Path.home() / ".cache/minicompress"))
BOOKS = ("storybooks_ccby", "se_cc0")
END = "<|endoftext|>"
LOW, PROSE = 0.1, 0.3
BARE_FROM = 4_000_000  # training tokens after which half of the batches have no `<|endoftext|>` in front

RUNGS = ("copy", "grid", "pairs", "notes", "tasks", "prose")
# until M tokens, how long copies are, how many columns and fillers a grid has, share of each rung
CURRICULUM = (
    (2.4, 24, 1, 0, (1.00, 0.00, 0.00, 0.00, 0.00, 0.00)),
    (3.0, 32, 1, 0, (0.50, 0.50, 0.00, 0.00, 0.00, 0.00)),
    (4.0, 48, 2, 1, (0.25, 0.45, 0.30, 0.00, 0.00, 0.00)),
    (5.5, 64, 3, 2, (0.10, 0.40, 0.30, 0.20, 0.00, 0.00)),
    (7.5, 96, 3, 4, (0.05, 0.25, 0.20, 0.35, 0.15, 0.00)),
    (18.0, 96, 3, 4, (0.04, 0.06, 0.05, 0.40, 0.30, 0.15)),
)


def mixture(tokens):
    """(longest copy, most columns, most fillers, share of each rung) after so many training tokens."""
    return next((row[1:] for row in CURRICULUM if tokens < row[0] * 1e6), CURRICULUM[-1][1:])


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


def copy_document(rng, vocabulary, n):
    """n random tokens said twice: what an induction head is for. The second saying's first token cannot be known."""
    said = rng.integers(1, vocabulary, n)
    return np.r_[said, said], np.r_[np.zeros(n + 1), np.ones(n - 1)]


def grid_document(rng, vocabulary, most_columns, fillers):
    """`… a … b … value` for a few a and b, then all again, shuffled and worded otherwise: a value belongs to both.

    The gaps hold up to `fillers` tokens, the same ones in every line of a saying. With one b it may be left out.
    """
    rows, columns = rng.integers(2, 6), rng.integers(1, most_columns + 1)
    keys, gaps = rows + columns, rng.integers(0, fillers + 1, (2, 3))  # [saying, before a, b and the value]
    drawn = rng.choice(vocabulary - 1, keys + rows * columns + gaps.sum(), replace=False) + 1
    a, b, values, words = np.split(drawn, [rows, keys, keys + rows * columns])
    worded = np.split(words, gaps.ravel().cumsum()[:-1])
    short, flip = columns == 1 and rng.random() < (0.7 if most_columns > 1 else 1), rng.random() < 0.5
    ids, weights = [], []
    for saying in (0, 1):
        for cell in rng.permutation(rows * columns):
            pair = [a[cell // columns], b[cell % columns]][:: -1 if flip and saying else 1]
            pair = [a[cell]] if short else pair
            parts = [np.r_[gap, key] for gap, key in zip(worded[3 * saying:], pair)]
            line = np.concatenate([*parts, worded[3 * saying + 2], [values[cell]]]).astype(int)
            ids.append(line)
            weights.append(np.r_[np.zeros(len(line) - 1), float(saying)])
    return np.concatenate(ids), np.concatenate(weights)


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


def documents(rng, tokenizer, prose, rung, longest, columns, fillers):
    """An endless stream of (ids, weights) of one rung and, but for tasks, of one size."""
    vocabulary = tokenizer.get_vocab_size()
    people, n = int(rng.integers(1, 6)), int(rng.integers(6, longest))
    facts = min(14, people * int(rng.integers(2, 5)))
    while True:
        if rung == "copy":
            yield copy_document(rng, vocabulary, n)
        elif rung == "grid":
            yield grid_document(rng, vocabulary, columns, fillers)
        elif rung == "pairs":
            yield encode(tokenizer, asked(pairs(rng, people, facts)))
        elif rung == "notes":
            yield encode(tokenizer, asked(notes(rng, min(people, 4), facts)))
        elif rung == "tasks":
            yield encode(tokenizer, asked(task(rng)))
        else:
            start = rng.integers(len(prose) - 512)
            yield prose[start:start + 511].astype(np.int64), np.full(511, PROSE)


def batch(seed, step, tokenizer, prose, tokens_per_batch):
    """The batch of one step, each row begun by `<|endoftext|>`. -> ids [B, T+1] int32, weights [B, T] float32"""
    rng = np.random.default_rng((seed, step))
    longest, columns, fillers, shares = mixture(step * tokens_per_batch)
    stream = documents(rng, tokenizer, prose, RUNGS[rng.choice(len(RUNGS), p=shares)], longest, columns, fillers)
    drawn = [next(stream)]
    while sum(len(ids) + 1 for ids, _ in drawn) < tokens_per_batch:
        drawn.append(next(stream))
    longest_row = max(len(ids) for ids, _ in drawn)
    tokens, weights = (np.zeros((len(drawn), longest_row + extra), kind) for extra, kind in ((1, np.int32), (0, np.float32)))
    for row, (ids, weight) in enumerate(drawn):
        tokens[row, 1:len(ids) + 1], weights[row, :len(ids)] = ids, weight
    if step * tokens_per_batch >= BARE_FROM and rng.random() < 0.5:  # a context need not begin with a mark
        tokens, weights = tokens[:, 1:], weights[:, 1:]
    return tokens, weights


def batches(seed, tokenizer, tokens_per_batch, step=0):
    """Batches without end, from `step` on."""
    prose = prose_tokens(tokenizer)
    while True:
        yield batch(seed, step, tokenizer, prose, tokens_per_batch)
        step += 1


if __name__ == "__main__":
    tokenizer = train_tokenizer(tokenizer_texts(np.random.default_rng(0)))
    tokenizer.save(str(Path(__file__).parents[2] / "weights_loader/embedded/tokenizer.json"))

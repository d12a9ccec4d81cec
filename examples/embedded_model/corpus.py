"""Training rows for the embedded model: a ladder of rungs, from copying to questions about notes.

A document is its token ids and their weights: answers weigh 1, what leads to them 0.1, prose 0.3. All
documents of a batch come from one rung, one document a row, padded on the right, so that at first
there is nothing else to look at. A batch is a pure function of (seed, step).
"""

import json
import lzma
import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from notes import KINDS, NAMES, choose, notes, pairs, pick
from tasks import INVENTED, task, words

DATA = Path(os.environ.get("MINICOMPRESS_DATA", Path(__file__).parents[2] / "../shared/data"))
CACHE = Path(os.environ.get("MINICOMPRESS_CACHE", Path.home() / ".cache/minicompress"))
BOOKS = ("storybooks_ccby", "se_cc0")
END = "<|endoftext|>"
LOW, PROSE = 0.1, 0.3
RUNGS = ("copy", "pairs", "words", "notes", "tasks", "prose")
CURRICULUM = (  # until so many million tokens, the most facts a person in pairs, the share of each rung
    (2.4, 1, (1.00, 0.00, 0.00, 0.00, 0.00, 0.00)),
    (8.0, 1, (0.15, 0.60, 0.25, 0.00, 0.00, 0.00)),
    (13.0, 3, (0.03, 0.37, 0.25, 0.25, 0.05, 0.05)),
    (32.0, 4, (0.03, 0.17, 0.25, 0.35, 0.15, 0.05)),
    (38.0, 4, (0.02, 0.05, 0.43, 0.22, 0.20, 0.08)),
    (49.0, 4, (0.02, 0.04, 0.06, 0.50, 0.24, 0.14)),
)
MOVED_FROM = 2_400_000  # tokens after which half of the batches begin elsewhere, and half without `<|endoftext|>`


def mixture(tokens):
    """(most facts a person in pairs, share of each rung) after so many tokens of training."""
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
        yield " " + " ".join(choose(rng, INVENTED, 20)) + "\n" + "\n".join(NAMES)
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


def documents(rng, tokenizer, prose, rung, most_facts):
    """An endless stream of (ids, weights) of one rung and, but for tasks, of one size."""
    n, people = int(rng.integers(6, 24)), int(rng.choice([1, 2, 3, 4], p=[0.1, 0.2, 0.35, 0.35]))
    facts, each = min(14, people * int(rng.integers(1, 5))), int(rng.integers(1, most_facts + 1))
    said, recalled = pick(rng, ("barely", "in a sentence")), pick(rng, ("barely", "by name", "by question"))
    while True:
        if rung == "copy":
            yield copy_document(rng, tokenizer.get_vocab_size(), n)
        elif rung in ("pairs", "words"):
            made = pairs(rng, max(2, people + 2 - each // 2), said, recalled, each) if rung == "pairs" else words(rng, said, recalled)
            yield encode(tokenizer, [(text, 1.0 if value else LOW) for text, value in made])
        elif rung == "notes":
            yield encode(tokenizer, asked(notes(rng, people, facts)))
        elif rung == "tasks":
            yield encode(tokenizer, asked(task(rng)))
        else:
            start = rng.integers(len(prose) - 512)
            yield prose[start:start + 511].astype(np.int64), np.full(511, PROSE)


def batch(seed, step, tokenizer, prose, tokens_per_batch):
    """The batch of one step -> ids [B, T+1] int32, weights [B, T] float32, position of the first column."""
    rng, tokens = np.random.default_rng((seed, step)), step * tokens_per_batch
    most_facts, shares = mixture(tokens)
    stream = documents(rng, tokenizer, prose, RUNGS[rng.choice(len(RUNGS), p=shares)], most_facts)
    drawn = [next(stream)]
    while sum(len(ids) + 1 for ids, _ in drawn) < tokens_per_batch:
        drawn.append(next(stream))
    longest = max(len(ids) for ids, _ in drawn)
    ids, weights = np.zeros((len(drawn), longest + 1), np.int32), np.zeros((len(drawn), longest), np.float32)
    for row, (said, weight) in enumerate(drawn):
        ids[row, 1:len(said) + 1], weights[row, :len(said)] = said, weight
    bare, moved = (tokens >= MOVED_FROM and rng.random() < 0.5 for _ in range(2))
    if bare:  # a context need not begin with a mark
        ids, weights = ids[:, 1:], weights[:, 1:]
    return ids, weights, int(rng.integers(513 - longest)) if moved else 0


def batches(seed, tokenizer, tokens_per_batch, step=0):
    """Batches without end, from `step` on."""
    prose = prose_tokens(tokenizer)
    while True:
        yield batch(seed, step, tokenizer, prose, tokens_per_batch)
        step += 1


if __name__ == "__main__":
    tokenizer = train_tokenizer(tokenizer_texts(np.random.default_rng(0)))
    tokenizer.save(str(Path(__file__).parents[2] / "weights_loader/embedded/tokenizer.json"))

"""How good a prompt is on held-out rows: loss, accuracy and macro-F1 of labels, exact match of written answers."""

import math
from collections import Counter

import numpy as np

from minicompress.arrays import like, to_host
from minicompress.compression.queries import Query, pad, write_lines
from minicompress.gpt2 import logits
from minicompress.gpt2.prefix import predictors
from minicompress.layers.losses import log_softmax
from minicompress.training.shards import Shards


def evaluate(model, tokenizer, prefix, queries, words, shards, decode=32):
    """-> a dict ready for JSON. words: {label: tokens}, or none, where the answers are free texts."""
    if words:
        return label_result(label_scores(model, prefix, queries, list(words.values()), shards), queries, words)
    loss = sum(own_scores(model, prefix, queries, shards)) / sum(len(q.ids) - q.start for q in queries)
    some = queries[:decode]
    written = write_answers(model, tokenizer, prefix, some, shards)
    right = [ours == q.answer for ours, q in zip(written, some, strict=True)]
    counts = {"written": len(written), "different": len(set(written))}
    return {"loss": -float(loss), "exact_match": float(np.mean(right)), **counts}


def over_queries(model, prefix, queries, pick, shards, rows=16):
    """[pick(query, logp)] of each query; logp (n, V): what is expected at its n scored places. Read by length."""

    def chunk(some):
        hidden, _ = predictors(*model, prefix, *pad(some), keep="nothing")
        logp, ends = log_softmax(logits(model[0], hidden)), np.cumsum([len(q.ids) - q.start for q in some])
        return [pick(q, logp[end - (len(q.ids) - q.start) : end]) for q, end in zip(some, ends.tolist(), strict=True)]

    order = sorted(range(len(queries)), key=lambda i: len(queries[i].ids))
    chunks = [order[i : i + rows] for i in range(0, len(order), rows)]
    parts = shards.map(lambda part: [chunk([queries[i] for i in numbers]) for numbers in chunks[part]], len(chunks))
    found = dict(zip(order, (one for part in parts for some in part for one in some), strict=True))
    return [found[i] for i in range(len(queries))]


def own_scores(model, prefix, queries, shards):
    """For each query the log-likelihood of its own answer, summed over its tokens."""
    return over_queries(model, prefix, queries, lambda q, logp: picked(logp, [q.ids[q.start :]])[0], shards)


def label_scores(model, prefix, queries, words, shards):
    """(N, K): the log-likelihood of each of K words behind each row, summed over the word's tokens.

    What is read for a word is all of it but its last token, so all words of one token cost one reading.
    """
    scores = np.empty((len(queries), len(words)))
    for stem in dict.fromkeys(tuple(word[:-1]) for word in words):
        columns = [k for k, word in enumerate(words) if tuple(word[:-1]) == stem]
        rows = [Query([*q.ids[: q.start], *stem, 0], q.start) for q in queries]
        chosen = [words[k] for k in columns]
        scores[:, columns] = over_queries(model, prefix, rows, lambda q, logp: picked(logp, chosen), shards)  # noqa: B023
    return scores


def likeliest(model, prefix, ids, words):
    """The label whose word is likeliest behind one row of ids; words: {label: tokens}."""
    with Shards(1) as shards:
        scores = label_scores(model, prefix, [Query([*ids, 0], len(ids))], list(words.values()), shards)
    return list(words)[int(scores[0].argmax())]


def picked(logp, words):
    """Σ over its tokens of each word's log-probability, logp (n, V) for words of n tokens -> (K,) on the host."""
    tokens = np.array(words)  # (K, n)
    chosen = logp[like(np.arange(tokens.shape[1]), logp)[None], like(tokens, logp)]
    return to_host(chosen).astype(np.float64).sum(1)


def label_result(scores, queries, words):
    """Loss a token of the right words, accuracy, macro-F1 and how often each label was predicted, of scores (N, K)."""
    labels, sizes = list(words), np.array([len(word) for word in words.values()])
    gold = np.array([labels.index(q.answer) for q in queries])
    guess = scores.argmax(1)
    loss = -scores[np.arange(len(gold)), gold].sum() / sizes[gold].sum()
    counts = np.bincount(guess, minlength=len(labels)).tolist()
    return {
        "loss": float(loss),
        "accuracy": float((guess == gold).mean()),
        "macro_f1": macro_f1(gold, guess),
        "predicted": dict(zip(labels, counts, strict=True)),
    }


def macro_f1(gold, guess):
    """The mean of 2 TP / (2 TP + FP + FN) over the classes that occur among the answers or the guesses."""
    found = []
    for k in np.union1d(gold, guess):
        hits = ((gold == k) & (guess == k)).sum()
        found.append(2 * hits / ((gold == k).sum() + (guess == k).sum()))
    return float(np.mean(found))


def majority(queries):
    """The commonest answer's share."""
    return Counter(q.answer for q in queries).most_common(1)[0][1] / len(queries)


def write_answers(model, tokenizer, prefix, queries, shards):
    """What the model writes behind each row, greedily, to the line's end, or as long as the longest true answer."""
    rows = [q.ids[: q.start] for q in queries]
    steps = max(len(q.ids) - q.start for q in queries)  # each row has room for the longest answer of all
    parts = shards.map(lambda part: write_lines(model, tokenizer, prefix, rows[part], steps), len(rows))
    return [text for part in parts for text in part]


def hits(result):
    """The share of right answers: accuracy of labels, exact match of free texts."""
    return result.get("accuracy", result.get("exact_match"))


def better(result, best, by):
    """Whether a result is better than the best so far: by accuracy, or exact match, and where equal by loss.

    A loss that is not a number is worse than any other, whatever was guessed with it.
    """
    if best is None:
        return True

    def rank(one):
        if math.isnan(one["loss"]):
            return -1, -math.inf
        return hits(one) if by == "accuracy" else 0, -one["loss"]

    return rank(result) > rank(best)

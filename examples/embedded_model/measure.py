"""What a model understands: exact answers with and without the context, binding errors, and perplexity.

    python examples/embedded_model/measure.py weights_loader/embedded --contexts 40
"""

import argparse
import json

import numpy as np

from corpus import prose_tokens
from minicompress.commands import open_model
from minicompress.compression.queries import FORM, line_ends
from minicompress.gpt2 import embed, forward, logits
from minicompress.gpt2.generate import generate
from minicompress.layers.losses import cross_entropy
from minicompress.training.shards import Shards
from notes import KINDS, notes
from tasks import FAMILIES, task

ROWS = 32


def answers(model, texts, shards):
    """Greedy answers to texts that end in `A:`, each up to its line end."""
    rows = [model.tokenizer.encode(text).ids for text in texts]
    chunks = [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
    stop = line_ends(model.tokenizer, 1)
    parts = shards.map(lambda s: [new for chunk in chunks[s] for new in generate(*model.pair, chunk, 12, stop=stop)], len(chunks))
    return [model.tokenizer.decode(new).strip() for part in parts for new in part]


def recall(model, contexts, shards, with_context=True, each=4):
    """(share answered exactly, share answered with the right kind of the wrong thing)."""
    asked = [(c, q) for c in contexts for q in c.questions[:each]]
    before = [c.text if with_context else (c.header and c.header + "\n") for c, _ in asked]
    given = answers(model, [b + FORM.format(question=q.question) for b, (_, q) in zip(before, asked)], shards)
    exact = [ours == q.answer for ours, (_, q) in zip(given, asked)]
    kin = [q.kind in KINDS and ours in KINDS[q.kind].values for ours, (_, q) in zip(given, asked)]
    return float(np.mean(exact)), float(np.mean([k and not e for k, e in zip(kin, exact)]))


def perplexities(model, rng, windows=60, before=192, scored=64):
    """Of held-out prose, the last `scored` tokens of a window, with and without the `before` tokens in front."""
    prose, found = np.asarray(prose_tokens(model.tokenizer, "valid")).astype(int), []
    for start in rng.integers(0, len(prose) - before - scored, windows):
        window = prose[start : start + before + scored]
        for ids in (window, window[before - 1 :]):
            hidden, _, _ = forward(*model.pair, embed(model.pair[0], ids[None, :-1]), keep="nothing")
            losses, _ = cross_entropy(logits(model.pair[0], hidden)[0, -scored + 1 :], ids[-scored + 1 :])
            found.append(losses.mean())
    return [float(np.exp(np.mean(found[i::2]))) for i in (0, 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--contexts", type=int, default=40)
    args = parser.parse_args()
    model, rng, n = open_model(args.model), np.random.default_rng(2026), args.contexts
    with Shards() as shards:
        for held_out in (False, True):
            for people in (1, 2, 3, 4):
                drawn = [notes(rng, people, min(14, people * 4), held_out) for _ in range(n)]
                exact, binding = recall(model, drawn, shards)
                none, _ = recall(model, drawn, shards, with_context=False)
                print(json.dumps({"notes": people, "held_out": held_out, "exact": exact, "binding_errors": binding, "without": none}))
            for family in FAMILIES:
                drawn = [task(rng, held_out, family) for _ in range(max(5, n // 2))]
                with_demos, without = (recall(model, drawn, shards, given)[0] for given in (True, False))
                print(json.dumps({"task": family, "held_out": held_out, "exact": with_demos, "without": without}))
    full, none = perplexities(model, rng)
    print(json.dumps({"perplexity_with_192_tokens_before": full, "perplexity_without": none}))


if __name__ == "__main__":
    main()

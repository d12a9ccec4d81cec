"""Selection: which of a text's tokens each selector keeps, and what the model still knows of all of them.

Where keys and values are kept, each layer and head chooses for itself; shown is what one head holds on to.
"""

from pathlib import Path

import numpy as np

from minicompress.commands import open_model
from minicompress.compression.queries import file_queries
from minicompress.compression.select import SELECTORS, TOKENS, evicted, heavy_hitters, observed, places
from minicompress.compression.teacher import Teacher
from minicompress.evaluation.metrics import gap_closed, score
from minicompress.gpt2.prefix import Prefix, read_tokens
from minicompress.training.shards import Shards

HERE, SLOTS, LAYER, HEAD = Path(__file__).parent, 16, 3, 0


def chosen(name, pair, ids):
    """The places that a selector keeps, or that one head does; None of means."""
    if name in TOKENS:
        return places(name, pair, ids, SLOTS, np.random.default_rng(0))
    kept, choose = [], {"h2o": heavy_hitters, "snapkv": observed}.get(name)
    if choose is None:
        return None
    evicted(lambda probs, k: kept.append(choose(probs, k)) or kept[-1], pair, ids, SLOTS, None)
    return kept[LAYER][HEAD]


def main():
    model = open_model()
    ids = model.tokenizer.encode((HERE / "notes.txt").read_text()).ids
    read = read_tokens(*model.pair, ids)
    queries = file_queries(model, read, HERE / "questions.jsonl")
    with Shards() as shards:
        teacher = Teacher(model.pair, read, queries, shards)
        worth = lambda prefix: score(model.pair, model.tokenizer, prefix, queries, teacher, shards)
        none = worth(Prefix())
        for name, select in SELECTORS.items():
            found = worth(select(model.pair, ids, SLOTS, np.random.default_rng(0)).prefix(*model.pair))
            gap, _ = gap_closed(none, found, np.random.default_rng(0))
            print(f"{name:18}{SLOTS} of {len(ids)}, gap closed {gap:4.0%}, recall {found.recall:4.0%}")
            if (where := chosen(name, model.pair, ids)) is not None:
                words = [model.tokenizer.decode([token]) for token in ids]
                print("   ", "".join(word.strip("\n") if i in where else "·" for i, word in enumerate(words)))


if __name__ == "__main__":
    main()

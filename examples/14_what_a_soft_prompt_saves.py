"""Seconds and bytes of a query: the context read anew, its keys and values kept, or eight slots in its place.

    python examples/14_what_a_soft_prompt_saves.py      (two minutes on two idle cores; keeps each result as it comes)

On the embedded model and on a GPT-2 of 124M random weights, whose numbers are as fast as real ones.
"""

import time
from functools import partial

import numpy as np

from miniature import once
from minicompress.commands import open_model
from minicompress.gpt2 import Config, init
from minicompress.gpt2.generate import generate
from minicompress.gpt2.prefix import read_slots, read_tokens
from minicompress.prompts.carriers import DOORS, lift

SLOTS, QUESTION, ANSWER, ROUNDS = 8, 16, 4, 7


def seconds(ways):
    """Median of each way's time; the ways take turns, so that the machine's other work falls on all."""
    times = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(some)) for name, some in times.items()}


def measure(pair, length):
    """One context length -> seconds a query, and the bytes that are kept for it, four ways."""
    (params, config), rng = pair, np.random.default_rng(length)
    context, question = (rng.integers(config.vocab_size, size=n).tolist() for n in (length, QUESTION))
    embeddings = params["wte"]["weight"][context[:SLOTS]].copy()
    kept, kv = read_tokens(params, config, context), lift(params, config, embeddings, "kv")
    answer = lambda prefix: generate(params, config, [question], ANSWER, prefix)
    times = seconds({
        "context read anew": lambda: answer(read_tokens(params, config, context)),
        "context's keys and values kept": lambda: answer(kept),
        "slots, embeddings": lambda: answer(read_slots(params, config, embeddings)[0]),
        "slots, kv": lambda: answer(DOORS["kv"].read(params, config, kv)[0]),
    })  # fmt: skip
    state = sum(array.nbytes for layer in kept.past for array in layer)
    kept_bytes = {"context read anew": 2 * length, "context's keys and values kept": state,
                  "slots, embeddings": embeddings.nbytes, "slots, kv": kv.nbytes}  # token ids take two bytes  # fmt: skip
    return {"seconds": times, "bytes": kept_bytes, "kv_bytes": {"context": state, "slots": kv.nbytes}}


def main():
    config = Config()
    large = init(config, np.random.default_rng(0)), config
    models = {"embedded": (open_model().pair, (32, 128, 448)), "124M": (large, (128, 512, 960))}
    jobs = {
        f"{name}, {length} tokens": partial(measure, pair, length)
        for name, (pair, lengths) in models.items()
        for length in lengths
    }
    for name, row in once(14, jobs).items():
        print(name, *(f"{way} {1000 * s:.1f} ms" for way, s in row["seconds"].items()), sep="; ")


if __name__ == "__main__":
    main()

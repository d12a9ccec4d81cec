"""What each way to compress costs, over the length of the context: time, memory, slots, and what a query then costs.

    OMP_NUM_THREADS=1 python examples/embedded_model/costs.py --rounds 9 > examples/results/costs.jsonl

One JSON line for each producer and length, then one for each training step of a compressor. Seconds are the processor's,
which other programs do not add to: medians over rounds in which all take turns. Peaks are of arrays beside the model,
by tracemalloc, to which NumPy reports. Compressors are as they begin: what they cost does not depend on what they learned.
"""

import argparse
import json
import time
import tracemalloc
from functools import partial

import numpy as np

from minicompress.arrays import like
from minicompress.commands import open_model
from minicompress.compression.amortised import Asked, Example, compressor_gradient
from minicompress.compression.compressor import Compressor, begin
from minicompress.compression.gradient import train_slots
from minicompress.compression.matching import attention_matching
from minicompress.compression.queries import Query
from minicompress.compression.segments import METHODS
from minicompress.compression.select import SELECTORS
from minicompress.compression.teacher import Teacher
from minicompress.gpt2 import embed, forward, logits
from minicompress.gpt2.prefix import read_tokens
from minicompress.layers.attention import pieces
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.training.adamw import adamw_init
from minicompress.training.shards import Shards
from slots import contexts

SLOTS, SEGMENT, RANK = 8, 32, 16  # slots a segment: the amortised read a context as one
ROWS, LONG, ANSWER = 128, 24, 8  # reference rows, or queries; the tokens of each; of these the last are scored
BATCH, STEPS, TIMED = 32, 200, 10  # of the gradient: queries a step, steps, and how many of them are timed
LENGTHS, STREAMS = (64, 128, 256, 448), (1000, 4000, 16000)
SELECTION, AMORTISED = ("last", "snapkv", "pooled-kv"), ("gist", "icae", "500x")
RECURRENT = ("autocompressor", "rmt", "ccm", "ccm-mean")


# What it costs by formula: two operations for each multiplication in a product of matrices.


def reading(config, T, before=0):
    """Of reading T tokens behind so many keys: every weight of the blocks once a token, each key twice a query."""
    weights = config.n_layer * (4 * config.n_embd**2 + 2 * config.n_embd * config.width)
    return 2 * weights * T + attending(config, T, before)


def attending(config, T, before=0):
    """The part of `reading` that grows with the keys: two products. A piece of the queries sees keys up to its end."""
    seen = sum((rows.stop - rows.start) * (before + rows.stop) for rows in pieces(T))
    return 2 * 2 * config.n_layer * config.n_embd * seen


def reading_backward(config, T, before=0):
    """Of the gradient of what was read, weights frozen: attention has four products where reading has two."""
    return reading(config, T, before) + attending(config, T, before)


def head(config, places):
    """Of logits at so many places."""
    return 2 * config.vocab_size * config.n_embd * places


def recurrence(config, method, tokens, segment, K):
    """Of reading a context segment by segment; a state of embeddings is read anew before each."""
    total, state = 0, K * (method.writes == "state")
    for start in range(0, tokens, segment):
        n, seen = min(segment, tokens - start), state if method.sees else 0
        total += reading(config, seen) * (method.carrier == "embeddings")
        total += reading(config, n, seen) + reading(config, K, seen + n)
        state = state + K if method.merge == "concatenate" else K
    adapted = 2 * RANK * 3 * config.n_layer * config.n_embd**2  # a thin product for each c_attn, once
    return total + adapted * (method.adapts != "all")


def matching(config, T, k):
    """Of Attention Matching: the context, the rows behind what is kept of it, and each layer's least squares."""
    N, C = ROWS * LONG, config.n_embd
    a_layer = 6 * N * C * C + 4 * N * T * C + 6 * N * k * C + 4 * N * k * k * config.n_head
    return reading(config, T) + ROWS * reading(config, LONG, k) + config.n_layer * a_layer


def learning(config, T, K, steps):
    """Of slots by gradient: the teacher once, then in each step slots and rows there and back."""
    t, places = LONG - 1, BATCH * ANSWER
    teacher = reading(config, T) + ROWS * reading(config, t, T) + head(config, ROWS * ANSWER)
    there = reading(config, K) + BATCH * reading(config, t, K) + head(config, places)
    back = reading_backward(config, K) + BATCH * reading_backward(config, t, K) + head(config, places)
    return teacher + steps * (there + back)


def operations(producer, config, T):
    """Of one context of T tokens."""
    if producer in METHODS:
        return recurrence(config, METHODS[producer], T, segment_of(producer, T), SLOTS)
    return {"last": partial(reading, config, SLOTS), "attention-matching": partial(matching, config, T, SLOTS),
            "gradient": partial(learning, config, T, SLOTS, STEPS)}.get(producer, partial(reading, config, T))()  # fmt: skip


def segment_of(producer, T):
    return T if producer in AMORTISED else SEGMENT


# What it costs by the clock.


def producers(pair, T, rows, shards):
    """For each producer of a context of T tokens make(ids) -> SoftPrompt."""
    rng = lambda: np.random.default_rng(0)
    made = {kind: Compressor(kind, begin(kind, pair, SLOTS, rng(), RANK), segment_of(kind, T)) for kind in METHODS}
    compressing = {kind: partial(made[kind].compress, pair) for kind in (*AMORTISED, *RECURRENT)}
    if T in STREAMS:
        return {kind: compressing[kind] for kind in RECURRENT}
    selecting = {name: lambda ids, name=name: SELECTORS[name](pair, ids, SLOTS, rng()) for name in SELECTION}
    fitting = {"attention-matching": lambda ids: attention_matching(pair, ids, SLOTS, rows)}
    return selecting | fitting | {"gradient": partial(learn, pair, rows, shards)} | compressing


def learn(pair, rows, shards, ids, steps=TIMED):
    """Slots by gradient; of no steps: what comes before the first."""
    queries = [Query(row, LONG - ANSWER) for row in rows]
    wte, teacher = pair[0]["wte"]["weight"], Teacher(pair, read_tokens(*pair, ids), queries, shards)
    slots = wte[like(np.asarray(ids[:SLOTS]), wte)]
    train_slots(pair, slots, adamw_init({"slots": slots}), queries, teacher, steps, shards=shards, rows=BATCH)
    return SoftPrompt(slots)


def ask(pair, prefix, row):
    """One query behind a prefix that has been read: the logits after its last token."""
    hidden, _, _ = forward(*pair, embed(pair[0], [row], prefix.start), prefix.past, keep="nothing")
    return logits(pair[0], hidden[:, -1])


def step(pair, kind, ids, rows, horizon, shards):
    """One training step's gradient of a compressor, from one context that is asked of at its end."""
    segments = [ids[i : i + SEGMENT] for i in range(0, len(ids), SEGMENT)]
    asked = Asked(len(segments) - 1, [Query(row, LONG - ANSWER) for row in rows[:8]])
    raw = begin(kind, pair, SLOTS, np.random.default_rng(0), RANK)
    return partial(compressor_gradient, raw, pair, METHODS[kind], [Example(segments, [asked])], shards, None, horizon)


def peak(f):
    """The most memory that f's arrays took at once, in bytes."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    f()
    most = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return most


def medians(timed, rounds):
    """timed: {name: (f, times a round)} -> the median of the processor's seconds of each f, all taking turns."""
    found = {name: [] for name in timed}
    for _ in range(rounds):
        for name, (f, times) in timed.items():
            for _ in range(times):
                began = time.process_time()
                f()
                found[name].append(time.process_time() - began)
    return {name: float(np.median(seconds)) for name, seconds in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    model = open_model()
    pair, config = model.pair, model.pair[1]
    tokens = model.tokenizer.encode("\n".join(context.text for _, context in contexts(200, 0))).ids
    written = tokens[-ROWS * LONG :]
    rows = [written[i : i + LONG] for i in range(0, len(written), LONG)]
    lines, timed = {}, {}
    with Shards(1) as shards:
        for T in (*LENGTHS, *STREAMS):
            ids = tokens[:T]
            if T in LENGTHS:
                full = read_tokens(*pair, ids)
                timed["full", T] = partial(ask, pair, full, rows[0]), 5
                timed["anew", T] = partial(lambda ids: ask(pair, read_tokens(*pair, ids), rows[0]), ids), 1
                timed["teacher", T] = partial(learn, pair, rows, shards, ids, 0), 1
            for name, make in producers(pair, T, rows, shards).items():
                lines[name, T] = {"producer": name, "tokens": T}
                try:
                    prompt = make(ids)
                except ValueError as reason:
                    lines[name, T]["refused"] = str(reason)
                    continue
                prefix = prompt.prefix(*pair)
                kept = sum(part.nbytes for layer in prefix.past for part in layer[:2])
                lines[name, T] |= {"operations": operations(name, config, T), "peak": peak(partial(make, ids)),
                                   "slots": prompt.length, "kept": kept, "stored": prompt.slots.nbytes}  # fmt: skip
                timed[name, T] = partial(make, ids), 1
                timed["query", name, T] = partial(ask, pair, prefix, rows[0]), 5
            if T in LENGTHS:
                for horizon in (None, 1):
                    one = step(pair, "autocompressor", ids, rows, horizon, shards)
                    timed["step", T, horizon] = one, 1
                    lines["step", T, horizon] = {"training": "autocompressor", "tokens": T, "horizon": horizon, "peak": peak(one)}
        seconds = medians(timed, args.rounds)
    for key, line in lines.items():
        name, T = key[:2]
        if key in seconds:
            line["seconds"] = seconds[key]
        if name == "gradient":
            before = seconds["teacher", T]
            line["seconds"] = before + (line["seconds"] - before) * STEPS / TIMED
        if ("query", *key) in seconds:
            line["query"] = seconds["query", *key]
            line |= {f"query_{how}": seconds[how, T] for how in ("full", "anew") if T in LENGTHS}
        print(json.dumps({part: float(f"{x:.5g}") if isinstance(x, float) else x for part, x in line.items()}), flush=True)


if __name__ == "__main__":
    main()

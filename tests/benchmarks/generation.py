"""Writing with a cache: GPT-2 124M, prompts of 64 tokens, 64 new ones, greedy; 1 row and 8 rows.

Ours is `generate`; the peer is Transformers' `generate(use_cache=True)`. The time shown is that of
the whole call over 64: the reading of the prompt is in it, on all sides.

`floor` is no peer: the matrix products of 64 tokens alone (all linear layers and the head) in NumPy.
For one row it is the time to read 500 MB of weights from memory.

Fair, because both write the same 64 tokens, by the same rule, each with threaded BLAS on all cores;
neither has an end token, so neither stops early.
"""

from contextlib import contextmanager
from typing import Any, NamedTuple

import models
import numpy as np
from sides import Aim, Benchmark, ratio, time_and_memory

from minicompress.gpt2.generate import generate
from minicompress.trees import flatten


class Size(NamedTuple):
    config: Any
    rows: int
    prompt: int
    new: int


def data(size):
    return np.random.default_rng(0).integers(size.config.vocab_size, size=(size.rows, size.prompt))


@contextmanager
def ours(size):
    params, ids = models.our_params(size.config), data(size)
    yield lambda: generate(params, size.config, ids.tolist(), size.new)


@contextmanager
def transformers(size):
    import torch

    model, ids = models.torch_model(size.config, use_cache=True), torch.from_numpy(data(size))
    how = {"max_new_tokens": size.new, "do_sample": False, "use_cache": True, "pad_token_id": 0}

    def step():
        return model.generate(ids, attention_mask=torch.ones_like(ids), **how)[:, size.prompt :].tolist()

    yield step


@contextmanager
def floor(size):
    params = flatten(models.our_params(size.config))
    weights = [w for name, w in params.items() if w.ndim == 2 and name[0] == "h"] + [params["wte.weight"].T]
    inputs = {w.shape[0]: np.ones((size.rows, w.shape[0]), np.float32) for w in weights}

    def step():
        for _ in range(size.new):
            for weight in weights:
                inputs[weight.shape[0]] @ weight

    yield step


def facts(result):
    return [token for row in result for token in row] if result else []


def benchmark(rows, limit):
    full = Size(models.GPT2, rows, prompt=64, new=64)
    tiny = Size(models.TINY, rows, prompt=7, new=9)
    return Benchmark(
        f"generation-{rows}", f"generation with a cache, {rows} row{'s' * (rows > 1)}: per token", full, tiny,
        {"ours": ours, "transformers": transformers, "floor": floor},
        [*time_and_memory("transformers", limit), Aim("time, ours / floor", ratio("ours", "floor"))],
        facts, {"ours": 1, "transformers": 1, "floor": 1}, lambda size: size.new,
    )  # fmt: skip


BENCHMARKS = [benchmark(1, 0.5), benchmark(8, 0.35)]

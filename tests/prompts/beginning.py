"""Where slots begin, each way by hand, as functions that return how much is wrong, which planted bugs share."""

import numpy as np
from carrying import DEEP, states

import letters
from minicompress.prompts import initialise
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.verification.oracles import relative_error


def beginnings_error():
    """How many beginnings are not what they are called."""
    wte, rng = np.arange(40.0).reshape(20, 2), np.random.default_rng(0)
    uniform, given = initialise.from_uniform(np.zeros((3, 50)), 200, rng), np.arange(24.0).reshape(2, 3, 4)
    there = rng.standard_normal((2, 3))
    low = np.array([initialise.from_vocabulary(wte, 4, np.random.default_rng(seed), 6) for seed in range(20)])
    wrong = [
        initialise.from_words(wte, [7, 2, 9], 2)[:, 0].tolist() != [14, 4],
        initialise.from_words(wte, [7, 2], 3)[:, 0].tolist() != [14, 4, 14],
        initialise.from_labels(wte, [[1, 3, 11]], 2, rng)[0].tolist() != [10, 11],
        set(low[..., 0].ravel() / 2) != set(range(6)),
        not 0.49 < np.abs(uniform).max() <= 0.5 or abs(uniform.mean()) > 0.02,
        (initialise.from_prompt(given, 5, 1) != given[:, [0, 1, 2, 0, 1]]).any(),
        relative_error(initialise.recycling_map(wte, (wte @ there)[:15]), there) > 1e-10,
    ]
    return sum(wrong)


def named_beginnings_error():
    """Names and carriers: what the model makes of the embeddings that are called so."""
    given, error = letters.model(), 0.0
    begin = lambda how, carrier: initialise.initialise(
        given.pair, given.tokenizer, how, 3, carrier, np.random.default_rng(0), [7, 9, 11, 8, 20]
    )
    picked = {"text": [7, 11, 20], "first": [7, 9, 11], "cab": [9, 7, 8]}
    for how, ids in picked.items():
        told = SoftPrompt(given.wte[ids])
        for carrier in ("embeddings", *DEEP):
            found = SoftPrompt(begin(how, carrier), carrier)
            error = max(error, relative_error(states(given.pair, found), states(given.pair, told)))
    return error + sum(begin("zero", carrier).any() for carrier in DEEP) + (np.abs(begin("uniform", "embeddings")).max() > 0.5)


CHECKS = {"beginnings": beginnings_error, "named beginnings": named_beginnings_error}

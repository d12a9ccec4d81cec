"""Random questions for the verifier, and answers to them that are wrong in one way of the catalogue."""

import zlib
from types import SimpleNamespace

import numpy as np

from helpers import random_params
from minicompress.gpt2 import Config
from minicompress.gpt2.init import init
from minicompress.trees import tree_map
from minicompress.verification.oracles import relative_error
from minicompress.verification.plain.backward import answer, what_is_asked
from minicompress.verification.plain.forward import RIGHT, forward
from minicompress.verification.plain.steps import decode, take_steps
from minicompress.verification.setup import Setup
from minicompress.verification.tolerance import Tolerances
from reading import KINDS, random_prompt, with_slots

STEPS = {"steps": 3, "lr": 0.05, "clip": 0.3}
CONTRACT = ("logits", "first_logits", "loss", "hidden.", "attention.", "grad.model.", "grad.prompt", "grad.beta", "decoded", "steps.", "after.", "adam.")


def random_config(rng):
    n_head = int(rng.integers(1, 5))
    width = n_head * max(int(rng.integers(1, 9)), -(-4 // n_head))  # of two channels LayerNorm leaves nothing but signs
    sizes = {"vocab_size": int(rng.integers(5, 60)), "n_positions": 48, "n_layer": int(rng.integers(1, 4))}
    return Config(**sizes, n_embd=width, n_head=n_head)


def random_setup(rng, dtype=np.float64, stage="loss"):
    """A model of random size, fresh or far from it, ragged rows, labels, a prompt or none, a teacher or none."""
    config = random_config(rng)
    fresh = rng.random() < 0.3
    params = init(config, rng, np.float64) if fresh else random_params(config, rng)
    params = tree_map(lambda w: w.astype(dtype), params)
    rows = [rng.integers(config.vocab_size, size=rng.integers(1, 12)).tolist() for _ in range(rng.integers(1, 5))]
    rows[0] += [0, 1]
    kind, prompt = rng.choice([*KINDS, "none"]), None
    labels = [[-100 if rng.random() < 0.3 else i for i in row] for row in rows] if rng.random() < 0.3 and kind != "in rows" else None
    if kind != "none":
        P = int(rng.integers(1, 7))
        prompt = random_prompt(kind, config, P, rng, dtype)
        rows = with_slots(rows, P, rng) if prompt.in_rows else rows
    context = rng.integers(config.vocab_size, size=rng.integers(1, 9)).tolist() if rng.random() < 0.5 else None
    return Setup((params, config), rows, prompt, labels, None, context, temperature=float(rng.choice([1, 2])),
                 decode=4 if stage == "decoding" else 0, steps=STEPS if stage == "steps" else None)  # fmt: skip


def made(bug, setup, way):
    """What a wrong implementation answers."""
    if bug.stage == "decoding":
        return decode(setup, way)
    return take_steps(setup, way) if bug.stage == "steps" else answer(setup, way)


def wrong_answer(bug, seed, dtype=np.float64):
    """A setup, the reference's answer and a wrong one, in which a random variant of the bug shows; None where none does."""
    rng = np.random.default_rng((seed, zlib.crc32(bug.id.encode())))
    for _ in range(60):
        setup = random_setup(rng, dtype, bug.stage)
        try:
            reference = setup.tensors()
        except ValueError:  # no label is left
            continue
        tape = forward(setup.model, setup.rows, setup.prompt)
        known = SimpleNamespace(tape=tape, asked=what_is_asked(setup, RIGHT, tape), suspect_loss=None, small=True)
        if not (ways := bug.ways(setup, known)):
            continue
        variant = str(rng.choice(list(ways)))
        suspect = {name: x.astype(dtype) for name, x in made(bug, setup, ways[variant]).items()}
        if shows(reference, suspect):
            return setup, reference, suspect, variant
    return None


def shows(reference, suspect):
    tolerances = Tolerances(reference, suspect)
    return any(x.shape != reference[n].shape or not relative_error(x, reference[n]) <= tolerances.of(n)
               for n, x in suspect.items() if n in reference)  # fmt: skip


def contract(tensors):
    """The tensors that a port can be expected to have."""
    return {name: x for name, x in tensors.items() if name.startswith(CONTRACT) and name != "losses"}

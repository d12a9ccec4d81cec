"""Slots of every carrier, and the same thing said another way: errors that the tests and the planted bugs share.

Modules are asked for their functions at the time of the call: a planted bug is seen.
"""

import contextlib
import tempfile
from dataclasses import replace
from functools import partial
from math import log
from pathlib import Path

import numpy as np

from generating import watched
from helpers import TINY, directional_error, random_params, tree_errors
from minicompress.compression.objectives import likelihood
from minicompress.gpt2 import embed, forward
from minicompress.gpt2.prefix import predictors
from minicompress.prompts import carriers, gradient, soft_prompt
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.training.shards import Shards
from minicompress.verification.oracles import complex_step, relative_error
from reading import KINDS, random_prompt, read_row, with_slots

DEEP = ["hidden", "kv"]
TEXT = [4, 11, 0, 4, 7]  # what stands before the rows, where that is hard text
ROWS = [[3, 1, 0, 1, 5, 9], [2], [6, 5, 3]]


def random_model(seed=0, config=TINY):
    return random_params(config, np.random.default_rng(seed)), config


def padded(rows):
    """Rows -> ids (B, T)."""
    T = max(map(len, rows))
    return np.array([row + [0] * (T - len(row)) for row in rows])


def states(model, prompt, rows=ROWS):
    """Behind a prompt, the last states of all real tokens of the rows, one after the other."""
    prefix, ids = prompt.prefix(*model), padded(rows)
    x = embed(model[0], ids, prefix.start, prefix.slots)
    hidden, _, _ = forward(*model, x, prefix.past, keep="nothing")
    return np.concatenate([hidden[b, : len(row)] for b, row in enumerate(rows)])


def behind_text(model, rows=ROWS, text=TEXT):
    """The same states, where text and row are read in one go."""
    read = [forward(*model, embed(model[0], [text + row]), keep="nothing")[0][0, len(text) :] for row in rows]
    return np.concatenate(read)


# Hard text in another form.


def said_of(model, text, carrier):
    """The residual stream of a text, or its keys and values, as it is read together with a row."""
    stream, P = [], len(text)
    _, present, _ = forward(*model, embed(model[0], [text + ROWS[0]]), keep="nothing", watch=stream)
    if carrier == "hidden":
        return SoftPrompt(np.array([x[0, :P] for x in stream[:-1]]), "hidden")
    return SoftPrompt(np.array([[part[0, :, :P] for part in layer] for layer in present]), "kv")


def text_error(carrier):
    """A prompt that says what a text says, against the text."""
    model = random_model()
    return relative_error(states(model, said_of(model, TEXT, carrier)), behind_text(model))


def lift_error(carrier):
    """Embeddings in a deeper carrier, against the embeddings; they are no text's."""
    model, prompt = random_model(), random_prompt("embeddings", TINY, 5, np.random.default_rng(1))
    lifted = SoftPrompt(carriers.lift(*model, prompt.slots, carrier), carrier)
    return relative_error(states(model, lifted), states(model, prompt))


def concatenate_error(carrier):
    """Two texts' keys and values, or hidden states: in a row they are what the plain reading makes of all slots."""
    model, rng = random_model(), np.random.default_rng(2)
    one, two = (random_prompt(carrier, TINY, P, rng) for P in (3, 2))
    both = soft_prompt.concatenate([one, two])
    axis = {"embeddings": 0, "hidden": 1, "kv": 3, "kv with masses": 3}[carrier]
    beta = None if one.beta is None else np.concatenate([one.beta, two.beta], 2)
    by_hand = SoftPrompt(np.concatenate([one.slots, two.slots], axis), one.carrier, beta=beta)
    return relative_error(states(model, both), plain_states(model, by_hand, ROWS)) + (both.start != 5)


def parts_error():
    """A text's keys and values cut in two and put in a row again; the parts were not read apart."""
    model = random_model()
    whole = said_of(model, TEXT, "kv")
    parts = [replace(whole, slots=whole.slots[:, :, :, part]) for part in (slice(0, 2), slice(2, 3), slice(3, 5))]
    return relative_error(states(model, soft_prompt.concatenate(parts)), behind_text(model))


def masses_in_a_row_error():
    """Of two prompts one has masses: the other's keys then have a mass of 1."""
    model, rng = random_model(), np.random.default_rng(3)
    one, two = random_prompt("kv with masses", TINY, 3, rng), random_prompt("kv", TINY, 2, rng)
    both = soft_prompt.concatenate([two, one])
    told = replace(two, beta=np.zeros((TINY.n_layer, TINY.n_head, 2)))
    return relative_error(states(model, both), states(model, soft_prompt.concatenate([told, one])))


# Masses.


def kv_and_mass(beta_of):
    """A kv prompt of four slots at a given offset, and the same with masses: zeros, but beta_of(P) on slot 2."""
    prompt = random_prompt("kv, logical", TINY, 4, np.random.default_rng(4))
    beta = np.zeros((TINY.n_layer, TINY.n_head, 4))
    beta[:, :, 2] = beta_of
    return prompt, replace(prompt, beta=beta)


def mass_error(beta_of, keys):
    """A mass on slot 2, against the slots `keys` without masses."""
    model, (prompt, massive) = random_model(), kv_and_mass(beta_of)
    plain = replace(prompt, slots=prompt.slots[:, :, :, keys])
    return relative_error(states(model, massive), states(model, plain))


def absent_gradient_error():
    """A key of mass 0 asks for nothing: neither key, value nor mass has a gradient, and the others that without it."""
    model, (prompt, absent) = random_model(), kv_and_mass(-np.inf)
    without = replace(prompt, slots=prompt.slots[:, :, :, [0, 1, 3]])
    found, told = gradient_of(model, absent), gradient_of(model, without)
    error = relative_error(found["slots"][:, :, :, [0, 1, 3]], told)
    return error + np.abs(found["slots"][:, :, :, 2]).max() + np.abs(found["beta"][:, :, 2]).max()


# Positions.


def positions_error(carrier):
    """Compact is logical with P as its offset; both and unshifted are what the plain reading says."""
    model, prompt = random_model(), random_prompt(carrier, TINY, 4, np.random.default_rng(5))
    logical, unshifted = replace(prompt, positions="logical", offset=4), replace(prompt, positions="unshifted")
    same = float(states(model, prompt).tobytes() != states(model, logical).tobytes())
    return same + relative_error(states(model, unshifted), plain_states(model, unshifted, ROWS))


def plain_states(model, prompt, rows):
    params, config = model
    streams = [read_row(params, config, prompt, row).stream[-1] for row in rows]
    d = [x - x.mean(-1, keepdims=True) for x in streams]
    normal = [x / np.sqrt((x * x).mean(-1, keepdims=True) + config.layer_norm_epsilon) for x in d]
    return np.concatenate(normal) * params["ln_f"]["weight"] + params["ln_f"]["bias"]


# Slots in rows.


def in_front_error():
    """Slots that a template places in front, against the same slots as a prefix: states, and gradients too."""
    model, prefix = random_model(), random_prompt("embeddings", TINY, 3, np.random.default_rng(6))
    placed, slots = replace(prefix, template="[3]{text}"), [-1, -2, -3]
    rows = [slots + row for row in ROWS]
    found = states(model, placed, rows).reshape(-1, TINY.n_embd)
    kept = np.concatenate([[False] * 3 + [True] * len(row) for row in ROWS])
    error = relative_error(found[kept], states(model, prefix))
    scored = np.array([[False] * 3 + [True] * n + [False] * (6 - n) for n in map(len, ROWS)])
    told = gradient_of(model, prefix, ROWS, scored[:, 3:])
    return max(error, relative_error(gradient_of(model, placed, rows, scored), told))


def by_hand_error(row):
    """Slots anywhere in a row, against a row of embeddings that are written out."""
    model, prompt = random_model(), random_prompt("in rows", TINY, 3, np.random.default_rng(7))
    params, config = model
    table = np.concatenate([params["wte"]["weight"], prompt.slots[::-1]])  # the last of which is slot 0, number -1
    x = table[row] + params["wpe"]["weight"][: len(row)]
    return relative_error(states(model, prompt, [row]), forward(params, config, x[None])[0][0])


def tied_error():
    """A slot in three places: its gradient is the sum of three slots' that begin alike."""
    model, prompt = random_model(), random_prompt("in rows", TINY, 2, np.random.default_rng(8))
    apart = replace(prompt, slots=prompt.slots[[0, 1, 0, 0]])
    tied = gradient_of(model, prompt, [[-1, 3, -2, -1, 5], [8, -1, 9, 2, 4]])
    each = gradient_of(model, apart, [[-1, 3, -2, -3, 5], [8, -4, 9, 2, 4]])
    return relative_error(tied, [each[0] + each[2] + each[3], each[1]])


# Gradients through the whole model.


def scored_places(prompt, rows):
    """Every real token that something predicts, but not the slots among them."""
    first = prompt.carrier == "embeddings" and not prompt.in_rows
    T = max(map(len, rows))
    return np.array([[t < len(row) and row[t] >= 0 and (t > 0 or first) for t in range(T)] for row in rows])


def gradient_of(model, prompt, rows=ROWS, scored=None, shards=1):
    """The gradient of the mean cross-entropy, as `compress` takes it through the prompt's door."""
    return loss_and_gradient(model, prompt, rows, scored, shards)[1]


def loss_and_gradient(model, prompt, rows=ROWS, scored=None, shards=1):
    ids = padded(rows)
    scored = scored_places(prompt, rows) if scored is None else scored
    make = lambda part, weight: likelihood(np.maximum(ids, 0)[part][scored[part]], weight)
    with Shards(shards) as threads:
        return gradient.slots_gradient(model, prompt.tree, ids, scored, make, threads, prompt.door)


def plain_losses(model, prompt, rows=ROWS):
    """The share of each scored place in that mean, by the plain reading."""
    scored, losses = scored_places(prompt, rows), []
    for b, row in enumerate(rows):
        read = read_row(*model, prompt, row)
        for t in np.flatnonzero(scored[b]):
            logits = read.logits[t - 1] if t else read.first
            losses.append(np.log(np.exp(logits).sum()) - logits[row[t]])
    return np.array(losses) / scored.sum()


def gradient_error(kind, oracle=complex_step, seed=0, P=4, shards=2, config=TINY):
    """Of slots, and of masses, through read, rows and loss; and of the loss itself."""
    rng, model = np.random.default_rng(seed), random_model(seed + 1, config)
    prompt = random_prompt(kind, config, P, rng)
    rows = with_slots(ROWS, P, rng) if prompt.in_rows else ROWS
    mean, found = loss_and_gradient(model, prompt, rows, shards=shards)
    n = len(plain_losses(model, prompt, rows))
    if prompt.beta is None:
        f = lambda slots: plain_losses(model, replace(prompt, slots=slots), rows)
        error = directional_error(oracle, f, prompt.slots, found, np.ones(n), rng)
    else:
        f = lambda tree: plain_losses(model, replace(prompt, **tree), rows)
        error = max(tree_errors(oracle, f, prompt.tree, found, np.ones(n), rng).values())
    return max(error, relative_error(mean, plain_losses(model, prompt, rows).sum()))


def through_error():
    """A map of its own before a door: slots = A raw."""
    model, rng = random_model(), np.random.default_rng(9)
    A, raw = rng.standard_normal((4, 3)), rng.standard_normal((3, TINY.n_embd))
    prompt = SoftPrompt(A @ raw)
    door = carriers.through(lambda r: (A @ r, None), lambda d, cache: A.T @ d, prompt.door)
    ids, scored = padded(ROWS), scored_places(prompt, ROWS)
    make = lambda part, weight: likelihood(ids[part][scored[part]], weight)
    with Shards(1) as threads:
        _, found = gradient.slots_gradient(model, raw, ids, scored, make, threads, door)
    return relative_error(found, A.T @ gradient_of(model, prompt))


def part_error(kind):
    """The gradient of the first slots alone, and of those behind a first one that stays, by the complex step."""
    model, rng, ids = random_model(), np.random.default_rng(12), padded(ROWS)
    prompt = random_prompt(kind, TINY, 4, rng)
    part = prompt.first(2)
    scored, errors = scored_places(part, ROWS), []
    make = lambda rows, weight: likelihood(ids[rows][scored[rows]], weight)
    fewer = carriers.through(*carriers.leading(2), part.door)
    held = carriers.through(*carriers.frozen(1), prompt.door)
    for door, some, count, skip in ((fewer, part, 2, 0), (held, prompt, 4, 1)):
        with Shards(1) as threads:
            _, found = gradient.slots_gradient(model, prompt.tree, ids, scored, make, threads, door)
        found = found if isinstance(found, dict) else {"slots": found}
        tree = some.tree if isinstance(some.tree, dict) else {"slots": some.tree}
        # in place of a slot's own axis: what is before `skip` and from `count` on must be exactly zero
        at = lambda x, name: np.moveaxis(x, -1 if name == "beta" else -2, 0)
        still = [at(x, name) for name, x in found.items()]
        errors += [float(any(x[:skip].any() or x[count:].any() for x in still))]
        f = lambda tree, some=some: plain_losses(model, replace(some, **tree), ROWS)
        for name, x in found.items():
            whole = {n: y.astype(complex) for n, y in tree.items()}
            axis, n = (-1 if name == "beta" else -2), at(x, name)[skip:count]
            direction = np.zeros_like(at(tree[name], name))
            direction[skip:] = rng.standard_normal(n.shape)
            whole[name] = whole[name] + 1e-30j * np.moveaxis(direction, 0, axis)
            errors.append(relative_error((n * direction[skip:]).sum(), f(whole).sum().imag / 1e-30))
    return max(errors)


# Writing, predicting, saving.


def generation_error(kind, rows=ROWS, steps=7, seed=0, P=4, config=TINY):
    """A ragged batch with a cache against each row alone, read anew for each token: 1 where a token differs."""
    rng, model = np.random.default_rng(seed), random_model(seed + 1, config)
    prompt = random_prompt(kind, config, P, rng)
    rows = with_slots(rows, P, rng) if prompt.in_rows else rows
    new, seen = watched(model, rows, steps, prompt.prefix(*model))
    alone, truth = [], []
    for row in rows:
        ids = list(row)
        for _ in range(steps):
            truth.append(read_row(*model, prompt, ids).logits[-1])
            ids.append(int(truth[-1].argmax()))
        alone.append(ids[len(row) :])
    return relative_error(seen.swapaxes(0, 1).reshape(len(truth), -1), truth) if new == alone else 1.0


def predictors_error(kind):
    """The states of all scored places, first tokens included where something predicts them."""
    model, rng = random_model(), np.random.default_rng(10)
    prompt = random_prompt(kind, TINY, 4, rng)
    rows = with_slots(ROWS, 4, rng) if prompt.in_rows else ROWS
    scored = scored_places(prompt, rows)
    hidden, _ = predictors(*model, prompt.prefix(*model), padded(rows), scored)
    head = model[0]["wte"]["weight"].T
    read = [read_row(*model, prompt, row) for row in rows]
    truth = [read[b].logits[t - 1] if t else read[b].first for b, t in np.argwhere(scored)]
    return relative_error(hidden @ head, truth)


def file_error(kind):
    """1 where a prompt that was saved and read again is not the very same."""
    prompt = replace(random_prompt(kind, TINY, 3, np.random.default_rng(11)), provenance={"model": "0"})
    prompt = replace(prompt, initial=prompt.slots - 1)
    with tempfile.TemporaryDirectory() as folder:
        prompt.save(Path(folder) / "p")
        back = SoftPrompt.load(Path(folder) / "p")
    bits = lambda x: None if x is None else (x.dtype, x.shape, x.tobytes())
    facts = lambda p: (bits(p.slots), bits(p.beta), bits(p.initial), p.carrier, p.positions, p.offset, p.template,
                       p.provenance, p.start)  # fmt: skip
    return float(facts(prompt) != facts(back))


def unfit_error():
    """How many prompts, whose parts do not belong together, may be saved and read again."""
    kv, embeddings = random_prompt("kv", TINY, 3, np.random.default_rng(12)), np.ones((3, 4))
    zeros, nan = np.zeros((2, 3, 3)), np.full((2, 3, 3), np.nan)
    unfit = [replace(kv, beta=zeros[:1]), replace(kv, beta=zeros[:, :, :2]), replace(kv, beta=zeros + np.inf),
             replace(kv, beta=nan), replace(kv, slots=kv.slots[0]), replace(kv, slots=kv.slots[:, :, :, :0]),
             SoftPrompt(np.ones((2, 3, 4)), "hidden", beta=zeros[:, 0, :1] + np.zeros(4)),
             SoftPrompt(embeddings, beta=np.zeros(3)),
             SoftPrompt(embeddings, positions="logical"), SoftPrompt(embeddings, offset=3),
             SoftPrompt(embeddings, positions="unshifted", offset=0), SoftPrompt(embeddings, positions="spread"),
             SoftPrompt(embeddings, positions="logical", offset=-1), SoftPrompt(embeddings, template="[3"),
             replace(kv, template="[3]{text}"), SoftPrompt(embeddings, "hidden"), SoftPrompt(embeddings[None])]  # fmt: skip
    accepted = 0
    with tempfile.TemporaryDirectory() as folder:
        for prompt in unfit:
            prompt.save(Path(folder) / "p")
            with contextlib.suppress(ValueError):
                accepted += bool(SoftPrompt.load(Path(folder) / "p"))
    return accepted


CHECKS = {
    **{f"hard text as {carrier}": partial(text_error, carrier) for carrier in DEEP},
    **{f"embeddings as {carrier}": partial(lift_error, carrier) for carrier in ("embeddings", *DEEP)},
    **{f"{carrier} in a row": partial(concatenate_error, carrier)
       for carrier in ("embeddings", "hidden", "kv", "kv with masses")},
    "parts of a text in a row": parts_error,
    "masses in a row": masses_in_a_row_error,
    "a mass of 1": partial(mass_error, 0, [0, 1, 2, 3]),
    "a mass of 2": partial(mass_error, log(2), [0, 1, 2, 2, 3]),
    "a mass of 3": partial(mass_error, log(3), [2, 0, 1, 2, 3, 2]),
    "a mass of 0": partial(mass_error, -np.inf, [0, 1, 3]),
    "gradient of what has no mass": absent_gradient_error,
    **{f"positions of {carrier}": partial(positions_error, carrier) for carrier in ("embeddings", *DEEP)},
    "slots in rows, in front": in_front_error,
    "slots in rows, infix": partial(by_hand_error, [3, 1, -1, -2, -3, 4]),
    "slots in rows, suffix": partial(by_hand_error, [3, 1, 4, -1, -2, -3]),
    "slots in rows, anywhere": partial(by_hand_error, [-3, 3, -1, 0, -3, 4, -2, 16]),
    "tied slots": tied_error,
    **{f"gradient of {kind}": partial(gradient_error, kind) for kind in KINDS},
    "gradient through a map": through_error,
    **{f"gradient of a part of {kind}": partial(part_error, kind) for kind in KINDS if "rows" not in kind},
    **{f"generation after {kind}": partial(generation_error, kind) for kind in KINDS},
    **{f"predictors after {kind}": partial(predictors_error, kind) for kind in KINDS},
    **{f"file of {kind}": partial(file_error, kind) for kind in KINDS},
    "unfit prompts": unfit_error,
}  # fmt: skip

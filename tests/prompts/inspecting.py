"""A soft prompt inspected a second way: one row, one query and one slot at a time; and how far `inspection` is from it."""

import math
import tempfile
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from checks import textbook_gelu, textbook_layernorm
from helpers import TINY, random_params
from minicompress.gpt2 import embed, forward
from minicompress.prompts import inspection, nearest
from minicompress.prompts.carriers import slots_shape
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.verification.oracles import relative_error
from outer_checks import letters_run

L, H, C, V, P = TINY.n_layer, TINY.n_head, TINY.n_embd, TINY.vocab_size, 3
TEXTS = [[3, 1, 4, 1, 5], [9, 2], [6]]
TIED = [[-1, 3, 1, -2, -1, 4, -3], [-1, 9, -2, -1, -3], [-1, 6, 5, -2, -1, 2, -3, 8, 2]]  # a template's rows
PROMPTS = {
    "embeddings": {},
    "embeddings, unshifted": {"positions": "unshifted"},
    "embeddings in rows": {"template": "[a 1]{text}[1][a]{text}[1]"},
    "hidden": {"carrier": "hidden"},
    "hidden, logical": {"carrier": "hidden", "positions": "logical", "offset": 11},
    "kv": {"carrier": "kv"},
    "kv with masses": {"carrier": "kv", "beta": True},
}
DEEP = [name for name, options in PROMPTS.items() if "carrier" in options]


def linear(x, weight, bias):
    return x @ weight + bias


def read_plainly(params, x, seen, past=None):
    """One row x (T, C) -> its residual stream before each layer and at the end, and each layer's weights (H, T, S).

    seen (T, S): the keys that a query looks at; past: for each layer keys and values (H, P, D), masses (H, P).
    """
    stream, attention = [x], []
    for layer in range(L):
        w = params["h"][str(layer)]
        qkv = linear(textbook_layernorm(x, **w["ln_1"]), **w["attn"]["c_attn"])
        q, k, v = qkv.reshape(len(x), 3, H, -1).transpose(1, 2, 0, 3)
        masses = np.zeros((H, k.shape[1]))
        if past:
            k, v = (np.concatenate([a, b], 1) for a, b in zip(past[layer], (k, v), strict=False))
            masses = np.concatenate([past[layer][2], masses], 1)
        weights = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(C // H) + masses[:, None]) * seen
        weights /= weights.sum(-1, keepdims=True)
        x = x + linear((weights @ v).swapaxes(0, 1).reshape(len(x), C), **w["attn"]["c_proj"])
        wide = textbook_gelu(linear(textbook_layernorm(x, **w["ln_2"]), **w["mlp"]["c_fc"]))
        x = x + linear(wide, **w["mlp"]["c_proj"])
        stream.append(x)
        attention.append(weights)
    return stream, attention


def predicted(params, state):
    """log2 of the probabilities (…, V) that a residual state predicts."""
    logits = textbook_layernorm(state, **params["ln_f"]) @ params["wte"]["weight"].T
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))) / math.log(2)


@dataclass
class Case:
    """A random model, a random prompt of some kind, and a few rows; the first tokens are scored where that can be."""

    kind: str = "embeddings"
    rows: list | None = None
    starts: list = field(default_factory=lambda: [0, 0, 0])
    seed: int = 0
    slots: int = P

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        options = {"carrier": "embeddings"} | PROMPTS[self.kind]
        slots = rng.standard_normal(slots_shape(options["carrier"], TINY, self.slots))
        if options.pop("beta", False):
            options["beta"] = rng.standard_normal((L, H, self.slots))
        self.params = random_params(TINY, rng)
        self.prompt = SoftPrompt(slots, **options)
        self.rows = self.rows or (TIED if self.prompt.in_rows else TEXTS)

    @property
    def front(self):
        """How many columns stand in front of a row's own."""
        return self.slots if self.prompt.carrier == "embeddings" and not self.prompt.in_rows else 0

    @property
    def past(self):
        """Keys, values and masses of the slots, of a deep carrier."""
        p = self.prompt
        if p.carrier == "embeddings":
            return None
        if p.carrier == "kv":
            return [(*kv, np.zeros((H, self.slots)) if p.beta is None else p.beta[n]) for n, kv in enumerate(p.slots)]
        past = []
        for layer, x in enumerate(p.slots):
            w = self.params["h"][str(layer)]
            qkv = linear(textbook_layernorm(x, **w["ln_1"]), **w["attn"]["c_attn"])
            past.append((*qkv.reshape(self.slots, 3, H, -1).transpose(1, 2, 0, 3)[1:], np.zeros((H, self.slots))))
        return past

    def columns(self, row):
        """A row's columns with the slots in front, if they stand there, as ids."""
        return [-1 - p for p in range(self.front)] + list(row)

    def embedded(self, row):
        wte, wpe = (self.params[name]["weight"] for name in ("wte", "wpe"))
        x = [wte[i] if i >= 0 else self.prompt.slots[-1 - i] for i in self.columns(row)]
        where = [*range(self.front), *range(self.prompt.start, self.prompt.start + len(row))]
        return np.array(x) + wpe[where]

    def read(self, row, without=None):
        """The row, every query one slot blind, but for the slot itself where it is a column."""
        ids, before = self.columns(row), self.slots if self.past else 0
        seen = np.concatenate([np.ones((len(ids), before)), np.tri(len(ids))], 1)
        for key, owner in enumerate([*range(before), *(-1 - i for i in ids)]):
            if owner == without:
                for query in range(len(ids)):
                    seen[query, key] *= query == key - before
        return read_plainly(self.params, self.embedded(row), seen, self.past)

    def places(self, row, start):
        """(column, the token after it) of everything scored."""
        ids = self.columns(row)
        found = range(max(1, start + self.front), len(ids))
        return [(c - 1, ids[c]) for c in found if ids[c] >= 0]

    @cached_property
    def attention(self):
        """(L, H, P), the mean over all tokens."""
        received = []
        for row in self.rows:
            owners = [*range(self.slots if self.past else 0), *(-1 - i for i in self.columns(row))]
            weights = np.array(self.read(row)[1])  # (L, H, T, S)
            for query, token in enumerate(self.columns(row)):
                if token >= 0:
                    of = lambda p, w=weights[:, :, query], o=owners: sum(w[:, :, s] for s in range(len(o)) if o[s] == p)
                    received.append(np.stack([of(p) for p in range(self.slots)], -1))
        return np.mean(received, 0)

    @cached_property
    def left_out(self):
        """KL, loss and places of each slot; nan where no place is left."""
        told = []
        for p in range(self.slots):
            kl, loss = [], []
            for row, start in zip(self.rows, self.starts, strict=True):
                whole, less = (predicted(self.params, self.read(row, without)[0][-1]) for without in (None, p))
                for column, token in self.places(row, start):
                    if self.columns(row)[column] != -1 - p:
                        kl.append((2 ** whole[column] * (whole[column] - less[column])).sum())
                        loss.append(whole[column, token] - less[column, token])
            told.append((np.mean(kl), np.mean(loss), len(kl)) if kl else (math.nan, math.nan, 0))
        return np.array(told).T

    @cached_property
    def states(self):
        """Each slot's residual stream: a list of (P, C)."""
        if self.prompt.carrier == "hidden":
            return list(self.prompt.slots)
        columns = [self.columns(self.rows[0]).index(-1 - p) for p in range(self.slots)]
        return [x[columns] for x in self.read(self.rows[0])[0]]

    @cached_property
    def found(self):
        return inspection.over_texts(self.params, TINY, self.prompt, self.rows, self.starts)


def attention_error(kind):
    case = Case(kind)
    return relative_error(case.found["attention"], case.attention)


def left_out_error(kind, **options):
    """KL, loss and places; 1 where another number of places is counted."""
    case = Case(kind, **options)
    kl, loss, places = case.left_out
    if case.found["places"].tolist() != places.tolist():
        return 1.0
    return max(relative_error(case.found["kl"], kl), relative_error(case.found["loss"], loss))


def lens_error(kind):
    """1 where a token is another one than by hand; else how far its probability is off."""
    case = Case(kind)
    chances = 2 ** np.array([predicted(case.params, x) for x in case.states])  # (n, P, V)
    tokens, told = case.found["lens"]
    return float((tokens != chances.argmax(-1)).any()) or relative_error(told, chances.max(-1))


def vectors(case):
    """What is compared, by its definition: of slots (P, C), and of every token in a slot's place (P, V, C)."""
    params, prompt = case.params, case.prompt
    wte, wpe = (params[name]["weight"] for name in ("wte", "wpe"))
    if prompt.carrier == "embeddings":
        return prompt.slots, np.stack([wte] * case.slots)
    if prompt.carrier == "hidden":
        return prompt.slots[0], np.stack([wte + wpe[p] for p in range(case.slots)])
    key = lambda v, p: forward(params, TINY, embed(params, [[v]], p))[1][0][0].reshape(-1)
    tokens = np.array([[key(v, p) for v in range(V)] for p in range(case.slots)])
    return np.array([prompt.slots[0, 0, :, p].reshape(-1) for p in range(case.slots)]), tokens


def nearest_error(kind, k=4, words=5):
    """Against all tokens sorted one by one; the vocabulary is gone through in parts."""
    case = Case(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "WORDS", words)
        found = nearest.nearest(case.params, TINY, case.prompt, k)
    slots, tokens = vectors(case)
    errors = []
    for p, (slot, rows) in enumerate(zip(slots, tokens, strict=True)):
        cosine = [row @ slot / math.sqrt(row @ row) / math.sqrt(slot @ slot) for row in rows]
        apart = [math.sqrt(sum((a - b) ** 2 for a, b in zip(row, slot, strict=True))) for row in rows]
        for measure, values, sign in (("cosine", cosine, -1), ("euclidean", apart, 1)):
            ids, told = (part[p] for part in found[measure])
            order = sorted(range(V), key=lambda v, values=values, sign=sign: sign * values[v])[:k]
            errors.append(float(ids.tolist() != order) or relative_error(told, [values[v] for v in order]))
    return max(errors)


def moved_error():
    """From (3, 4) to (6, 8) and to (-3, -4), from nothing to (0, 2), and not at all; then over all that a slot has."""
    then, now = np.array([[3.0, 4], [3, 4], [0, 0], [1, 2]]), np.array([[6.0, 8], [-3, -4], [0, 2], [1, 2]])
    told = inspection.moved(SoftPrompt(now, initial=then))
    wrong = [relative_error(told["distance"], [5, 10, 2, 0]), relative_error(told["cosine"], [1, -1, 0, 1])]
    wrong.append(float(told["relative"].tolist() != [1, 2, math.inf, 0]))
    case, rng = Case("kv with masses"), np.random.default_rng(1)
    then = rng.standard_normal(case.prompt.slots.shape)
    found = inspection.moved(replace(case.prompt, initial=then))["distance"]
    by_hand = [math.sqrt(((case.prompt.slots - then)[:, :, :, p] ** 2).sum()) for p in range(P)]
    return max(*wrong, relative_error(found, by_hand))


def initial_error():
    """How many prompts of a run, written and read again, do not say where their slots began."""
    wrong = 0
    for options in ({}, {"carrier": "hidden"}, {"carrier": "kv", "beta": True}):
        with letters_run(**options) as run, tempfile.TemporaryDirectory() as folder:
            began = (run.slots["slots"] if run.recipe.beta else run.slots).copy()
            run.train_slots()
            run.prompt().save(Path(folder) / "p")
            back = SoftPrompt.load(Path(folder) / "p")
        wrong += back.initial is None or back.initial.tobytes() != began.tobytes() or (back.slots == began).all()
    return wrong


def batches_error(kind="embeddings in rows"):
    """Rows read one at a time, against all of them at once."""
    case = Case(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "TOKENS", 1)
        alone = Case(kind).found
    names = ("attention", "kl", "loss", "places")
    same = [relative_error(alone[name], case.found[name]) for name in names]
    return max(*same, *(relative_error(a, b) for a, b in zip(alone["lens"], case.found["lens"], strict=True)))


CHECKS = {
    **{f"attention, {kind}": lambda kind=kind: attention_error(kind) for kind in PROMPTS},
    **{f"left out, {kind}": lambda kind=kind: left_out_error(kind) for kind in PROMPTS},
    "left out, later starts": lambda: left_out_error("embeddings", starts=[2, 1, 0]),
    **{f"lens, {kind}": lambda kind=kind: lens_error(kind) for kind in PROMPTS if not kind.startswith("kv")},
    **{f"nearest, {kind}": lambda kind=kind: nearest_error(kind) for kind in ("embeddings", "hidden", "kv")},
    "moved": moved_error,
    "initial": initial_error,
    "batches": batches_error,
}

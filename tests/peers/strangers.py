"""People who bring an implementation that is wrong in one way, and questions on which it shows.

`STRANGERS` lists them: the mistake's id, how this one made it, and on what it can show. `RIGHT` made none.
`CONVENTIONS` are other customs rather than mistakes.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from stranger_run import answer, in_contract

from minicompress.gpt2 import Config, init
from minicompress.prompts.carriers import slots_shape
from minicompress.prompts.parameterisations import (
    cartridge,
    direct,
    kind_of,
    low_rank,
    prefix_mlp,
    ptuning_lstm,
    ptuning_mlp,
)
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.trees import tree_map
from minicompress.verification.oracles import relative_error
from minicompress.verification.setup import Setup
from reading import with_slots

FRONT = ("embeddings", "hidden", "kv", "kv with beta")
SOFT = (*FRONT, "in rows")
ANY = (None, *SOFT)
ENCODERS = ("mlp", "lstm", "prefix mlp")
RAW = {"embeddings": ("direct", "low rank", "mlp", "lstm"), "hidden": ("direct", "low rank"), "in rows": ("mlp",),
       "kv": ("direct", "low rank", "cartridge", "prefix mlp")}  # fmt: skip
SEEN = {np.float64: 1e-8, np.float32: 1e-3}  # how far a tensor must be off to count as wrong


class Stranger(NamedTuple):
    """One mistake, made one way. wishes: what `draw` is asked for; needs(setup): whether it could show."""

    id: str
    variant: str
    wishes: dict
    needs: Any = lambda setup: True
    convention: bool = False

    @property
    def bug(self):
        return f"{self.id}: {self.variant}" if self.id else ""

    def make(self, setup, rich=False):
        """{name: array}."""
        return answer(setup, self.bug, rich)


RIGHT = Stranger("", "", {})

# What it takes for a mistake to show.


def carrier_of(setup):
    prompt = setup.prompt
    return prompt and ("in rows" if prompt.in_rows else prompt.carrier)


def ragged(setup):
    return len({len(row) for row in setup.rows}) > 1


def several(setup):
    return len(setup.rows) > 1


def compact(setup):
    return setup.prompt.positions == "compact"


def weights_shown(setup):
    return setup.prompt is None or setup.gradients == "all"


def repeats(setup):
    ids = [i for row in setup.rows for i in row if i >= 0]
    return weights_shown(setup) and len(set(ids)) < len(ids)


def tied(setup):
    return weights_shown(setup) and setup.model[1].tie_word_embeddings


def holes(setup):
    return setup.labels is not None and any(y == -100 for row in setup.labels for y in row)


def two_slots(setup):
    return setup.prompt.length > 1


def starts_late(setup):
    return setup.prompt.start > 0


CE, KL, STEPS, DECODE, TWICE = {"loss": "ce"}, {"loss": "kl"}, {"steps": True}, {"decode": True}, {"twice": True}
HOT = KL | {"hot": True}


def same(id, variants, carriers=ANY, wishes=None, needs=lambda setup: True, convention=False):
    wishes = {"carriers": carriers} | (wishes or {})
    return [Stranger(id, variant, wishes, needs, convention) for variant in variants]


STRANGERS = [
    *same("left-padding", ["positions run on", "padding seen", "both"], FRONT, {"ragged": True}, ragged),
    *same("positions-shifted-twice", ["tokens"], FRONT, {"compact": True}, compact),
    *same("positions-shifted-twice", ["slots too"], ("embeddings",), {"compact": True}, compact),
    *same("positions-unshifted", ["from 0"], ("embeddings",), {"compact": True}, compact),
    *same("slots-without-positions", ["none"], ("embeddings", "in rows")),
    *same("prefix-projected", ["keys as hidden states", "each part by its own", "without ln_1"], ("kv", "kv with beta")),
    *same("prefix-layout", ["all keys, then all values", "heads innermost", "heads outermost", "not permuted",
                            "heads viewed, not moved"], ("kv", "kv with beta")),
    *same("key-value-swapped", ["in the prefix"], ("kv", "kv with beta")),
    *same("key-value-swapped", ["of hidden slots"], ("hidden",)),
    *same("key-value-swapped", ["in c_attn"]),
    *same("qkv-split", ["interleaved", "heads last", "keys first"]),
    *same("mask-off-by-one", ["the next too", "not itself"]),
    *same("mask-missing", ["padding hidden", "padding seen too"]),
    *same("mask-inverted", ["causal", "padding"]),
    *same("mask-missing-for-slots", ["tokens do not see them", "hidden as padding"], FRONT),
    *same("mask-missing-for-slots", ["they see each other"], ("embeddings",), needs=two_slots),
    *same("scale-twice", ["scores again", "the query first"]),
    *same("scale-missing", ["none"]),
    *same("gelu-erf", ["erf"]),
    *same("variance-unbiased", ["the default"]),
    *same("eps-outside-root", ["std + eps"]),
    *same("eps-missing-in-backward", ["recomputed", "rstd", "stretch"]),
    *same("final-norm-missing", ["none"]),
    *same("float16-accumulation", ["half products", "bfloat16 products", "gradients"]),
    *same("labels-not-shifted", ["in place"], wishes=CE),
    *same("labels-not-shifted", ["in place, against a teacher"], wishes=KL),
    *same("slots-scored", ["as token 0", "as eos"], ("embeddings", "in rows"), CE),
    *same("padding-scored", ["as token 0", "as eos"], wishes={"ragged": True}, needs=ragged),
    *same("mean-of-row-means", ["rows with targets", "empty rows too"], wishes={"ragged": True}, needs=several),
    *same("ignored-labels-counted", ["as token 0"], wishes=CE | {"holes": True}, needs=holes),
    *same("ignored-labels-counted", ["in the denominator", "none, then mean"], wishes={"holes": True}, needs=holes),
    *same("kl-reversed", ["the other way"], wishes=KL),
    *same("kl-without-t2", ["T forgotten"], wishes=HOT),
    *same("kl-temperature-one-side", ["student", "teacher"], wishes=HOT),
    *same("teacher-in-train-mode", ["everywhere", "attention", "residual"], wishes=KL | TWICE),
    *same("teacher-misses-last-token", ["one short"], wishes=KL),
    *same("model-in-train-mode", ["everywhere", "attention", "residual"], wishes=TWICE),
    *same("encoder-in-train-mode", ["layers", "input"], SOFT, TWICE | {"raw": ENCODERS}),
    *same("encoder-frozen", ["its layers", "its output"], SOFT, {"raw": ENCODERS}),
    *same("prompt-detached", ["detached"], SOFT),
    *same("prompt-detached", ["cached"], ("embeddings", "hidden")),
    *same("prompt-detached", ["cached, but the last state"], ("embeddings",)),
    *same("prompt-not-injected", ["left out", "placed", "narrow"], FRONT),
    *same("prompt-not-injected", ["left out"], ("in rows",)),
    *same("prompt-not-injected", ["placeholders"], ("embeddings", "in rows")),
    *same("prompt-gradient-averaged", ["over rows"], SOFT, {"several": True}, several),
    *same("tied-head-gradient-lost", ["detached", "a copy"], wishes={"tied": True}, needs=tied),
    *same("repeated-tokens-once", ["the last wins", "padding too"], wishes={"weights": True}, needs=repeats),
    *same("cache-position-off", ["one too far", "one short", "from 0 again"], wishes=DECODE),
    *same("cache-position-off", ["the prompt not counted"], FRONT, DECODE, starts_late),
    *same("cache-stale", ["never grows", "the last token only", "a step behind"], wishes=DECODE),
    *same("cache-stale", ["of the row before"], wishes=DECODE | {"several": True}, needs=several),
    *same("adamw-decays-prompt", ["0.01", "0.1"], SOFT, STEPS | {"decay": False}),
    *same("decay-as-l2", ["like Adam's"], wishes=STEPS | {"decay": True}),
    *same("adam-without-bias-correction", ["neither", "m", "v"], wishes=STEPS),
    *same("clipped-per-tensor", ["each", "whatever their length"], (None, "kv with beta"), STEPS | {"clip": True}),
    *same("clipped-per-tensor", ["each"], SOFT, STEPS | {"clip": True, "raw": ENCODERS}),
    *same("clipped-per-tensor", ["layer by layer"], (None,), STEPS | {"clip": True}),
]  # fmt: skip
LATER = [  # variants that came after the first measurement
    *same("left-padding", ["padding seen, eos"], FRONT, {"ragged": True}, ragged),
    *same("slots-without-positions", ["all at 0"], ("embeddings",), needs=two_slots),
    *same("prefix-projected", ["values as hidden states"], ("kv", "kv with beta")),
    *same("prefix-layout", ["kinds inside heads", "slots inside layers"], ("kv", "kv with beta")),
    *same("qkv-split", ["values first"]),
    *same("mask-off-by-one", ["not itself, but the first"]),
    *same("mask-missing", ["added as 0 and 1"]),
    *same("scale-twice", ["in both"]),
    *same("variance-unbiased", ["blocks only"]),
    *same("eps-outside-root", ["blocks only"]),
    *same("eps-missing-in-backward", ["xhat"]),
    *same("final-norm-missing", ["without its weights"]),
    *same("float16-accumulation", ["attention", "the head"]),
    *same("labels-not-shifted", ["the wrong way"]),
    *same("slots-scored", ["as the first token"], ("embeddings",), CE),
    *same("padding-scored", ["the first, eos"], wishes=CE | {"ragged": True}, needs=ragged),
    *same("mean-of-row-means", ["by position"], wishes={"ragged": True}, needs=several),
    *same("ignored-labels-counted", ["as eos"], wishes=CE | {"holes": True}, needs=holes),
    *same("kl-without-t2", ["T once"], wishes=HOT),
    *same("kl-temperature-one-side", ["student, and no T²"], wishes=HOT),
    *same("teacher-in-train-mode", ["embeddings"], wishes=KL | TWICE),
    *same("teacher-misses-last-token", ["the first"], wishes=KL),
    *same("model-in-train-mode", ["embeddings"], wishes=TWICE),
    *same("encoder-in-train-mode", ["half"], SOFT, TWICE | {"raw": ENCODERS}),
    *same("encoder-frozen", ["its embedding"], SOFT, {"raw": ENCODERS}),
    *same("prompt-detached", ["its keys"], ("kv", "kv with beta")),
    *same("prompt-detached", ["behind the first layer"], ("hidden",)),
    *same("prompt-not-injected", ["in the first layer only"], ("hidden",)),
    *same("prompt-gradient-averaged", ["of the first row"], SOFT, {"several": True}, several),
    *same("repeated-tokens-once", ["the first wins", "averaged"], wishes={"weights": True}, needs=repeats),
    *same("cache-position-off", ["behind the longest"], wishes=DECODE | {"ragged": True}, needs=ragged),
    *same("cache-stale", ["overwrites the last"], wishes=DECODE),
    *same("adam-without-bias-correction", ["a step late"], wishes=STEPS),
    *same("clipped-per-tensor", ["by value"], wishes=STEPS | {"clip": True}),
]
STRANGERS += LATER
CONVENTIONS = [
    *same("positions-unshifted", ["of a prefix"], FRONT[1:], {"compact": True}, compact, True),
    *same("kl-top-k", ["3", "6"], wishes=KL, convention=True),
    *same("kl-top-k-renormalised", ["3", "6"], wishes=KL, convention=True),
    *same("loss-summed", ["sum"], convention=True),
    *same("loss-summed", ["per row"], needs=several, convention=True),
    *same("first-token-unscored", ["from the second on"], ("embeddings",), convention=True),
    *same("loss-in-float32", ["logits cast"], convention=True),
]

# Questions.


def random_setup(rng, stranger=RIGHT, dtype=np.float64, tries=3000):
    """A fresh model, prompt, rows and the rest, on which this stranger's answer really is another one."""
    for _ in range(tries):
        setup = draw(rng, **stranger.wishes)
        if not stranger.needs(setup):
            continue
        try:
            reference = setup.tensors()
        except (ValueError, FloatingPointError):  # nothing scored, or a gradient that is infinite
            continue
        if (
            not stranger.id
            or shows(reference, suspect := stranger.make(setup), dtype)
            and chance_shows(stranger, suspect)
        ):
            return cast(setup, dtype) if dtype != np.float64 else setup
    raise AssertionError(f"{stranger.bug} does not show in {tries} questions")


def shows(reference, suspect, dtype=np.float64):
    """Whether the contract's own tensors tell the two apart, by finite numbers."""
    if not all(np.isfinite(x).all() for x in suspect.values()):
        return False
    reference = {name: x for name, x in reference.items() if in_contract(name)}
    if reference.keys() != suspect.keys() or any(x.shape != suspect[name].shape for name, x in reference.items()):
        return True
    return max(relative_error(suspect[name], x) for name, x in reference.items()) > SEEN[dtype]


def chance_shows(stranger, suspect):
    """Of a mistake that is made by chance: whether it was made another way the second time."""
    if not stranger.id.endswith("train-mode"):
        return True
    pairs = [(x, suspect[name.removeprefix("again.")]) for name, x in suspect.items() if name.startswith("again.")]
    return any(not np.array_equal(a, b) for a, b in pairs)


def compared(setup, stranger, rich=False):
    """-> the reference's tensors, the stranger's, the mistake's id."""
    return setup.tensors(), stranger.make(setup, rich), stranger.id


def draw(rng, carriers=ANY, raw=None, loss=None, hot=False, steps=None, decay=None, clip=None, decode=None, twice=None,
         ragged=False, several=False, holes=False, compact=False, tied=False, weights=False):  # fmt: skip
    """A Setup by chance, but as wished."""
    config = random_config(rng, tied)
    if raw:
        carriers = [c for c in carriers if c in RAW and set(RAW[c]) & set(raw)]
    carrier = carriers[rng.integers(len(carriers))]
    prompt = random_prompt(rng, carrier, config, raw, compact) if carrier else None
    rows, labels = random_rows(rng, config, prompt, ragged, several, holes)
    kl = loss == "kl" or loss is None and rng.random() < 0.4
    teacher = random_config(rng, vocabulary=config.vocab_size) if kl and rng.random() < 0.5 else None
    shown = "prompt" if prompt and not (weights or tied) and rng.random() < 0.2 else "all"
    return Setup(
        (random_weights(rng, config), config),
        rows,
        prompt,
        labels,
        (random_weights(rng, teacher), teacher) if teacher else None,
        rng.integers(config.vocab_size, size=rng.integers(2, 7)).tolist() if kl else None,
        shown,
        float(rng.choice([0.5, 2.0, 3.0] if hot else [1.0, 1.0, 2.0, 0.7])) if kl else 1.0,
        int(rng.integers(3, 6)) if decode or decode is None and rng.random() < 0.3 else 0,
        random_steps(rng, decay, clip) if steps or steps is None and rng.random() < 0.3 else None,
        bool(twice or rng.random() < 0.3),
    )


def random_config(rng, tied=True, vocabulary=None):
    heads = int(rng.integers(2, 5))
    width = heads * int(rng.integers(-(-8 // heads), 24 // heads + 1))
    return Config(
        vocab_size=vocabulary or int(rng.integers(11, 41)), n_positions=48, n_embd=width, n_head=heads,
        n_layer=int(rng.integers(1, 4)), n_inner=None if rng.random() < 0.8 else int(rng.integers(5, 30)),
        tie_word_embeddings=bool(tied or rng.random() < 0.8),
    )  # fmt: skip


def random_weights(rng, config):
    """From a fresh GPT-2's to large ones."""
    scale, noise = [(0.02, 0), (0.02, 0.02), (0.1, 0.1), (0.3, 0.2), (0.6, 0.3)][rng.integers(5)]
    return tree_map(lambda w: w + noise * rng.standard_normal(w.shape), init(config, rng, np.float64, scale))


def random_prompt(rng, carrier, config, raw=None, compact=False):
    name, masses = carrier.removesuffix(" with beta"), carrier.endswith("beta")
    P, options = int(rng.integers(1, 6)), {}
    if name == "in rows":
        name, options = "embeddings", {"template": f"{{before}}[{P}]{{text}}"}
    elif not compact and rng.random() < 0.3:
        offset = int(rng.integers(1, 12))
        options = [{"positions": "unshifted"}, {"positions": "logical", "offset": offset}][rng.integers(2)]
    shape = slots_shape(name, config, P)
    slots = rng.standard_normal(shape) * [0.02, 0.3, 1.0][rng.integers(3)]
    beta = rng.standard_normal(shape[:1] + shape[2:4]) if masses else None
    prompt = SoftPrompt(slots, name, beta=beta, **options)
    kinds = [kind for kind in RAW.get(carrier, ()) if raw is None or kind in raw]
    if kinds and (raw or rng.random() < 0.25):
        made_of = random_raw(rng, kinds[rng.integers(len(kinds))], slots, config, P)
        prompt = replace(prompt, raw=made_of, slots=kind_of(made_of, config)[0](made_of)[0])
    return prompt


def random_raw(rng, kind, slots, config, P):
    C, hidden, dtype = config.n_embd, int(rng.integers(3, 9)), np.float64
    match kind:
        case "direct":
            return direct.init(rng, slots, dtype)
        case "low rank":
            made_of = low_rank.init(rng, slots, 2, dtype)
            return made_of | {"b": made_of["b"] + 0.3 * rng.standard_normal(made_of["b"].shape)}
        case "cartridge":
            return cartridge.init(rng, slots, min(1, P - 1), dtype)
        case "prefix mlp":
            return prefix_mlp.init(rng, P, config.n_layer, C, hidden, dtype)
        case "mlp":
            return ptuning_mlp.init(rng, P, C, hidden, dtype)
        case "lstm":
            return ptuning_lstm.init(rng, P, C, hidden, int(rng.integers(1, 3)), dtype)


def random_rows(rng, config, prompt, ragged, several, holes):
    """Rows of 1 to 8 tokens; labels that are the tokens, or others, some of them left out."""
    B, V = int(rng.integers(2 if several or ragged else 1, 5)), config.vocab_size
    lengths = rng.integers(1, 9, size=B)
    lengths = lengths if ragged or rng.random() < 0.7 else np.full(B, max(2, lengths[0]))
    rows = [rng.integers(V, size=n).tolist() for n in lengths]
    labels = None
    if holes or rng.random() < 0.5:
        missing = rng.choice([0.0, 0.25]) if not holes else 0.3
        other = rng.random() < 0.3
        labels = [
            [-100 if rng.random() < missing else int(rng.integers(V)) if other else i for i in row] for row in rows
        ]
    if prompt is not None and prompt.in_rows:
        seed = int(rng.integers(2**32))
        strewn = lambda lists, fill=None: with_slots(lists, prompt.length, np.random.default_rng(seed), fill)
        rows, labels = strewn(rows), labels and strewn(labels, -100)
        rows = [[int(i) for i in row] for row in rows]
    return rows, labels


def random_steps(rng, decay, clip):
    weight_decay = float(rng.choice([0.01, 0.1])) if decay or decay is None and rng.random() < 0.4 else 0.0
    limit = float(rng.choice([1e-3, 1e-2, 0.1])) if clip else [None, 0.05, 1.0][rng.integers(3)]
    return {
        "steps": int(rng.integers(1, 4)),
        "lr": float(rng.choice([1e-3, 1e-2])),
        "weight_decay": weight_decay,
        "clip": limit,
    }


def cast(setup, dtype):
    """The same question in float32."""
    small = lambda tree: tree_map(lambda w: w.astype(dtype), tree)
    prompt = setup.prompt
    if prompt:
        raw = prompt.raw and small(prompt.raw)
        slots = kind_of(raw, setup.model[1])[0](raw)[0] if raw else small(prompt.slots)
        prompt = replace(prompt, slots=slots, raw=raw, beta=None if prompt.beta is None else small(prompt.beta))
    model, teacher = ((small(m[0]), m[1]) if m else None for m in (setup.model, setup.teacher))
    return setup._replace(model=model, teacher=teacher, prompt=prompt)

"""What decides a tuning: the methods, what fits them, and where their numbers begin."""

from dataclasses import dataclass, replace

import numpy as np

from minicompress.prompts.carriers import through
from minicompress.prompts.parameterisations import (
    cartridge,
    direct,
    kind_of,
    low_rank,
    prefix_mlp,
    ptuning_lstm,
    ptuning_mlp,
)  # fmt: skip
from minicompress.prompts.template import parse
from minicompress.tuning.examples import KINDS

METHODS = {  # the carrier of a method's slots, and the parameterisations that fit it, its own first
    "prompt": ("embeddings", ("direct", "low-rank")),  # Lester et al. 2021
    "p-tuning": ("embeddings", ("mlp", "lstm")),  # Liu et al. 2021
    "prefix": ("kv", ("direct", "low-rank", "mlp", "cartridge")),  # Li & Liang 2021
    "deep": ("hidden", ("direct", "low-rank")),  # P-tuning v2, Liu et al. 2022
}
ENCODERS = ("mlp", "lstm")  # they draw their own start; the others begin at given slots
STAYS = ("base", "frozen")  # names of raw arrays that are not trained
BELONGS = {"hidden": ENCODERS, "rank": ("low-rank",), "frozen": ("cartridge",)}  # option: whose it is
SLOTS = 8
PATTERN = "Q: {{{}}}\\nA:"  # the form in which `ask` asks


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what `tune` makes, as it is written into the prompt's file; None: what fits the rest."""

    method: str = "prompt"
    parameterisation: str | None = None
    slots: int | None = None
    hidden: int | None = None
    rank: int | None = None
    frozen: int | None = None
    init: str | None = None
    template: str | None = None
    verbalizer: dict | None = None  # {label: word}
    positions: str = "compact"
    steps: int = 400
    lr: float | None = None
    rows: int = 16
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float | None = 1.0
    evaluate_every: int = 50
    patience: int | None = None  # evaluations without a better one
    best_by: str = "loss"  # or accuracy, which for few examples is mostly chance
    decode: int = 32  # answers that an evaluation writes out
    seed: int = 0

    @property
    def carrier(self):
        return METHODS[self.method][0]


def settled(recipe, kind, tokenizer, config, given=False):
    """The recipe with nothing left open, for examples of a kind. `given`: the slots begin at another prompt's.

    Raises ValueError where parts do not fit together, by the name of the option.
    """
    how = fitting_parameterisation(recipe, given)
    text = PATTERN.format(KINDS[kind]) if recipe.template is None else recipe.template
    template = parse(text)
    slots = number_of_slots(recipe, template, tokenizer, how)
    frozen = (1 if recipe.frozen is None else recipe.frozen) if how == "cartridge" else None
    if frozen is not None and frozen >= slots:
        raise ValueError(f"--frozen {frozen} of {slots} slots leaves none to train")
    return replace(
        recipe,
        parameterisation=how,
        slots=slots,
        hidden=(recipe.hidden or config.n_embd) if how in ENCODERS else None,  # as PEFT
        rank=(recipe.rank or 4) if how == "low-rank" else None,
        frozen=frozen,
        init=None if how in ENCODERS or given else recipe.init or "vocab",
        template=text,
        lr=recipe.lr or default_rate(recipe.method, how),
    )


def fitting_parameterisation(recipe, given):
    """The parameterisation wished, or the method's own; raises ValueError where another option contradicts it."""
    _, fitting = METHODS[recipe.method]
    how = recipe.parameterisation or fitting[0]
    if how not in fitting:
        raise ValueError(f"--parameterisation {how} does not fit --method {recipe.method}; {' or '.join(fitting)} does")
    for option, whose in BELONGS.items():
        if getattr(recipe, option) is not None and how not in whose:
            raise ValueError(f"--{option} belongs to --parameterisation {' or '.join(whose)}; this one is {how}")
    if how in ENCODERS and recipe.init is not None:
        raise ValueError(f"--init says where slots begin; the {how} of --method {recipe.method} draws its own start")
    if given and recipe.init is not None:
        raise ValueError("--init and --init-from are two beginnings; give one")
    return how


def number_of_slots(recipe, template, tokenizer, how):
    """P, of the template where it places slots, else as wished; raises ValueError where the two disagree."""
    if not template.fields:
        raise ValueError(f"--template {template.text!r} shows nothing of an example; name a field, as in {{text}}")
    if not template.places_slots:
        return recipe.slots or SLOTS
    slots = template.slots(tokenizer)
    if recipe.carrier != "embeddings":
        raise ValueError(f"--template places slots in the text; those of --method {recipe.method} stand in every layer")
    if recipe.slots not in (None, slots):
        raise ValueError(f"--slots is {recipe.slots}, and --template places {slots}; leave out --slots")
    if recipe.positions != "compact":
        raise ValueError(f"--positions {recipe.positions} is for slots in front; --template places them in the text")
    if how in ENCODERS and template.initial_text_slots(tokenizer):
        raise ValueError(f"--template begins slots at words; the {how} of --method {recipe.method} draws its own start")
    return slots


def default_rate(method, how):
    """Adam moves each number by about its rate a step, whatever its size: so the rate follows the size.

    Embeddings are about 0.1 a number, hidden states, keys and values about 1. These are the best of 0.003,
    0.01, 0.03, 0.1, 0.3 on the embedded model; a network, whose weights are small and many, takes the least.
    """
    return 0.003 if how in ENCODERS else {"prompt": 0.03, "prefix": 0.1, "deep": 0.1}[method]


def parameterise(recipe, config, door, rng, start=None, dtype=np.float32):
    """-> raw arrays on the host, the door that takes them, and bake: raw -> slots, cache.

    door: of the slots themselves. start: host slots to begin at, which encoders do without.
    """
    P, C, L, how = recipe.slots, config.n_embd, config.n_layer, recipe.parameterisation
    match how if how not in ENCODERS else (recipe.method, how):
        case "direct":
            raw = direct.init(rng, start, dtype)
        case "low-rank":
            raw = low_rank.init(rng, start, recipe.rank, dtype)
        case "cartridge":
            raw = cartridge.init(rng, start, recipe.frozen, dtype)
        case ("prefix", "mlp"):
            raw = prefix_mlp.init(rng, P, L, C, recipe.hidden, dtype)
        case ("p-tuning", "mlp"):
            raw = ptuning_mlp.init(rng, P, C, recipe.hidden, dtype)
        case ("p-tuning", "lstm"):
            raw = ptuning_lstm.init(rng, P, C, recipe.hidden, dtype=dtype)
    bake, bake_backward = kind_of(raw, config)
    return raw, through(bake, bake_backward, door), bake


def trained(raw):
    """The raw arrays, or their gradients, that Adam moves. Weight decay would move the others too."""
    return {name: child for name, child in raw.items() if name not in STAYS}

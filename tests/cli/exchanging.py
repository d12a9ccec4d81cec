"""Prompts out and in, without a command line: how much is wrong, which planted bugs share."""

import contextlib
import os
import tempfile
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import safe_open

import weights_loader
from helpers import TINY, random_params
from minicompress import cli, commands
from minicompress.gpt2 import embed, forward
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.verification.oracles import relative_error
from reading import random_prompt, read_row

P = 3
NO_FRONT = ["[1]{t}[2]", "{t}[3]", "a[3]", "[a 3][a]{t}", "[a 2][1][a]"]
FRONT = ["[3]{t}", "[1][a 2]{t}b", "[3]"]


@cache
def place():
    """A folder with a model in it, which goes when Python ends."""
    kept = tempfile.TemporaryDirectory()
    weights_loader.save(Path(kept.name) / "model", random_params(TINY, np.random.default_rng(0)), asdict(TINY))
    return kept


def folder():
    return Path(place().name)


def model():
    return folder() / "model"


def kept(kind, **changes):
    """A random prompt of the model, and the file it is in."""
    provenance = {"model": weights_loader.model_hash(model())} | changes.pop("provenance", {})
    prompt = replace(random_prompt(kind, TINY, P, np.random.default_rng(0)), provenance=provenance, **changes)
    prompt.save(folder() / "p")
    return prompt, folder() / "p"


def quietly(command, *arguments, **options):
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        command(*arguments, model=model(), **options)


def there_and_back_error():
    """Folders of all types in all dtypes, imported and exported: how many files are not the same to the bit."""
    wrong = 0
    for n, (kind, dtype) in enumerate((k, d) for k in ("P_TUNING", "CARTRIDGE") for d in ("F64", "F32", "F16", "BF16")):
        width = TINY.n_embd * (2 * TINY.n_layer if kind == "CARTRIDGE" else 1)
        facts = weights_loader.peft_config(kind, P, num_frozen_tokens=2, revision="né", token_dim=TINY.n_embd)
        theirs, ours = folder() / f"theirs{n}", folder() / f"ours{n}"
        weights_loader.save_peft_prompt(theirs, np.random.default_rng(n).standard_normal((P, width)), facts, dtype)
        quietly(cli.import_, theirs, folder() / "q")
        quietly(cli.export, folder() / "q", ours, "peft")
        wrong += sum((theirs / f.name).read_bytes() != f.read_bytes() for f in ours.iterdir()) + 2 - len(list(ours.iterdir()))
        wrong += SoftPrompt.load(folder() / "q").provenance["model"] != weights_loader.model_hash(model())
    return wrong


def peft_error():
    """Prompts of ours as folders: numbers by slot, layer, kind and head; and the type."""
    error = 0.0
    for kind, recipe, told in (("embeddings", {}, "PROMPT_TUNING"), ("embeddings", {"method": "p-tuning"}, "P_TUNING"),
                               ("kv", {}, "PREFIX_TUNING"),
                               ("kv", {"parameterisation": "cartridge", "frozen": 2}, "CARTRIDGE")):  # fmt: skip
        prompt, path = kept(kind, provenance={"recipe": recipe})
        quietly(cli.export, path, folder() / "out", "peft", "F64")
        array, facts, dtype = weights_loader.load_peft_prompt(folder() / "out")
        flat = prompt.slots if kind == "embeddings" else np.array([prompt.slots[:, :, :, p].ravel() for p in range(P)])
        sizes = (facts["token_dim"], facts["num_layers"], facts["num_attention_heads"], dtype)
        error += relative_error(array, flat) + (facts["peft_type"] != told) + (sizes != (12, 2, 3, "F64"))
        error += facts.get("num_frozen_tokens") != recipe.get("frozen")
    return error


def arrays_error(kind, dtype="F64"):
    """What the arrays say, read in front of a row, against the plain reading of the prompt."""
    prompt, path = kept(kind)
    quietly(cli.export, path, folder() / "a", "arrays", dtype)
    with safe_open(folder() / "a", framework="numpy") as file:
        arrays, facts = {n: file.get_tensor(n) for n in file.keys()}, file.metadata()  # noqa: SIM118
    params, row, start = weights_loader.load(model(), "float64")[0], [3, 1, 4], int(facts["position_start"])
    if prompt.carrier == "embeddings":
        return relative_error(arrays["inputs_embeds"], prompt.slots[None]) + (start != prompt.start)
    parts = [part for part in ("key", "value", "beta") if f"past_key_values.0.{part}" in arrays]
    past = [tuple(arrays[f"past_key_values.{n}.{part}"] for part in parts) for n in range(TINY.n_layer)]
    hidden, *_ = forward(params, TINY, embed(params, [row], start), past)
    return relative_error(hidden[0] @ params["wte"]["weight"].T, read_row(params, TINY, prompt, row).logits)


def refused(f, *arguments, **options):
    try:
        quietly(f, *arguments, **options)
    except ValueError:
        return True
    return False


def refusals_error():
    """How many prompts go to PEFT that it cannot say, or do not go that it can."""
    cannot = [("hidden", {}), ("kv with masses", {}), ("kv, unshifted", {}), ("embeddings, logical", {})]
    cannot += [("in rows", {"template": template}) for template in NO_FRONT]
    can = [("kv, logical", {"offset": P}), ("kv with masses", {"beta": np.zeros((2, 3, P))}), ("kv", {"template": "{t}"})]
    can += [("in rows", {"template": template}) for template in FRONT]
    goes = lambda kind, changes: not refused(cli.export, kept(kind, **changes)[1], folder() / "out", "peft")
    return sum(goes(*case) for case in cannot) + sum(not goes(*case) for case in can)


def other_models_error():
    """How many folders of other sizes are taken for the model's."""
    taken = 0
    sizes = {"token_dim": TINY.n_embd, "num_layers": TINY.n_layer, "num_attention_heads": TINY.n_head}
    for kind in ("PROMPT_TUNING", "PREFIX_TUNING"):
        for name, other in (("token_dim", 24), ("num_layers", 4), ("num_attention_heads", 4)):
            facts = sizes | {name: other}
            width = facts["token_dim"] * (2 * facts["num_layers"] if kind == "PREFIX_TUNING" else 1)
            config = weights_loader.peft_config(kind, P, **facts)
            weights_loader.save_peft_prompt(folder() / "theirs", np.ones((P, width)), config)
            taken += not refused(cli.import_, folder() / "theirs", folder() / "q")
    weights_loader.save_peft_prompt(folder() / "theirs", np.ones((P, 24)), weights_loader.peft_config("PREFIX_TUNING", P))
    return taken + (not refused(cli.import_, folder() / "theirs", folder() / "q"))


def range_error():
    """Numbers that are too large for 16 bits go nowhere, and -∞ of a mass goes as it is."""
    large, path = kept("embeddings", slots=np.full((P, TINY.n_embd), 1e5))
    taken = sum(not refused(cli.export, path, folder() / "x", to, "F16") for to in ("peft", "arrays"))
    masses, path = kept("kv with masses", beta=np.full((2, 3, P), -np.inf))
    return taken + refused(cli.export, path, folder() / "x", "arrays", "F16")


def places_error():
    """The words for what stands before a text: slots only where it stands behind them."""
    told = [commands.before(random_prompt(kind, TINY, P, np.random.default_rng(0)))
            for kind in ("kv", "embeddings", "kv, logical", "kv, unshifted", "in rows")]  # fmt: skip
    return float([commands.before(None), *told] != [{}, {"slots": 3}, {"slots": 3}, {"positions_before_the_text": 7}, {}, {}])


CHECKS = {
    "there and back": there_and_back_error,
    "as PEFT's": peft_error,
    **{f"arrays of {kind}": lambda kind=kind: arrays_error(kind)
       for kind in ("embeddings", "embeddings, logical", "hidden", "hidden, unshifted", "kv", "kv with masses")},
    "refusals": refusals_error,
    "other models": other_models_error,
    "range": range_error,
    "places": places_error,
}  # fmt: skip

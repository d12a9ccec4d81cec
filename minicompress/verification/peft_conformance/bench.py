"""What is put to PEFT: a tiny random GPT-2, a random prompt of each kind, and how both sides read it.

PEFT's side is a `GPT2LMHeadModel` in float64 inside a `PeftModel`; ours are the same numbers as a
nested dict and a SoftPrompt. Every number is drawn by NumPy, or by torch after a seed.
"""

import os
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from minicompress.arrays import pad_rows
from minicompress.gpt2 import Config
from minicompress.prompts.layout import flat_from_kv, kv_from_flat
from minicompress.prompts.parameterisations import kind_of
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.trees import tree_map, unflatten
from minicompress.verification.trace import trace

CONFIG = Config(vocab_size=17, n_positions=64, n_embd=12, n_layer=2, n_head=3)
P, ROWS, TASK = 4, [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]], 1
CPT_TYPES = [1, 2, 3, 4]  # template, input, template, label: CPT trains all but the labels
SHAPED = {"num_virtual_tokens": P, "task_type": "CAUSAL_LM"}
KINDS = {
    "prompt tuning": ("PromptTuningConfig", SHAPED),
    "P-tuning, MLP": ("PromptEncoderConfig", SHAPED | {"encoder_hidden_size": 7}),
    "P-tuning, LSTM": ("PromptEncoderConfig", SHAPED | {"encoder_hidden_size": 5, "encoder_num_layers": 2,
                                                        "encoder_reparameterization_type": "LSTM"}),
    "multitask": ("MultitaskPromptTuningConfig", SHAPED | {"num_tasks": 3, "num_ranks": 2}),
    "CPT": ("CPTConfig", {"task_type": "CAUSAL_LM", "cpt_token_ids": [1, 2, 3, 4], "cpt_tokens_type_mask": CPT_TYPES}),
    "prefix tuning": ("PrefixTuningConfig", SHAPED),
    "prefix, projected": ("PrefixTuningConfig", SHAPED | {"encoder_hidden_size": 7, "prefix_projection": True}),
    "cartridge": ("CartridgeConfig", SHAPED | {"num_frozen_tokens": 1}),
}  # fmt: skip
KV = ("prefix tuning", "prefix, projected", "cartridge")


class Libraries(NamedTuple):
    torch: Any
    transformers: Any
    peft: Any
    seed: int = 0

    @property
    def versions(self):
        return {name: getattr(self, name).__version__ for name in ("peft", "transformers", "torch")}

    @property
    def kinds(self):
        """The kinds of prompt that this PEFT has."""
        return [kind for kind, (name, _) in KINDS.items() if hasattr(self.peft, name)]

    @property
    def rng(self):
        return np.random.default_rng(self.seed)


def libraries(seed=0):
    """torch, transformers and peft, kept off the network. Raises ImportError where one is missing."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import peft
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return Libraries(torch, transformers, peft, seed)


# PEFT's side.


def peer(lib):
    """A GPT2LMHeadModel in float64 and evaluation mode, every weight drawn anew."""
    facts = asdict(CONFIG) | {"bos_token_id": None, "eos_token_id": None, "attn_implementation": "eager"}
    model, rng = lib.transformers.GPT2LMHeadModel(lib.transformers.GPT2Config(**facts)).double().eval(), lib.rng
    for name, weight in model.named_parameters():
        mean, spread = float("ln_" in name and name.endswith("weight")), 0.2 if weight.ndim == 1 else 0.7
        weight.data.copy_(lib.torch.as_tensor(rng.normal(mean, spread, tuple(weight.shape))))
    return model


def config_of(lib, kind, **changes):
    name, facts = KINDS[kind]
    return getattr(lib.peft, name)(**(facts | changes))


def tuned(lib, kind, adapter="default", **changes):
    """That GPT-2 behind a random prompt, in float64 and evaluation mode."""
    lib.torch.manual_seed(lib.seed)
    model = lib.peft.get_peft_model(peer(lib), config_of(lib, kind, **changes), adapter_name=adapter).double().eval()
    redraw(lib, model.prompt_encoder)
    if kind == "CPT":
        model.get_prompt_embedding_to_save(adapter)  # brings what is trained into its ball
    return model


def redraw(lib, module, which=1):
    """Draws what is trained anew; `which` tells one prompt of a seed from another."""
    rng = np.random.default_rng([lib.seed, which])
    for weight in module.parameters():
        if weight.requires_grad:
            weight.data.copy_(lib.torch.as_tensor(rng.normal(0, 0.7, tuple(weight.shape))))


def encoder_of(model):
    return model.prompt_encoder[model.active_adapter]


def asked(lib, kind, rows, left=False, **options):
    """The arguments of their forward: ids, the mask of the real tokens, and a task for each row where it takes one."""
    width = max(map(len, rows))
    fill = [[0] * (width - len(row)) for row in rows]
    ids = [pad + row if left else row + pad for row, pad in zip(rows, fill, strict=True)]
    mask = [pad + [1] * len(row) if left else [1] * len(row) + pad for row, pad in zip(rows, fill, strict=True)]
    named = {"input_ids": ids, "attention_mask": mask}
    if kind == "multitask":
        named["task_ids"] = [TASK] * len(rows)
    return {name: lib.torch.as_tensor(value) for name, value in named.items()} | options


def their_logits(model, arguments):
    """What stands behind each real token, one array (T, V) a row; the slots' own predictions are left out."""
    mask = arguments["attention_mask"].bool()
    out = model(**arguments).logits[:, -mask.shape[1] :]
    return [to_numpy(logits[real]) for logits, real in zip(out, mask, strict=True)]


def their_losses(lib, model, arguments):
    """The mean cross-entropy of their logits as they are, in float64: T targets a row behind embeddings, else T-1."""
    ids, mask = arguments["input_ids"], arguments["attention_mask"]
    labels, out = ids.masked_fill(mask == 0, -100), model(**arguments).logits
    behind = out.shape[1] - ids.shape[1]
    out, labels = (out[:, behind - 1 : -1], labels) if behind else (out[:, :-1], labels[:, 1:])
    return lib.torch.nn.functional.cross_entropy(out.flatten(0, 1), labels.flatten())


def to_numpy(tensor):
    return tensor.detach().numpy().copy()


# Ours.


def tree_of(model):
    """{wte: {weight: ...}, h: {0: ...}} of a GPT2LMHeadModel; a tied head is named once, as wte."""
    return unflatten({name.removeprefix("transformer."): to_numpy(w) for name, w in model.named_parameters()})


def ours(model):
    """(params, config) of the GPT-2 inside a PeftModel, or of one that is in none."""
    return tree_of(model.get_base_model() if hasattr(model, "get_base_model") else model), CONFIG


def raw_of(encoder, what=lambda weight: weight):
    """What an encoder of PEFT's is made of, as a tree for `bake_of`: its weights, or `what` they carry."""
    named = {name: what(weight) for name, weight in encoder.named_parameters()}
    shapes = {name: weight.shape for name, weight in encoder.named_parameters()}
    tree = unflatten({n: np.zeros(shapes[n]) if x is None else to_numpy(x) for n, x in named.items()})
    if set(tree) == {"embedding"}:
        return {"slots": laid(tree["embedding"]["weight"])}
    if "trainable_embedding" in tree:
        return {part: laid(tree[f"{name}_embedding"]) for part, name in (("frozen", "frozen"), ("slots", "trainable"))}
    for layer in [*tree.get("transform", {}).values(), *tree.get("mlp_head", {}).values()]:
        layer["weight"] = layer["weight"].T.copy()
    if "lstm_head" in tree:
        tree["lstm_head"] = lstm_of(tree["lstm_head"])
    return tree


def laid(flat):
    """PEFT's rows (P, 2 L C) as keys and values; rows (P, C) as they are."""
    return flat if flat.shape[1] == CONFIG.n_embd else kv_from_flat(flat, CONFIG.n_layer, CONFIG.n_head)


def lstm_of(named):
    """weight_ih_l0_reverse, ... -> {"0": {"onward": {"weight_ih": ...}, "reverse": ...}, ...}."""
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ways = {"onward": "", "reverse": "_reverse"}
    layers = len(named) // (len(parts) * len(ways))
    return {str(n): {way: {part: named[f"{part}_l{n}{end}"] for part in parts} for way, end in ways.items()}
            for n in range(layers)}  # fmt: skip


def bake_of(raw):
    """bake and bake_backward for a tree of `raw_of`."""
    if "prefix_task_cols" in raw:
        return multitask, multitask_backward
    return (cpt, cpt_backward) if "delta_embedding" in raw else kind_of(raw, CONFIG)


def multitask(raw):
    """Slots of one task: the shared ones times, number by number, a product of two thin matrices (Wang et al. 2023)."""
    return raw["embedding"]["weight"] * (raw["prefix_task_cols"][TASK] @ raw["prefix_task_rows"][TASK]), raw


def multitask_backward(dslots, raw):
    draw = tree_map(np.zeros_like, raw)
    cols, rows = raw["prefix_task_cols"][TASK], raw["prefix_task_rows"][TASK]
    dproduct = dslots * raw["embedding"]["weight"]
    draw["embedding"]["weight"] += dslots * (cols @ rows)
    draw["prefix_task_cols"][TASK] += dproduct @ rows.T
    draw["prefix_task_rows"][TASK] += cols.T @ dproduct
    return draw


def cpt(raw):
    """A context's embeddings, which stay, plus what is trained (Blau et al. 2024)."""
    return raw["embedding"]["weight"] + raw["delta_embedding"]["weight"], raw


def cpt_backward(dslots, raw):
    trained = np.array(CPT_TYPES)[:, None] % 4 != 0
    return {"embedding": tree_map(np.zeros_like, raw["embedding"]), "delta_embedding": {"weight": dslots * trained}}


def prompt_of(encoder):
    """The SoftPrompt that an encoder of PEFT's makes, baked by our own code."""
    raw = raw_of(encoder)
    slots, _ = bake_of(raw)[0](raw)
    return SoftPrompt(slots, "embeddings" if slots.ndim == 2 else "kv")


def flat(prompt):
    """A prompt's slots as PEFT's files hold them."""
    return prompt.slots if prompt.carrier == "embeddings" else flat_from_kv(prompt.slots)


def traced(model, rows=ROWS, prompt=None):
    """Our trace of the rows behind the prompt of a PeftModel, or behind another one."""
    return trace(ours(model), rows, prompt or prompt_of(encoder_of(model)))


def our_logits(model, rows=ROWS, prompt=None):
    """As `their_logits`."""
    return [logits[: len(row)] for logits, row in zip(traced(model, rows, prompt)["logits"], rows, strict=True)]


def padded(rows):
    return pad_rows(rows, 0)

"""The order in which a run makes its tensors: the first that differs is where it went wrong."""

import re

BLOCK = ("ln_1", "query", "key", "value", "attention", "attended", "middle", "ln_2", "fc", "gelu")
END = {
    "ln_f": "head",
    "first_logits": "head",
    "logits": "head",
    "teacher_log_probs": "loss",
    "losses": "loss",
    "loss": "loss",
}
AFTER = (("decoded_logits", "decoding"), ("decoded", "decoding"), ("steps.loss", "steps"), ("steps.norm", "steps"),
         ("adam.m", "steps"), ("adam.v", "steps"), ("after", "steps"), ("again", "chance"))  # fmt: skip
IN_BLOCK_BACKWARD = ("mlp.c_proj", "mlp.c_fc", "ln_2", "attn.c_proj", "attn.c_attn", "ln_1")


def place(name):
    """A key to sort names by, in the order of the run: forward, loss, backward, what is repeated; None: no name."""
    try:
        return place_of(name)
    except ValueError:  # no number where one should be, or no weight of a GPT-2
        return None


def place_of(name):
    head, _, rest = name.partition(".")
    if name in ("prompt", "prompt.beta"):
        return 0, 0, name
    if head == "hidden":
        return 1, 2 * int(rest), name
    if head in BLOCK:
        return 1, 2 * int(rest) + 1, f"{BLOCK.index(head):02d}"
    if name in END:
        return 2, list(END).index(name), name
    if head == "grad":
        return 3, *backward_place(rest)
    return 4, next((i for i, (start, _) in enumerate(AFTER) if name.startswith(start)), len(AFTER)), name


def backward_place(rest):
    """The gradients' order: from the end down, each weight where its layer is passed, wte and the prompt last."""
    if rest == "ln_f":
        return 0, rest
    if rest.startswith(("model.ln_f", "model.lm_head")):
        return 1, rest
    if match := re.fullmatch(r"hidden\.(\d+)", rest):
        return 10**6 - 100 * int(match[1]), rest
    if match := re.match(r"model\.h\.(\d+)\.(.*)\.\w+$", rest):
        return 10**6 - 100 * int(match[1]) - 50 + IN_BLOCK_BACKWARD.index(match[2]), rest
    return 10**7 + (rest in ("prompt", "beta")) + 2 * rest.startswith("raw."), rest


def stage(name):
    """Where a tensor is made: front, block, head, loss, backward, decoding, steps, or shown by chance."""
    if name in ("prompt", "prompt.beta", "hidden.0"):
        return "front"
    if name in END:
        return END[name]
    head = name.partition(".")[0]
    if head in BLOCK or head == "hidden":
        return "block"
    return "backward" if head == "grad" else next((s for start, s in AFTER if name.startswith(start)), "chance")

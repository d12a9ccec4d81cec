"""A trace of somebody's model in PyTorch, taken by hooks around their own step: neither of the two is changed.

    with record(model) as trace:
        out = model(input_ids=ids, attention_mask=mask, labels=labels)
        out.loss.backward()
    trace.save("theirs.safetensors")

The model is Hugging Face's GPT-2, bare or inside PEFT (prompt tuning, P-tuning, prefix tuning, cartridge), or any
module built of the same parts, wherever `names` says they are. Names and shapes are those of `trace.py` and
`repeated.py`; what the step does not compute, such as gradients of frozen weights, is left out. Two things are made
of what was heard: attention.{l}, which fused kernels keep to themselves, of queries and keys under GPT-2's own scale
and mask (what the model's attention made of them is attended.{l}), and losses, of the logits and the labels.
"""

from contextlib import contextmanager
from functools import partial

import numpy as np

from minicompress.layers.attention import attention
from minicompress.layers.losses import cross_entropy
from minicompress.verification.repeated import as_again
from minicompress.verification.torch_hooks import Ear, first_tensor
from minicompress.verification.torch_parts import examine, host
from minicompress.verification.trace import IGNORED, spread
from minicompress.verification.trace_file import write_trace


@contextmanager
def record(model, names=None, n_head=None, mask=None, labels=None, prompt=None, which=None):
    """Yields a Trace, filled at the end of the `with`; inside it the user's own step runs `model` once.

    names: where parts are that are not at GPT2[part]; query, key and value in c_attn's place; wpe or head may be None.
    mask, labels (B, T): where the model takes no `attention_mask` (0 is padding) or `labels` (-100 is not scored;
    labels[b][t] is what is expected at token t, not after it). prompt: a tensor of the user's own that stands in
    front, (P, C), (P, 2 L C) or (L, 2, H, P, D). which: the forward to record, from 0, where the step makes several.
    Raises ValueError where a part is missing, and where the model does not run, or runs twice.
    """
    subject = examine(model, names, n_head, prompt)
    trace = Trace(subject, mask, labels)
    with listening(subject, mask, labels, which) as tensors:
        yield trace
    trace.tensors = tensors | trace.tensors


class Trace:
    """{name: array} of what was heard, in `tensors`; and what no hook can hear."""

    def __init__(self, subject, mask=None, labels=None):
        self.subject, self.told, self.tensors = subject, (mask, labels), {}

    def loss(self, loss):
        """The number that the backward started from, where it is not the model's own output."""
        self.tensors["loss"] = host(loss)

    @contextmanager
    def again(self):
        """For a `with` of its own, after that of `record`: a second forward of the same, kept as again.*."""
        with listening(self.subject, *self.told) as second:
            yield
        self.tensors |= as_again(second)

    def decoded(self, ids, logits=None):
        """ids (B, n), each row's continuation alone; logits (B, n, V), or n of (B, V) as `generate` returns them."""
        self.tensors["decoded"] = host(ids).astype(np.int64)
        if logits is not None:
            each = isinstance(logits, tuple | list)
            self.tensors["decoded_logits"] = np.stack([host(x) for x in logits], axis=1) if each else host(logits)

    def stepped(self, optimizer, losses, norms=None):
        """After n steps: what was trained, Adam's moments; losses, norms (n,): what stood before each step.

        Raises ValueError where the optimiser moves nothing of the model's.
        """
        moves = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        trained = {name: w for name, w in self.subject.weights.items() if moves.issuperset(map(id, w.params))}
        if not trained:
            raise ValueError("the optimiser moves no weight or prompt of the recorded model; give the one that does")
        kinds = {"after": lambda p: p}
        if any("exp_avg" in state for state in optimizer.state.values()):  # it is an Adam
            moment = lambda key, p: optimizer.state.get(p, {}).get(key, 0 * p)  # none yet, if no gradient came
            kinds |= {"adam.m": partial(moment, "exp_avg"), "adam.v": partial(moment, "exp_avg_sq")}
        for kind, of in kinds.items():
            self.tensors |= {f"{kind}.{name}": weight.array(of) for name, weight in trained.items()}
        self.tensors["steps.loss"] = np.array([host(loss) for loss in losses])
        if norms is not None:
            self.tensors["steps.norm"] = np.array([host(norm) for norm in norms])

    def save(self, path, facts=None):
        """As `trace_file.write_trace` does. Raises OSError."""
        write_trace(path, self.tensors, facts)


@contextmanager
def listening(subject, mask=None, labels=None, which=None):
    """Hooks for the time of the `with` -> a dict, filled at its end. They are gone afterwards, whatever happens."""
    ear, tensors = Ear(subject, which), {}
    try:
        ear.attach()
        yield tensors
    finally:
        for handle in ear.handles:
            handle.remove()
    if "hidden.0" not in ear.values:
        raise ValueError("nothing was recorded: inside `record`, call the very module that was given to it")
    tensors |= {name: np.asarray(x, order="C") for name, x in arranged(subject, ear, mask, labels).items()}


# What was heard, as a trace lays it out.


def arranged(subject, ear, mask, labels):
    """-> {name: array}: the slots' rows taken off, each row's tokens moved to its left, 0 behind them."""
    values = dict(ear.values)
    prompt, loss = values.pop("prompt", None), values.pop("loss", None)
    (B, R, _), n = values["hidden.0"].shape, slots_read(subject, ear, prompt)
    told = lambda own, name: ear.given.get(name) if own is None else own
    mask, labels = told(mask, "attention_mask"), told(labels, "labels")
    real = np.ones((B, R - n), bool) if mask is None else columns(mask, B, R - n, "mask") != 0
    order = np.argsort(~real, axis=1, kind="stable")[:, : real.sum(1).max()]
    real = np.take_along_axis(real, order, axis=1)  # (B, T)
    move = lambda x: np.where(real[..., None], np.take_along_axis(x[:, n:], order[..., None], axis=1), 0)
    tensors = {name: move(x) for name, x in values.items() if x.shape[1] == R}  # a head may read fewer rows
    tensors |= {f"grad.{name}": move(x) for name, x in ear.grads.items() if name in tensors}
    for layer in [layer for layer in range(len(subject.blocks)) if f"query.{layer}" in tensors]:
        slots = [values[f"{name}.{layer}"][:, :n] for name in ("key", "value")]
        tensors |= heads_apart(tensors, layer, ear.past.get(layer, ()), slots, real, subject.n_head)
    if n and "logits" in tensors:
        tensors["first_logits"] = values["logits"][:, n - 1]
    if labels is not None and "logits" in tensors:
        placed = np.take_along_axis(columns(labels, B, R - n, "labels"), order, axis=1)
        tensors["losses"] = losses_of(tensors, np.where(real, placed, IGNORED))
    tensors |= {} if loss is None else {"loss": loss}
    return tensors | trained(subject, ear.grads, prompt)


def slots_read(subject, ear, prompt):
    """How many of the rows that went through the blocks are slots in front of the tokens."""
    _, R, C = ear.values["hidden.0"].shape
    n = R - first_tensor(ear.given.values()).shape[1]
    if not n and subject.prompt is not None and prompt.shape[2:] == (C,):  # among the user's own inputs_embeds
        n = prompt.shape[1]
    return n


def columns(x, B, T, name):
    """What x (B, T), or (B, P + T), says of the tokens. Raises ValueError where it says anything else."""
    x = host(x)
    if x.ndim != 2 or len(x) != B or x.shape[1] < T:
        raise ValueError(f"the {name} has shape {list(x.shape)}; the model read {B} rows of {T}; say record({name}=)")
    return x[:, -T:]


def heads_apart(tensors, layer, past, slots, real, H):
    """A layer's queries, keys, values and probabilities, head by head; what stands before the tokens stands first."""
    if (C := slots[0].shape[2]) % H:
        raise ValueError(f"{H} heads do not divide the model's width, {C}; say record(model, n_head=...)")
    apart = lambda x: x.reshape(*x.shape[:2], H, C // H).swapaxes(1, 2)
    q, *own = (apart(tensors[f"{name}.{layer}"]) for name in ("query", "key", "value"))
    before = [np.concatenate([*past[i : i + 1], apart(read)], axis=2) for i, read in enumerate(slots)]
    probs = attention(q, *own, before)[1][-1] * real[:, None, :, None]
    named = {"query": q, "attention": probs}
    named |= {name: np.concatenate([before[i], own[i]], axis=2) for i, name in enumerate(("key", "value"))}
    return {f"{name}.{layer}": x for name, x in named.items()}


def losses_of(tensors, labels):
    """Cross-entropy at each scored token (B, T), 0 elsewhere: by what the token before it expects, or the last slot."""
    first = tensors.get("first_logits")
    scored = labels != IGNORED
    scored[:, 0] &= first is not None
    before = tensors["logits"][:, :1] if first is None else first[:, None]
    expected = np.concatenate([before, tensors["logits"][:, :-1]], axis=1)
    return spread(cross_entropy(expected[scored], labels[scored])[0], scored)


def trained(subject, grads, prompt):
    """The prompt, and the gradients of it, of its encoder and of the weights, where there were any."""
    named = {} if prompt is None else {"prompt": prompt[0]}
    for name, weight in subject.weights.items():
        if all(id(p) in grads for p in weight.params):
            named[f"grad.{name}"] = weight.lay([grads[id(p)] for p in weight.params])
    return named | ({"grad.prompt": grads["prompt"].sum(0)} if "prompt" in grads else {})

"""Every carrier against PyTorch: traces with all gradients, encoders through the whole model, greedy text, files both ways."""

import json
from functools import partial

import numpy as np
import pytest
from peer_models import (
    SHAPES,
    TOLERANCES,
    assert_equal,
    mean_loss,
    peer,
    to_numpy,
    tokens,
    torch,
    transformers,
    tree_of,
)
from safetensors import safe_open
from test_peers_generation import theirs as greedy
from test_peers_parameterisations import encoder_tree, redrawn
from test_peers_trace import CONTEXT, LABELS, ROWS, losses_of

import weights_loader
from minicompress import cli
from minicompress.compression.objectives import likelihood
from minicompress.gpt2 import embed, forward, logits
from minicompress.gpt2.generate import generate
from minicompress.prompts.carriers import DOORS, through
from minicompress.prompts.gradient import slots_gradient
from minicompress.prompts.layout import kv_from_flat
from minicompress.prompts.parameterisations import prefix_mlp, ptuning_lstm, ptuning_mlp
from minicompress.prompts.soft_prompt import SoftPrompt, concatenate
from minicompress.training.shards import Shards
from minicompress.trees import flatten
from minicompress.verification.oracles import relative_error
from minicompress.verification.trace import trace
from reading import KINDS, random_prompt, with_slots
from tracing import laid_flat
from verifying import contract

peft = pytest.importorskip("peft", reason="the peers are not installed")
pytestmark = pytest.mark.peers
each_shape = pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.n_layer}x{c.n_embd}")
each_loss = pytest.mark.parametrize("loss", ["ce", "kl"])
each_kind = pytest.mark.parametrize("kind", KINDS)
P = 4


class Peer:
    """GPT2LMHeadModel behind a prompt of ours, each kind by Transformers' own means.

    Embeddings: inputs_embeds. Hidden states: hooks that put them before every block, over whatever stands
    there. Keys and values: a cache. Masses: a mask of its own for every layer. Positions: position_ids.
    """

    def __init__(self, model, prompt):
        self.model, self.prompt = model, prompt
        self.slots = torch.tensor(prompt.slots, requires_grad=True)
        self.beta = None if prompt.beta is None else torch.tensor(prompt.beta, requires_grad=True)
        self.start = {"compact": P, "unshifted": 0, "logical": prompt.offset}[prompt.positions]
        self.read = P if prompt.carrier in ("embeddings", "hidden") and not prompt.in_rows else 0  # slots read with a row

    def __call__(self, ids):
        """One row -> logits (T or P + T, V), residual stream and attention of its tokens."""
        gpt, T, last, read = self.model.transformer, len(ids), [], self.read
        hooks = [gpt.ln_f.register_forward_pre_hook(lambda _, args: last.append(args[0]))]
        hooks += [block.register_forward_pre_hook(partial(self.before_block, n, T)) for n, block in enumerate(gpt.h)]
        soft = {"embeddings": self.slots, "hidden": self.slots[0]}.get(self.prompt.carrier)
        if self.prompt.in_rows:
            x, positions = torch.stack([self.slots[-1 - i] if i < 0 else gpt.wte.weight[i] for i in ids]), torch.arange(T)
        else:
            x, positions = gpt.wte(torch.tensor(ids)), self.start + torch.arange(T)
        if read:
            x, positions = torch.cat([soft, x]), torch.cat([torch.arange(P), positions])
        cache = {}
        if self.prompt.carrier == "kv":
            cache["past_key_values"] = transformers.DynamicCache([(k[None], v[None]) for k, v in self.slots])
        out = self.model(inputs_embeds=x[None], position_ids=positions[None], output_hidden_states=True,
                         output_attentions=True, **cache)  # fmt: skip
        for hook in hooks:
            hook.remove()
        stream = [*out.hidden_states[:-1], *last]  # their last hidden states are after ln_f
        tensors = {"logits": out.logits[0, read:]} | {f"hidden.{i}": x[0, read:] for i, x in enumerate(stream)}
        tensors |= {f"attention.{i}": a[0, :, read:] for i, a in enumerate(out.attentions)}
        if self.prompt.carrier == "embeddings" and read:
            tensors["first_logits"] = out.logits[0, P - 1]
        return out.logits[0], tensors

    def before_block(self, n, T, _, args):
        x, cache, mask, *rest = args
        if self.prompt.carrier == "hidden":
            x = torch.cat([self.slots[n][None], x[:, P:]], dim=1)
        if self.beta is not None:
            mask = torch.where(torch.arange(P + T) <= P + torch.arange(T)[:, None], 0.0, -torch.inf)
            mask = mask + torch.cat([self.beta[n], torch.zeros(len(self.beta[n]), T)], dim=1)[:, None]  # (H, T, P + T)
            mask = mask[None]
        return x, cache, mask, *rest

    def gradients(self):
        grad = to_numpy(self.slots.grad)
        found = {"grad.prompt": laid_flat(grad) if self.prompt.carrier == "kv" else grad}
        return found | ({} if self.beta is None else {"grad.beta": to_numpy(self.beta.grad)})


def their_trace(model, read, predicts, rows, labels, guide):
    """What PyTorch computes, row by row, as in a trace; `predicts`: how many rows of logits stand before a token's."""
    tensors, losses = {}, []
    for row, (ids, wanted) in enumerate(zip(rows, labels, strict=True)):
        out, found = read(ids)
        tensors |= {f"{name}, row {row}": to_numpy(x) for name, x in found.items()}
        expected = None
        if guide:  # the teacher reads no slots: its logits are laid where the row's tokens stand
            with torch.no_grad():
                hard = guide(torch.as_tensor([CONTEXT + [i for i in ids if i >= 0]])).logits[0]
            place = [sum(i >= 0 for i in ids[:t]) + len(CONTEXT) - 1 for t in range(len(ids))]
            expected = torch.cat([torch.zeros(len(CONTEXT) - 1, hard.shape[1], dtype=hard.dtype), hard[place]])
        losses.append(losses_of(out, predicts, wanted, expected))
    loss = torch.cat(losses).mean()
    loss.backward()
    tensors["loss"] = to_numpy(loss)
    return tensors | {f"grad.model.{n}": g for n, g in flatten(tree_of(model, grad_or_zeros)).items()}


def grad_or_zeros(weight):
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def cut(traced, rows, before):
    """Our tensors, with the padding of each row cut off; `before`: the keys that stand before a row."""
    tensors = {}
    for name, x in traced.items():
        for row, n in enumerate(map(len, rows)):
            if name.startswith(("logits", "hidden")):
                tensors[f"{name}, row {row}"] = x[row, :n]
            elif name.startswith("attention"):
                tensors[f"{name}, row {row}"] = x[row, :, :n, : before + n]
            elif name == "first_logits":
                tensors[f"{name}, row {row}"] = x[row]
    return tensors | {name: x for name, x in traced.items() if name.startswith(("loss", "grad"))}


@each_kind
@each_loss
@each_shape
def test_every_tensor_of_every_carrier(config, loss, kind):
    """Residual stream, attention, logits, loss, the gradients of slots, masses and every weight."""
    rng, model = np.random.default_rng(0), peer(config, 0)
    prompt, guide = random_prompt(kind, config, P, rng), peer(config, 1) if loss == "kl" else None
    rows, labels = ROWS, LABELS
    if prompt.in_rows:
        rows, labels = (with_slots(x, P, np.random.default_rng(1), fill) for x, fill in ((ROWS, None), (LABELS, -100)))
    read = Peer(model, prompt)
    predicts = P if prompt.carrier == "embeddings" and read.read else 0
    reading = lambda ids: (lambda out, found: (out if predicts else out[read.read :], found))(*read(ids))
    theirs = their_trace(model, reading, predicts, rows, labels, guide) | read.gradients()
    teacher = (tree_of(guide), config) if guide else None
    ours = trace((tree_of(model), config), rows, prompt, labels, teacher, CONTEXT if guide else None, "all")
    assert_equal(cut(contract(ours), rows, 0 if prompt.in_rows else P), theirs, 1e-10)


def with_peft(model, kind, **facts):
    """The model inside PEFT, in evaluation mode, every weight with a gradient again; and the encoder."""
    facts = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=P, **facts)
    tuned = peft.get_peft_model(model, facts).to(model.dtype).eval().requires_grad_(True)
    return tuned, tuned.prompt_encoder["default"]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@each_loss
@each_shape
def test_every_tensor_behind_prefix_tuning(config, loss, dtype):
    """PEFT's own prefix: T rows of logits, keys and values flat, and so their gradient."""
    model = peer(config, 0, dtype)
    params, guide = tree_of(model), peer(config, 1, dtype) if loss == "kl" else None
    tuned, encoder = with_peft(model, "PrefixTuningConfig")
    flat = redraw(encoder.embedding.weight)

    def read(ids):
        last = []
        hook = model.transformer.ln_f.register_forward_pre_hook(lambda _, args: last.append(args[0]))
        out = tuned(torch.as_tensor([ids]), output_hidden_states=True, output_attentions=True)
        hook.remove()
        found = {"logits": out.logits[0]} | {f"hidden.{i}": x[0] for i, x in enumerate([*out.hidden_states[:-1], *last])}
        return out.logits[0], found | {f"attention.{i}": a[0] for i, a in enumerate(out.attentions)}

    theirs = their_trace(model, read, 0, ROWS, LABELS, guide) | {"grad.prompt": to_numpy(flat.grad)}
    prompt = SoftPrompt(kv_from_flat(to_numpy(flat), config.n_layer, config.n_head), "kv")
    teacher = (tree_of(guide), config) if guide else None
    ours = trace((params, config), ROWS, prompt, LABELS, teacher, CONTEXT if guide else None, "all")
    assert all(x.dtype == ours["logits"].dtype for x in ours.values())
    assert_equal(cut(contract(ours), ROWS, P), theirs, TOLERANCES[dtype])


def redraw(weight):
    with torch.no_grad():
        weight.normal_()
    return weight


# Encoders through the whole model.

ENCODERS = {
    "P-tuning, MLP": ("PromptEncoderConfig", {"encoder_hidden_size": 7}, None, "embeddings"),
    "P-tuning, LSTM": ("PromptEncoderConfig", {"encoder_hidden_size": 5, "encoder_num_layers": 2,
                                               "encoder_reparameterization_type": "LSTM"}, 2, "embeddings"),
    "prefix, projected": ("PrefixTuningConfig", {"encoder_hidden_size": 7, "prefix_projection": True}, None, "kv"),
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ENCODERS)
@each_shape
def test_encoders_through_the_whole_model(config, name, seed):
    """Loss, and the gradient of every array of the encoder, from the head through all layers and the encoder."""
    kind, facts, layers, carrier = ENCODERS[name]
    model, ids = peer(config, seed), tokens(config, seed, 3, 6)
    params = tree_of(model)
    tuned, encoder = with_peft(model, kind, **facts)
    redrawn(encoder, seed)
    out = tuned(torch.as_tensor(ids)).logits
    first = carrier == "embeddings"
    loss = mean_loss(out[:, P - 1 : -1] if first else out[:, :-1], ids if first else ids[:, 1:])
    loss.backward()
    bake, bake_backward = {"P-tuning, MLP": (ptuning_mlp.bake, ptuning_mlp.bake_backward),
                           "P-tuning, LSTM": (ptuning_lstm.bake, ptuning_lstm.bake_backward),
                           "prefix, projected": (partial(prefix_mlp.bake, n_layer=config.n_layer, n_head=config.n_head),
                                                 prefix_mlp.bake_backward)}[name]  # fmt: skip
    scored = np.ones_like(ids, bool)
    scored[:, 0] = first
    make = lambda rows, weight: likelihood(ids[rows][scored[rows]], weight)
    door, raw = through(bake, bake_backward, DOORS[carrier]), encoder_tree(encoder, layers)
    with Shards(2) as shards:
        mean, draw = slots_gradient((params, config), raw, ids, scored, make, shards, door)
    theirs = {"loss": to_numpy(loss), "raw": encoder_tree(encoder, layers, lambda weight: weight.grad)}
    assert_equal({"loss": mean, "raw": draw}, theirs, 1e-10)


# Greedy text.


@pytest.mark.parametrize("seed", [0, 1, 2])
@each_shape
def test_greedy_behind_prefix_tuning(config, seed):
    """Theirs without a cache reads everything anew behind the prefix for each token."""
    model = peer(config, seed)
    params, rows = tree_of(model), [[3, 1, 4, 1], [9], [2, 6]]
    tuned, encoder = with_peft(model, "PrefixTuningConfig")
    flat = to_numpy(redraw(encoder.embedding.weight))
    prefix = SoftPrompt(kv_from_flat(flat, config.n_layer, config.n_head), "kv").prefix(params, config)
    written = []
    for row in rows:
        ids = list(row)
        for _ in range(8):
            with torch.no_grad():
                ids.append(int(tuned(torch.as_tensor([ids])).logits[0, -1].argmax()))
        written.append(ids[len(row) :])
    assert generate(params, config, rows, 8, prefix) == written


@each_kind
@pytest.mark.parametrize("config", SHAPES[:2], ids=lambda c: f"{c.n_layer}x{c.n_embd}")
def test_greedy_behind_every_carrier(config, kind):
    model, rng = peer(config, 3), np.random.default_rng(0)
    prompt, rows = random_prompt(kind, config, P, rng), [[3, 1, 4], [9]]
    rows = with_slots(rows, P, rng) if prompt.in_rows else rows
    read, written = Peer(model, prompt), []
    for row in rows:
        ids = list(row)
        for _ in range(4):
            with torch.no_grad():
                ids.append(int(read(ids)[0][-1].argmax()))
        written.append(ids[len(row) :])
    params = tree_of(model)
    assert generate(params, config, rows, 4, prompt.prefix(params, config)) == written


# Files, both ways, by the commands themselves.


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved_model(config, seed):
    """A peer, and its weights as the folder `model`."""
    model = peer(config, seed)
    weights_loader.save("model", tree_of(model), vars(config))
    return model


def our_logits(model, config, prompt, ids):
    params = tree_of(model)
    prefix = prompt.prefix(params, config)
    return logits(params, forward(params, config, embed(params, ids, prefix.start), prefix.past, keep="nothing")[0])


KINDS_OF_PEFT = {
    "PROMPT_TUNING": ("PromptTuningConfig", {}),
    "P_TUNING": ("PromptEncoderConfig", {"encoder_hidden_size": 7}),
    "PREFIX_TUNING": ("PrefixTuningConfig", {}),
    "PREFIX_TUNING, projected": ("PrefixTuningConfig", {"prefix_projection": True, "encoder_hidden_size": 7}),
    "CARTRIDGE": ("CartridgeConfig", {"num_frozen_tokens": 1}),
}
each_peft = pytest.mark.parametrize("name", [n for n, (kind, _) in KINDS_OF_PEFT.items() if hasattr(peft, kind)])


@each_peft
@each_shape
def test_a_folder_of_peft_is_imported_and_exported_again(config, name, here):
    """The imported prompt computes what PEFT does, and goes back as the very files, which PEFT loads."""
    kind, facts = KINDS_OF_PEFT[name]
    model, ids = saved_model(config, 0), tokens(config, 1, 3, 5)
    tuned, encoder = with_peft(model, kind, **facts)
    if name != "CARTRIDGE":
        redrawn(encoder, 2)
    tuned.save_pretrained("theirs")
    with torch.no_grad():
        expected = to_numpy(tuned(torch.as_tensor(ids)).logits[:, -5:])
    cli.import_(here / "theirs", here / "p", here / "model", as_json=True)
    prompt = SoftPrompt.load("p")
    assert relative_error(our_logits(tuned.get_base_model(), config, prompt, ids), expected) <= 1e-10
    cli.export(here / "p", here / "ours", "peft", model=here / "model", as_json=True)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (here / "ours" / file).read_bytes() == (here / "theirs" / file).read_bytes()
    again = peft.PeftModel.from_pretrained(peer(config, 0), here / "ours")
    again.prompt_encoder.double()
    rounded = SoftPrompt(prompt.slots.astype(np.float32).astype(float), prompt.carrier)  # PEFT loads in single precision
    with torch.no_grad():
        found = to_numpy(again(torch.as_tensor(ids)).logits[:, -5:])
    assert relative_error(found, our_logits(peer(config, 0), config, rounded, ids)) <= 1e-10


@pytest.mark.parametrize("kind, recipe, peft_type", [
    ("embeddings", {}, "PROMPT_TUNING"), ("embeddings", {"method": "p-tuning"}, "P_TUNING"), ("kv", {}, "PREFIX_TUNING"),
    ("kv", {"parameterisation": "cartridge", "frozen": 1}, "CARTRIDGE"),
])  # fmt: skip
@each_shape
def test_what_is_exported_computes_the_same_in_peft(config, kind, recipe, peft_type, here):
    model, ids = saved_model(config, 0), tokens(config, 1, 3, 5)
    prompt = random_prompt(kind, config, P, np.random.default_rng(0), np.float32)
    prompt.provenance.update(model=weights_loader.model_hash(here / "model"), recipe=recipe)
    prompt.save("p")
    cli.export(here / "p", here / "ours", "peft", model=here / "model", as_json=True)
    assert json.loads((here / "ours" / "adapter_config.json").read_text())["peft_type"] == peft_type
    wide = SoftPrompt(prompt.slots.astype(float), prompt.carrier)
    expected = our_logits(model, config, wide, ids)
    if peft_type == "CARTRIDGE" and not hasattr(peft, "CartridgeConfig"):
        pytest.skip("this PEFT knows no cartridges")
    tuned = peft.PeftModel.from_pretrained(model, here / "ours")
    tuned.prompt_encoder.double()
    with torch.no_grad():
        assert relative_error(to_numpy(tuned(torch.as_tensor(ids)).logits[:, -5:]), expected) <= 1e-10
    if kind == "kv":
        return
    rows, prefix = [[3, 1], [9]], wide.prefix(tree_of(model), config)
    assert generate(tree_of(model), config, rows, 4, prefix) == greedy(tuned, rows, use_cache=False, max_new_tokens=4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "masses" not in kind and kind != "in rows"])
@each_shape
def test_exported_arrays_are_what_transformers_takes(config, kind, here):
    """inputs_embeds, or a cache; and the position of the first token as the metadata say it."""
    model, ids = saved_model(config, 0), tokens(config, 1, 3, 5)
    prompt = random_prompt(kind, config, P, np.random.default_rng(0))
    prompt.provenance.update(model=weights_loader.model_hash(here / "model"))
    prompt.save("p")
    cli.export(here / "p", here / "a", "arrays", "F64", here / "model", as_json=True)
    with safe_open("a", framework="pt") as file:
        arrays, start = {name: file.get_tensor(name) for name in file.keys()}, int(file.metadata()["position_start"])  # noqa: SIM118
    positions = start + torch.arange(5)
    with torch.no_grad():
        if "inputs_embeds" in arrays:
            x = torch.cat([arrays["inputs_embeds"].expand(3, -1, -1), model.transformer.wte(torch.as_tensor(ids))], dim=1)
            out = model(inputs_embeds=x, position_ids=torch.cat([torch.arange(P), positions])[None]).logits[:, P:]
        else:
            past = [[arrays[f"past_key_values.{n}.{part}"].expand(3, -1, -1, -1) for part in ("key", "value")]
                    for n in range(config.n_layer)]  # fmt: skip
            cache = transformers.DynamicCache([tuple(layer) for layer in past])
            out = model(torch.as_tensor(ids), past_key_values=cache, position_ids=positions[None]).logits
    assert relative_error(to_numpy(out), our_logits(model, config, prompt, ids)) <= 1e-10


@each_shape
def test_two_prefixes_in_a_row_are_one_of_peft(config):
    model, ids = peer(config, 0), tokens(config, 1, 3, 5)
    params = tree_of(model)
    tuned, encoder = with_peft(model, "PrefixTuningConfig")
    flat = to_numpy(redraw(encoder.embedding.weight))
    parts = [SoftPrompt(kv_from_flat(x, config.n_layer, config.n_head), "kv") for x in (flat[:1], flat[1:])]
    prefix = concatenate(parts).prefix(params, config)
    hidden, *_ = forward(params, config, embed(params, ids, prefix.start), prefix.past, keep="nothing")
    with torch.no_grad():
        assert relative_error(logits(params, hidden), to_numpy(tuned(torch.as_tensor(ids)).logits)) <= 1e-10

"""Models of other people, recorded by hooks, against our own trace of the same weights: every tensor that both have."""

import math
from functools import partial

import numpy as np
import pytest
from peer_models import SHAPES, peer, to_numpy, torch, transformers, tree_of
from test_peers_carriers import with_peft
from test_peers_parameterisations import encoder_tree, redrawn

from minicompress.gpt2 import Config
from minicompress.prompts.layout import kv_from_flat
from minicompress.prompts.parameterisations import kind_of
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.verification import torch_adapter, torch_hooks, torch_parts
from minicompress.verification.compare import compare
from minicompress.verification.oracles import relative_error
from minicompress.verification.repeated import decoded, stepped
from minicompress.verification.setup import Setup
from minicompress.verification.torch_adapter import record
from minicompress.verification.trace import trace
from minicompress.verification.trace_file import read_trace
from test_planted_bugs import Bug, planted_error

pytestmark = pytest.mark.peers
each_shape = pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.n_layer}x{c.n_embd}")
P = 4  # of `with_peft`
ROWS = [[3, 1, 4, 1, 5, 9], [2], [6, 5, 3]]
LABELS = [[3, -100, 8, 1, -100, 2], [7], [-100, 6, 2]]
KINDS = {
    "none": None,
    "prompt": ("PromptTuningConfig", {}),
    "p-tuning": ("PromptEncoderConfig", {"encoder_hidden_size": 7}),
    "p-tuning, LSTM": ("PromptEncoderConfig", {"encoder_hidden_size": 5, "encoder_num_layers": 2, "encoder_reparameterization_type": "LSTM"}),
    "prefix": ("PrefixTuningConfig", {}),
    "prefix, projected": ("PrefixTuningConfig", {"encoder_hidden_size": 7, "prefix_projection": True}),
    "cartridge": ("CartridgeConfig", {"num_frozen_tokens": 1}),
}  # fmt: skip
each_kind = pytest.mark.parametrize("kind", KINDS)
IN_FRONT = ("prompt", "p-tuning", "p-tuning, LSTM")  # slots that the model reads as embeddings


def padded(rows, fill=0, width=None, left=False):
    """A tensor (B, T) of ragged rows."""
    width = width or max(map(len, rows))
    gaps = [[fill] * (width - len(row)) for row in rows]
    return torch.tensor([gap + row if left else row + gap for row, gap in zip(rows, gaps, strict=True)])


def mask_of(rows, **options):
    return padded([[1] * len(row) for row in rows], **options)


def wrapped(kind, config, dtype=torch.float64, seed=0):
    """The user's model, and our (params, config) and prompt of the same numbers."""
    model = peer(config, seed, dtype)
    params = tree_of(model)
    if KINDS[kind] is None:
        return model, (params, config), None
    name, facts = KINDS[kind]
    tuned, encoder = with_peft(model, name, **facts)
    redrawn(encoder, seed).to(dtype)
    if kind == "cartridge":
        encoder.frozen_embedding.requires_grad_(False)  # as PEFT has it
    flat = to_numpy(tuned.get_prompt_embedding_to_save("default"))
    raw = raw_of(encoder, config)
    if kind in IN_FRONT:
        slots, carrier = flat, "embeddings"
    else:
        slots, carrier = kv_from_flat(flat, config.n_layer, config.n_head), "kv"
    return tuned, (params, config), SoftPrompt(kind_of(raw, config)[0](raw)[0] if raw else slots, carrier, raw=raw)


def raw_of(encoder, config):
    """Our raw arrays of PEFT's encoder; None where it is the slots themselves."""
    named = dict(encoder.named_parameters())
    if set(named) == {"embedding.weight"}:
        return None
    if "trainable_embedding" in named:
        parts = {"frozen": "frozen_embedding", "slots": "trainable_embedding"}
        return {
            ours: kv_from_flat(to_numpy(named[theirs]), config.n_layer, config.n_head) for ours, theirs in parts.items()
        }
    return encoder_tree(encoder, 2 if hasattr(encoder, "lstm_head") else None)


def loss_of(logits, labels, slots):
    """Cross-entropy in the logits' own precision; what a place expects is what stood before it, slots included."""
    labels = torch.cat([torch.full((len(labels), slots), -100), labels], dim=1)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def step(model, kind, rows=ROWS, labels=LABELS, **layout):
    """The user's own step: forward, loss, backward. Right for right padding."""
    logits = model(input_ids=padded(rows, **layout), attention_mask=mask_of(rows, **layout)).logits
    loss = loss_of(logits, padded(labels, -100, **layout), P if kind in IN_FRONT else 0)
    loss.backward()
    return loss


def errors_of(theirs, ours, least=()):
    """{name: error} of all tensors that both have; shapes and types are equal, and `least` are among them."""
    shared = theirs.keys() & ours.keys()
    assert shared >= set(least), set(least) - shared
    for name in shared:
        assert theirs[name].shape == ours[name].shape, (name, theirs[name].shape, ours[name].shape)
        assert theirs[name].dtype == ours[name].dtype, name
    return {name: relative_error(theirs[name], ours[name]) for name in shared}


def worst(theirs, ours):
    """Their largest error; ∞ where a tensor of ours is missing or of another shape."""
    same = lambda name: name in theirs and theirs[name].shape == ours[name].shape
    return max(relative_error(theirs[name], ours[name]) if same(name) else np.inf for name in ours)


def assert_close(theirs, ours, tolerance, least=()):
    errors = errors_of(theirs, ours, least)
    assert max(errors.values()) <= tolerance, {name: e for name, e in errors.items() if not e <= tolerance}


# Every tensor.


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 5e-5)], ids=str)
@each_shape
@each_kind
def test_every_tensor(config, kind, dtype, tolerance):
    """Nothing of our trace is missing in theirs but the frozen part of a cartridge, which has no gradient there."""
    model, ours, prompt = wrapped(kind, config, dtype)
    with record(model, labels=padded(LABELS, -100)) as theirs:
        theirs.loss(step(model, kind))
    expected = trace(ours, ROWS, prompt, LABELS, gradients="all")
    assert set(theirs.tensors) == set(expected) - {"grad.raw.frozen"}
    assert_close(theirs.tensors, expected, tolerance)


@each_kind
def test_their_own_loss(kind):
    """The usual three lines: labels go into the model, and float32 is in its loss, and so in the gradients."""
    model, ours, prompt = wrapped(kind, SHAPES[1])
    with record(model) as theirs:
        out = model(input_ids=padded(ROWS), attention_mask=mask_of(ROWS), labels=padded(LABELS, -100))
        out.loss.backward()
    expected = trace(ours, ROWS, prompt, LABELS, gradients="all")
    theirs.tensors["loss"] = theirs.tensors["loss"].astype(np.float64)
    assert_close(theirs.tensors, expected, 1e-6, set(expected) - {"grad.raw.frozen"})
    exact = {name: x for name, x in theirs.tensors.items() if not name.startswith("grad.") and name != "loss"}
    assert_close(exact, expected, 1e-12, {"losses", "logits"})


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("kind", ["none", "prefix"])
def test_padding_on_either_side_wider_than_any_row(kind, left):
    """Left padding needs positions that follow the mask; then the rows are moved, and are ours."""
    model, ours, prompt = wrapped(kind, SHAPES[0])
    labels = [[-100, *row[1:]] for row in LABELS]  # a first token would be scored by what a left padding expects
    layout = {"width": 9, "left": left}
    mask = mask_of(ROWS, **layout)
    with record(model, labels=padded(labels, -100, **layout)) as theirs:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(padded(ROWS, 5, **layout), attention_mask=mask, position_ids=positions).logits
        theirs.loss(loss := loss_of(logits, padded(labels, -100, **layout), 0))
        loss.backward()
    expected = trace(ours, ROWS, prompt, labels, gradients="all")
    assert_close(theirs.tensors, expected, 1e-12, expected)


def test_left_padding_behind_a_prompt_is_seen():
    """PEFT pads between the slots and the tokens: their positions are wrong, and so is all that follows."""
    model, ours, prompt = wrapped("prompt", SHAPES[0])
    with record(model) as theirs, torch.no_grad():
        model(padded(ROWS, left=True), attention_mask=mask_of(ROWS, left=True))
    errors = errors_of(theirs.tensors, trace(ours, ROWS, prompt))
    assert errors["hidden.0"] > 0.01 and errors["logits"] > 0.01


def test_a_mask_that_the_model_is_not_told_of():
    """Left padding without an attention_mask: the probabilities are as they should be, what was attended is not."""
    model, ours, _ = wrapped("none", SHAPES[0])
    positions = (mask_of(ROWS, left=True).cumsum(1) - 1).clamp(min=0)
    with record(model, mask=mask_of(ROWS, left=True)) as theirs, torch.no_grad():
        model(padded(ROWS, left=True), position_ids=positions)
    errors = errors_of(theirs.tensors, trace(ours, ROWS))
    assert max(errors["hidden.0"], errors["attention.0"]) <= 1e-12 and errors["attended.0"] > 0.01


@pytest.mark.parametrize("kind", ["none", "prompt", "prefix"])
def test_fused_and_eager_attention_give_the_same(kind):
    model, _, _ = wrapped(kind, SHAPES[0])
    found = []
    for attention in ("eager", "sdpa"):
        model.base_model.set_attn_implementation(attention)
        with record(model) as theirs, torch.no_grad():
            model(padded(ROWS), attention_mask=mask_of(ROWS))
        found.append(theirs.tensors)
    assert_close(*found, 1e-13, {"attention.0", "attention.1", "attended.1", "logits"})


@each_kind
def test_in_peft_s_own_training_only_the_prompt_moves(kind):
    """Frozen weights have no gradients, and no numbers are made up for them."""
    model, ours, prompt = wrapped(kind, SHAPES[0])
    if prompt is None:
        return
    model.base_model.requires_grad_(False)
    with record(model) as theirs:
        step(model, kind)
    expected = trace(ours, ROWS, prompt, LABELS, gradients="all")
    assert not any(name.startswith("grad.model") for name in theirs.tensors)
    assert_close(theirs.tensors, expected, 1e-12, {"prompt", "grad.prompt", "grad.hidden.1", "grad.ln_f"})


def test_a_prompt_that_is_only_used():
    """In inference mode PEFT does not run its encoder: the slots are its table."""
    model, ours, prompt = wrapped("prefix", SHAPES[0])
    model.peft_config["default"].inference_mode = True
    with record(model) as theirs, torch.no_grad():
        model(padded(ROWS), attention_mask=mask_of(ROWS))
    assert_close(theirs.tensors, trace(ours, ROWS, prompt), 1e-12, {"prompt", "key.1", "attention.1", "logits"})


# Prompts by hand.


def by_hand(carrier, config=SHAPES[0]):
    """The user's tensor, the call that puts it in front, and our model and prompt."""
    model, ours, rng = peer(config, 0), None, np.random.default_rng(0)
    ours, D = (tree_of(model), config), config.n_embd // config.n_head
    shape = (P, config.n_embd) if carrier == "embeddings" else (config.n_layer, 2, config.n_head, P, D)
    slots = torch.nn.Parameter(torch.tensor(rng.standard_normal(shape)))
    rows = torch.arange(len(ROWS))[:, None] * 0
    mask = torch.cat([1 + rows.expand(-1, P), mask_of(ROWS)], dim=1)

    def call():
        if carrier == "embeddings":
            x = torch.cat([slots.expand(len(ROWS), -1, -1), model.transformer.wte(padded(ROWS))], dim=1)
            return model(inputs_embeds=x, attention_mask=mask).logits
        cache = transformers.DynamicCache(
            [(k.expand(len(ROWS), -1, -1, -1), v.expand(len(ROWS), -1, -1, -1)) for k, v in slots]
        )
        return model(padded(ROWS), attention_mask=mask, past_key_values=cache).logits

    return model, slots, call, ours, SoftPrompt(to_numpy(slots), carrier)


def by_hand_error(carrier):
    """The slots take a step at once: what is recorded is what the model read."""
    model, slots, call, ours, prompt = by_hand(carrier)
    with record(model, labels=padded(LABELS, -100), prompt=slots) as theirs:
        theirs.loss(loss := loss_of(call(), padded(LABELS, -100), P if carrier == "embeddings" else 0))
        loss.backward()
        slots.data.sub_(slots.grad)
    return worst(theirs.tensors, trace(ours, ROWS, prompt, LABELS, gradients="all"))


@pytest.mark.parametrize("carrier", ["embeddings", "kv"])
def test_a_prompt_of_the_user_s_own(carrier):
    assert by_hand_error(carrier) <= 1e-12


# Other modules of the same parts.


class Block(torch.nn.Module):
    """Linear layers with weights (out, in); queries, keys and values in one, or each in its own."""

    def __init__(self, C, H, apart):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(C), torch.nn.LayerNorm(C)
        self.qkv = torch.nn.ModuleList(torch.nn.Linear(C, C) for _ in range(3)) if apart else torch.nn.Linear(C, 3 * C)
        self.out, self.up, self.down, self.H = (
            torch.nn.Linear(C, C),
            torch.nn.Linear(C, 4 * C),
            torch.nn.Linear(4 * C, C),
            H,
        )

    def forward(self, x):
        h = self.norm1(x)
        apart = isinstance(self.qkv, torch.nn.ModuleList)
        q, k, v = [linear(h) for linear in self.qkv] if apart else self.qkv(h).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (self.H, -1)).transpose(1, 2) for y in (q, k, v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Nano(torch.nn.Module):
    """Returns (logits, loss), as nanoGPT does; it knows of no padding, and its table of positions is a bare parameter."""

    def __init__(self, config, apart):
        super().__init__()
        C, V = config.n_embd, config.vocab_size
        self.words, self.places = torch.nn.Embedding(V, C), torch.nn.Parameter(torch.zeros(config.n_positions, C))
        self.layers = torch.nn.ModuleList(Block(C, config.n_head, apart) for _ in range(config.n_layer))
        self.norm, self.head = torch.nn.LayerNorm(C), torch.nn.Linear(C, V, bias=False)

    def forward(self, idx, targets=None):
        x = self.words(idx) + self.places[: idx.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x))
        loss = (
            None
            if targets is None
            else torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        )
        return logits, loss


NANO = {"blocks": "layers", "wte": "words", "wpe": "places", "ln_f": "norm", "head": "head", "ln_1": "norm1",
        "c_attn": "qkv", "attn_proj": "out", "ln_2": "norm2", "fc": "up", "mlp_proj": "down"}  # fmt: skip
APART = {"query": "qkv.0", "key": "qkv.1", "value": "qkv.2"}
UNTIED = Config(vocab_size=23, n_positions=24, n_embd=20, n_layer=2, n_head=2, tie_word_embeddings=False)


def nano(apart):
    """The module with random weights, and ours with the same."""
    torch.manual_seed(0)
    model = Nano(UNTIED, apart).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    pair = lambda m, turn=False: (
        {"weight": to_numpy(m.weight.T if turn else m.weight)} | ({} if m.bias is None else {"bias": to_numpy(m.bias)})
    )

    def block(b):
        qkv = [pair(m, True) for m in (b.qkv if apart else [b.qkv])]
        c_attn = {name: np.concatenate([part[name] for part in qkv], axis=-1) for name in ("weight", "bias")}
        return {"ln_1": pair(b.norm1), "attn": {"c_attn": c_attn, "c_proj": pair(b.out, True)}, "ln_2": pair(b.norm2),
                "mlp": {"c_fc": pair(b.up, True), "c_proj": pair(b.down, True)}}  # fmt: skip

    params = {"wte": {"weight": to_numpy(model.words.weight)}, "wpe": {"weight": to_numpy(model.places)},
              "h": {str(n): block(b) for n, b in enumerate(model.layers)}, "ln_f": pair(model.norm),
              "lm_head": pair(model.head)}  # fmt: skip
    return model, (params, UNTIED)


@pytest.mark.parametrize("apart", [False, True])
def test_another_module_by_names(apart):
    model, ours = nano(apart)
    ids, targets = padded(ROWS), padded([[*row[1:], -1] for row in ROWS], -1)
    with record(
        model, names=NANO | (APART if apart else {}), n_head=2, mask=mask_of(ROWS), labels=padded(ROWS, -100)
    ) as theirs:
        _, loss = model(ids, targets)
        loss.backward()
    expected = trace(ours, ROWS, gradients="all")
    assert_close(theirs.tensors, expected, 1e-12, expected)
    assert set(theirs.tensors) == set(expected)


# What hooks cannot see.


def test_chance_shows_in_a_second_forward():
    config = transformers.GPT2Config(
        vocab_size=17, n_positions=32, n_embd=12, n_layer=2, n_head=3, bos_token_id=None, eos_token_id=None
    )
    model = transformers.GPT2LMHeadModel(config)
    for mode, differs in ((model.eval, False), (model.train, True)):
        mode()
        with record(model) as trace_of:
            first = model(padded(ROWS), labels=padded(ROWS, -100)).logits
        with trace_of.again():
            second = model(padded(ROWS), labels=padded(ROWS, -100)).logits
        assert np.array_equal(trace_of.tensors["logits"], to_numpy(first))
        assert np.array_equal(trace_of.tensors["again.logits"], to_numpy(second))
        for name in ("logits", "hidden.0", "losses", "loss"):
            assert np.array_equal(trace_of.tensors[name], trace_of.tensors[f"again.{name}"]) != differs


@pytest.mark.parametrize("kind", ["none", "prompt", "p-tuning, LSTM", "prefix", "cartridge"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_steps(kind, clip):
    """The user's own training loop, the forward of the first step recorded, everything reset in between."""
    model, ours, prompt = wrapped(kind, SHAPES[0])
    first = trace(ours, ROWS, prompt, LABELS, gradients="all")
    if prompt is not None:
        model.base_model.requires_grad_(False)
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses, norms = torch.optim.AdamW(moving, lr=1e-2, weight_decay=0), [], []
    with record(model, which=0) as theirs:
        for _ in range(3):
            losses.append(step(model, kind))
            norms.append(torch.nn.utils.clip_grad_norm_(moving, clip or math.inf))
            optimizer.step()
            optimizer.zero_grad()
    theirs.stepped(optimizer, losses, norms)
    expected = stepped(ours, ROWS, prompt, LABELS, steps=3, clip=clip)
    assert expected.keys() <= theirs.tensors.keys()
    # clip_grad_norm_ divides by the norm + 1e-6; Adam divides what is nearly 0 by its own size
    assert_close({name: theirs.tensors[name] for name in expected}, expected, 1e-5 if clip else 1e-9)
    assert_close(theirs.tensors, first, 1e-12, {"logits", "hidden.0", "grad.ln_f"})


def test_steps_by_another_optimiser():
    """What it moved is there; Adam's moments are not."""
    model, _, _ = wrapped("prompt", SHAPES[0])
    slots = model.prompt_encoder["default"].embedding.weight
    optimizer = torch.optim.SGD([slots], lr=0.1)
    with record(model) as theirs:
        loss = step(model, "prompt")
    optimizer.step()
    theirs.stepped(optimizer, [loss])
    tensors = theirs.tensors
    assert np.array_equal(tensors["after.prompt"], to_numpy(slots)) and not any(
        name.startswith("adam") for name in tensors
    )
    assert relative_error(tensors["after.prompt"], tensors["prompt"] - 0.1 * tensors["grad.prompt"]) <= 1e-14


@pytest.mark.parametrize("kind", ["none", "prompt", "prefix"])
def test_decoding(kind):
    """Theirs without a cache: with one, PEFT 0.21 on Transformers 5.24 puts the prompt in anew before every later token."""
    model, ours, prompt = wrapped(kind, SHAPES[0])
    ids = torch.tensor([[3, 1, 4], [1, 5, 9]])
    with record(model) as theirs:
        model(ids)
    out = model.generate(input_ids=ids, attention_mask=0 * ids + 1, max_new_tokens=5, do_sample=False, pad_token_id=0, use_cache=False,
                         output_logits=True, return_dict_in_generate=True)  # fmt: skip
    theirs.decoded(out.sequences[:, 3:], out.logits)
    expected = decoded(ours, ids.tolist(), prompt, 5)
    got = {name: theirs.tensors[name] for name in expected}
    assert np.array_equal(got["decoded"], expected["decoded"])
    assert (
        relative_error(got["decoded_logits"].astype(np.float64), expected["decoded_logits"]) <= 1e-6
    )  # theirs are float32


def test_a_file(tmp_path):
    model, _, _ = wrapped("prompt", SHAPES[0])
    with record(model) as theirs:
        step(model, "prompt")
    theirs.save(tmp_path / "theirs.safetensors", {"rows": ROWS})
    tensors, facts = read_trace(tmp_path / "theirs.safetensors")
    assert facts == {"rows": ROWS} and tensors.keys() == theirs.tensors.keys()
    assert all(np.array_equal(x, theirs.tensors[name]) for name, x in tensors.items())


# Nothing is changed.


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, kind)) for m in model.modules() for kind in kinds) + sum(
        len(p._backward_hooks or ()) for p in model.parameters())  # fmt: skip


@each_kind
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_model_is_changed(kind, fails):
    """Numbers and gradients are bitwise what they are without a recorder, and no hook stays, even when the user fails."""
    (model, *_), (alone, *_) = wrapped(kind, SHAPES[0]), wrapped(kind, SHAPES[0])
    before, loss = {name: to_numpy(p) for name, p in model.named_parameters()}, step(alone, kind)
    try:
        with record(model):
            assert step(model, kind).item() == loss.item()
            if fails:
                raise KeyError("the user's")
    except KeyError:
        assert fails
    assert not hooks_of(model)
    for (name, p), twin in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert to_numpy(p).tobytes() == before[name].tobytes() and p.requires_grad == twin.requires_grad
        assert (p.grad is None and twin.grad is None) or torch.equal(p.grad, twin.grad)


def test_a_backward_after_the_end_is_not_heard():
    model, _, _ = wrapped("none", SHAPES[0])
    with record(model) as theirs:
        loss = loss_of(model(padded(ROWS)).logits, padded(ROWS, -100), 0)
    names = set(theirs.tensors)
    loss.backward()
    assert set(theirs.tensors) == names and not any(name.startswith("grad.") for name in names)


def test_what_is_run_again_to_save_memory_is_heard_once():
    model, ours, _ = wrapped("none", SHAPES[0])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with record(model) as theirs:
        step(model, "none")
    assert_close(theirs.tensors, trace(ours, ROWS, None, LABELS, gradients="all"), 1e-12, {"hidden.0", "grad.hidden.1"})


# Mistakes, in one line.


def the_line(f):
    with pytest.raises(ValueError) as caught:
        f()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 220
    return line


def run_in(model, body=lambda: None, **options):
    with record(model, **options):
        body()


def test_mistakes():
    model, _, _ = wrapped("none", SHAPES[0])
    call = lambda: model(padded(ROWS))
    assert "Linear has no 'transformer.h', where its 'blocks' should be" in the_line(
        lambda: run_in(torch.nn.Linear(2, 2))
    )
    assert "GPT2Block has no 'mlp.up', where its 'fc' should be" in the_line(
        lambda: run_in(model, names={"fc": "mlp.up"})
    )
    assert "names holds layers; the parts are blocks" in the_line(lambda: run_in(model, names={"layers": "h"}))
    assert "record(model, n_head=...)" in the_line(lambda: run_in(nano(False)[0], names=NANO))
    assert "5 heads do not divide the model's width, 12" in the_line(lambda: run_in(model, call, n_head=5))
    assert "nothing was recorded" in the_line(lambda: run_in(model))
    assert "nothing was recorded" in the_line(lambda: run_in(model, lambda: model.transformer(padded(ROWS))))
    assert "runs a second time inside `record`" in the_line(lambda: run_in(model, lambda: (call(), call())))
    assert "the mask has shape [3, 2]; the model read 3 rows of 6" in the_line(
        lambda: run_in(model, call, mask=np.ones((3, 2)))
    )
    assert "the labels has shape [18]" in the_line(lambda: run_in(model, call, labels=np.ones(18)))
    assert not hooks_of(model)
    with record(model) as theirs:
        call()
    other = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=1.0)
    assert "moves no weight" in the_line(lambda: theirs.stepped(other, []))


def two_forwards_error(which=0):
    """The other one's logits and gradients leave no trace."""
    model, ours, _ = wrapped("none", SHAPES[0])
    with record(model, which=which, labels=padded(LABELS[: 3 if which else 2], -100)) as theirs:
        losses = [step(model, "none", ROWS[:n], LABELS[:n]) for n in (2, 3)]
    theirs.loss(losses[which])
    n = 3 if which else 2
    return worst(theirs.tensors, trace(ours, ROWS[:n], None, LABELS[:n], gradients="all"))


@pytest.mark.parametrize("which", [0, 1])
def test_which_of_two_forwards(which):
    assert two_forwards_error(which) <= 1e-12


# Bugs planted in the recorder.


def step_error(kind="none"):
    """A step whose backward is in two parts, and which leaves none of its gradients as it was."""
    model, ours, prompt = wrapped(kind, SHAPES[0])
    with record(model, labels=padded(LABELS, -100)) as theirs:
        logits = model(input_ids=padded(ROWS), attention_mask=mask_of(ROWS)).logits
        loss = loss_of(logits, padded(LABELS, -100), P if kind in IN_FRONT else 0)
        (0.25 * loss).backward(retain_graph=True)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        model.zero_grad()
        (0.75 * loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        theirs.loss(loss)
    expected = trace(ours, ROWS, prompt, LABELS, gradients="all")
    expected.pop("grad.raw.frozen", None)
    return np.inf if theirs.tensors.keys() - expected.keys() else worst(theirs.tensors, expected)


def left_error():
    model, ours, _ = wrapped("none", SHAPES[0])
    mask = mask_of(ROWS, left=True)
    with record(model, labels=padded(LABELS, -100, left=True)) as theirs, torch.no_grad():
        model(padded(ROWS, 5, left=True), attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    expected = trace(ours, ROWS, None, LABELS)
    return worst(
        theirs.tensors,
        {name: x for name, x in expected.items() if name in ("losses", "logits", "key.1", "attention.1", "gelu.0")},
    )


def nano_error(apart):
    model, ours = nano(apart)
    with record(
        model, names=NANO | (APART if apart else {}), n_head=2, mask=mask_of(ROWS), labels=padded(ROWS, -100)
    ) as theirs:
        loss_of(model(padded(ROWS))[0], padded(ROWS, -100), 0).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    expected = trace(ours, ROWS, gradients="all")
    return worst(theirs.tensors, {name: x for name, x in expected.items() if name != "loss"})


CHECKS = {kind: partial(step_error, kind) for kind in KINDS} | {
    "left padding": left_error,
    "two forwards": two_forwards_error,
    "by hand": partial(by_hand_error, "embeddings"),
    "linear layers": partial(nano_error, False),
    "three linear layers": partial(nano_error, True),
}
BUGS = [
    Bug("slots counted as tokens", "prompt", torch_adapter.arranged, "x[:, n:]", "x[:, : x.shape[1] - n]"),
    Bug("padding stays on the left", "left padding", torch_adapter.arranged, "np.argsort(~real, ", "np.argsort(0 * real, "),
    Bug("padding not emptied", "none", torch_adapter.arranged, "move = lambda x: np.where(real[..., None], ", "move = lambda x: np.where(True, "),
    Bug("labels stay on the left", "left padding", torch_adapter.arranged, '"labels"), order', '"labels"), np.sort(order)'),
    Bug("the first slot's word on the first token", "prompt", torch_adapter.arranged, "n - 1]", "0]"),
    Bug("losses a token late", "none", torch_adapter.losses_of, "[before, tensors[\"logits\"][:, :-1]]", "[tensors[\"logits\"]]"),
    Bug("a first token is scored by nothing", "none", torch_adapter.losses_of, "&= first is not None", "&= True"),
    Bug("the past's keys and values confused", "prefix", torch_adapter.heads_apart, "past[i : i + 1]", "past[1 - i :][:1]"),
    Bug("the past behind the tokens", "prefix", torch_adapter.heads_apart, "[before[i], own[i]]", "[own[i], before[i]]"),
    Bug("probabilities without the past", "prefix", torch_adapter.heads_apart, "attention(q, *own, before)", "attention(q, *own)"),
    Bug("heads and channels mixed up", "none", torch_adapter.heads_apart, "H, C // H).swapaxes(1, 2)", "C // H, H).transpose(0, 3, 1, 2)"),
    Bug("a prompt's gradient from one row", "prefix", torch_adapter.trained, '["prompt"].sum(0)', '["prompt"][0]'),
    Bug("the table in the place of the encoder's output", "p-tuning", torch_hooks.Ear, '(s.encoder, "prompt")', '(s.encoder, "unheard")'),
    Bug("gradients of every forward", "two forwards", torch_hooks.Ear, "self.going_back = False\n        if", "if"),
    Bug("the last of several backward passes", "none", torch_hooks.Ear, "self.grads.get(name, 0) + host(grad)", "host(grad)"),
    Bug("keys, values and queries in another order", "none", torch_hooks.Ear, "chunk(3, -1)[n]", "chunk(3, -1)[n - 1]"),
    Bug("arrays that are still theirs", "by hand", torch_parts.host, ".numpy().copy()", ".numpy()"),
    Bug("linear weights (out, in)", "linear layers", torch_parts.weights_of, 'turn and hasattr(module, "out_features")', "False"),
    Bug("Conv1D's weights turned", "none", torch_parts.weights_of, 'turn and hasattr(module, "out_features")', "turn"),
    Bug("three weights one below another", "three linear layers", torch_parts.side_by_side, "axis=-1", "axis=0"),
    Bug("a tied head as one of its own", "none", torch_parts.model_weights, 'part != "head" or ', "True or "),
    Bug("encoder's weights (out, in)", "p-tuning", torch_parts.encoder_weights, "own[0].T", "own[0]"),
    Bug("the LSTM's directions confused", "p-tuning, LSTM", torch_parts.encoder_weights, "{reverse or 'onward'}", "{'onward' if reverse else 'reverse'}"),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-12


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert not planted_error(bug, CHECKS, monkeypatch) <= 1e-6


def ten_lines(model, batch, optimizer, path):
    """A user's own three steps, as they were, inside `record`; then what they have become, in a file for `diff`."""
    losses = []
    with record(model, which=0) as trace:  # the first of the three forwards, and its backward
        for _ in range(3):
            loss = model(**batch).loss  # input_ids, attention_mask, labels
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss)
    trace.stepped(optimizer, losses)  # after.*, adam.m.*, adam.v.*, steps.loss
    trace.save(path)


def test_ten_lines(tmp_path):
    """What the page shows gives a file that is equal, the steps of a wrapped model included."""
    model, ours, prompt = wrapped("prompt", SHAPES[0], torch.float32)
    moving = [p for p in model.parameters() if p.requires_grad and p.shape == tuple(prompt.slots.shape)]
    batch = {"input_ids": padded(ROWS), "attention_mask": mask_of(ROWS), "labels": padded(LABELS, -100)}
    ten_lines(model, batch, torch.optim.AdamW(moving, lr=1e-2, weight_decay=0.0), tmp_path / "theirs")
    setup = Setup(ours, ROWS, prompt, LABELS, gradients="prompt", steps={"steps": 3, "lr": 1e-2})
    found = compare(setup.tensors(), read_trace(tmp_path / "theirs")[0], setup)
    assert found.equal and {"after.prompt", "grad.prompt", "attention.1"} <= {one.name for one in found.lines}

"""Soft prompts against PEFT, and distillation against PyTorch: losses and gradients."""

import numpy as np
import pytest
from peer_models import SHAPES, TOLERANCES, assert_equal, mean_loss, peer, to_numpy, tokens, torch, tree_of

from helpers import prompt_step, teacher_objective, token_objective
from minicompress.gpt2 import backward, embed, forward, head_loss, logits
from minicompress.layers.losses import log_softmax

peft = pytest.importorskip("peft", reason="the peers are not installed")
pytestmark = pytest.mark.peers
each_model = pytest.mark.parametrize("seed", [0, 1])
each_shape = pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.n_layer}x{c.n_embd}")
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
P, B, T = 4, 3, 6


@each_model
@each_shape
@each_dtype
def test_prompt_tuning(config, seed, dtype):
    """P + T logits, and T targets: the last slot predicts the first token."""
    model, ids = peer(config, seed, dtype), tokens(config, seed, B, T)
    params = tree_of(model)
    tuned, slots = with_peft(model, peft.PromptTuningConfig, dtype)
    loss = mean_loss(tuned(torch.as_tensor(ids)).logits[:, P - 1 : -1], ids)
    loss.backward()
    objective = token_objective(ids.reshape(-1), np.full(B * T, 1 / (B * T), to_numpy(slots).dtype))
    losses, dslots = prompt_step(params, config, to_numpy(slots), ids, objective)
    theirs = {"loss": to_numpy(loss), "slots": to_numpy(slots.grad)}
    assert_equal({"loss": losses.mean(), "slots": dslots}, theirs, TOLERANCES[dtype])


@each_model
@each_shape
@each_dtype
def test_prefix_tuning(config, seed, dtype):
    """T logits at positions P .. P + T - 1, and T - 1 targets; the keys and values are used as they are."""
    model, ids = peer(config, seed, dtype), tokens(config, seed, B, T)
    params, L, H = tree_of(model), config.n_layer, config.n_head
    tuned, flat = with_peft(model, peft.PrefixTuningConfig, dtype)
    loss = mean_loss(tuned(torch.as_tensor(ids)).logits[:, :-1], ids[:, 1:])
    loss.backward()
    kv = to_numpy(flat).reshape(P, L, 2, H, -1).transpose(1, 2, 3, 0, 4)  # (L, 2, H, P, D)
    hidden, _, cache = forward(params, config, embed(params, ids[:, :-1], P), [(k[None], v[None]) for k, v in kv])
    n = B * (T - 1)
    objective = token_objective(ids[:, 1:].reshape(-1), np.full(n, 1 / n, kv.dtype))
    losses, dhidden = head_loss(params, hidden.reshape(n, -1), objective)
    _, dpast = backward(dhidden.reshape(hidden.shape), cache)
    dflat = np.array([[part[0] for part in pair] for pair in dpast]).transpose(3, 0, 1, 2, 4).reshape(P, -1)
    theirs = {"loss": to_numpy(loss), "prefix": to_numpy(flat.grad)}
    assert_equal({"loss": losses.mean(), "prefix": dflat}, theirs, TOLERANCES[dtype])


@each_model
@each_shape
@each_dtype
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_kl_to_a_teacher_that_reads_a_context(config, seed, dtype, temperature):
    """T² KL(teacher ‖ student), where the teacher reads five tokens of context and the student four slots."""
    model, ids, context = peer(config, seed, dtype), tokens(config, seed, B, T), tokens(config, seed + 9, 1, 5)
    slots = torch.randn(P, config.n_embd, dtype=dtype, requires_grad=True)
    read = np.c_[np.repeat(context, B, 0), ids]
    with torch.no_grad():
        teacher = model(torch.as_tensor(read)).logits[:, 4:-1]
    embeddings = torch.cat([slots.expand(B, -1, -1), model.transformer.wte(torch.as_tensor(ids))], dim=1)
    student = model(inputs_embeds=embeddings).logits[:, P - 1 : -1]
    log_p, log_q = (torch.log_softmax(x / temperature, -1) for x in (teacher, student))
    loss = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    loss.backward()

    params = tree_of(model)
    hidden, _, _ = forward(params, config, embed(params, read), keep="nothing")
    logp = log_softmax(logits(params, hidden[:, 4:-1]) / temperature).reshape(B * T, -1)
    objective = teacher_objective(logp, np.full(B * T, 1 / (B * T), logp.dtype), temperature)
    losses, dslots = prompt_step(params, config, to_numpy(slots), ids, objective)
    theirs = {"loss": to_numpy(loss), "slots": to_numpy(slots.grad)}
    assert_equal({"loss": losses.mean(), "slots": dslots}, theirs, TOLERANCES[dtype])


def with_peft(model, kind, dtype):
    """The model inside PEFT, and the one tensor that PEFT trains. PEFT makes it in float32."""
    facts = {"task_type": "CAUSAL_LM", "num_virtual_tokens": P}
    tuned = peft.get_peft_model(model, kind(**facts)).to(dtype).eval()
    return tuned, tuned.prompt_encoder["default"].embedding.weight

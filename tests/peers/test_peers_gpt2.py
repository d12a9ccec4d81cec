"""GPT-2 against Hugging Face Transformers: logits, hidden states, loss, and the gradient of every weight."""

import pytest
from peer_models import SHAPES, TOLERANCES, assert_equal, mean_loss, peer, to_numpy, tokens, torch, tree_of

from helpers import token_objective, zeros_like
from minicompress.gpt2 import backward, embed, embed_backward, forward, head_loss, logits

pytestmark = pytest.mark.peers
each_model = pytest.mark.parametrize("seed", [0, 1])
each_shape = pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.n_layer}x{c.n_embd}")
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


@each_model
@each_shape
@each_dtype
def test_logits_and_hidden_states(config, seed, dtype):
    model, ids, watch = peer(config, seed, dtype), tokens(config, seed, 3, 9), []
    params = tree_of(model)
    hidden, _, _ = forward(params, config, embed(params, ids), watch=watch)
    theirs = model(torch.as_tensor(ids), output_hidden_states=True)
    ours = [logits(params, hidden), *watch[:-1], hidden]  # their last hidden states are after ln_f
    theirs = map(to_numpy, (theirs.logits, *theirs.hidden_states))
    assert_equal(numbered(ours), numbered(theirs), TOLERANCES[dtype])


@each_model
@each_shape
@each_dtype
def test_loss_and_every_weight_gradient(config, seed, dtype):
    model, ids = peer(config, seed, dtype), tokens(config, seed, 3, 9)
    loss = mean_loss(model(torch.as_tensor(ids)).logits[:, :-1], ids[:, 1:])
    loss.backward()
    our_loss, grads = step(tree_of(model), config, ids)
    theirs = {"loss": to_numpy(loss), "grads": tree_of(model, lambda weight: weight.grad)}
    assert_equal({"loss": our_loss, "grads": grads}, theirs, TOLERANCES[dtype])


def numbered(arrays):
    return {str(i): array for i, array in enumerate(arrays)}


def step(params, config, ids):
    """Mean cross-entropy of each token after the first, and its gradient."""
    grads = zeros_like(params)
    x = embed(params, ids[:, :-1])
    hidden, _, cache = forward(params, config, x, keep="grads")
    n = ids[:, 1:].size
    objective = token_objective(ids[:, 1:].reshape(-1), x.dtype.type(1 / n) + 0 * x[..., 0].reshape(-1))
    losses, dhidden = head_loss(params, hidden.reshape(n, -1), objective, grads)
    dx, _ = backward(dhidden.reshape(hidden.shape), cache, grads=grads)
    embed_backward(dx, ids[:, :-1], grads)
    return losses.mean(), grads

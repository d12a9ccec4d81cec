"""A whole GPT-2 trained on tokens: the one training step in which every weight gets a gradient."""

import numpy as np

from minicompress.arrays import like, zeros_like
from minicompress.gpt2 import backward, embed, embed_backward, forward, head_loss
from minicompress.layers.losses import cross_entropy, cross_entropy_backward
from minicompress.trees import tree_map


def language_model_step(params, config, tokens, weights, shards, offset=0):
    """tokens (B, T+1), weights (B, T) of their targets -> mean loss in nats, grads (a tree like params).

    `offset` is the position of the first column. The mean is over all weights of the batch, so the
    number of shards does not change it.
    """
    total = weights.sum()

    def shard(rows):
        grads = tree_map(zeros_like, params)
        ids, targets, scale = tokens[rows, :-1], tokens[rows, 1:].reshape(-1), weights[rows].reshape(-1) / total
        x = embed(params, ids, offset)
        hidden, _, cache = forward(params, config, x, keep="grads")
        scored = np.flatnonzero(scale)  # what weighs nothing never meets the vocabulary
        if not len(scored):
            return 0.0, grads
        targets, scale = like(targets[scored], x), like(scale[scored].astype(x.dtype), x)
        scored = like(scored, x)

        def objective(logits, rows):
            losses, cache = cross_entropy(logits, targets[rows])
            return losses * scale[rows], cross_entropy_backward(scale[rows], cache)

        flat = hidden.reshape(-1, config.n_embd)
        losses, dscored = head_loss(params, flat[scored], objective, grads)
        dhidden = zeros_like(flat)
        dhidden[scored] = dscored
        dx, _ = backward(dhidden.reshape(hidden.shape), cache, grads=grads)
        embed_backward(dx, ids, grads, offset)
        return losses.sum(), grads

    losses, grads = zip(*shards.map(shard, len(tokens)), strict=True)
    for other in grads[1:]:
        tree_map(lambda a, b: a.__iadd__(b), grads[0], other)
    return float(sum(losses)), grads[0]

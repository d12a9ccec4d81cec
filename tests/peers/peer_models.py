"""Random models of Hugging Face's, and the same weights as nested dicts."""

from dataclasses import asdict

import numpy as np
import pytest

from minicompress.gpt2 import Config
from minicompress.trees import flatten, unflatten
from minicompress.verification.oracles import relative_error

torch = pytest.importorskip("torch", reason="the peers are not installed")
transformers = pytest.importorskip("transformers", reason="the peers are not installed")

SHAPES = [
    Config(vocab_size=17, n_positions=32, n_embd=12, n_layer=2, n_head=3),
    Config(vocab_size=40, n_positions=20, n_embd=32, n_layer=3, n_head=4, layer_norm_epsilon=1e-3),
    Config(vocab_size=11, n_positions=16, n_embd=8, n_layer=1, n_head=1, n_inner=5),
    Config(vocab_size=23, n_positions=24, n_embd=20, n_layer=2, n_head=2, tie_word_embeddings=False),
]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


def peer(config, seed, dtype=None):
    """A GPT2LMHeadModel with every weight drawn anew, in evaluation mode."""
    torch.manual_seed(seed)
    theirs = transformers.GPT2Config(
        **asdict(config), bos_token_id=None, eos_token_id=None, attn_implementation="eager"
    )
    model = transformers.GPT2LMHeadModel(theirs).to(dtype or torch.float64).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(float("ln_" in name and name.endswith("weight")), 0.3)
    return model


def tree_of(model, what=lambda weight: weight):
    """{wte: {weight: ...}, h: {0: ...}}: of the weights, or of `what` they carry."""
    named = model.named_parameters()  # a tied head is named once, as wte
    return unflatten({name.removeprefix("transformer."): to_numpy(what(weight)) for name, weight in named})


def to_numpy(tensor):
    return tensor.detach().numpy().copy()


def tokens(config, seed, B, T):
    return np.random.default_rng(seed).integers(config.vocab_size, size=(B, T))


def mean_loss(logits, ids):
    """Cross-entropy of logits (B, T, V) as they are: Transformers' own loss casts them to float32."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.as_tensor(ids).flatten())


def assert_equal(ours, theirs, tolerance):
    """Two trees of arrays, each array by its own relative error."""
    ours, theirs = flatten(ours), flatten(theirs)
    assert ours.keys() == theirs.keys()
    errors = {name: relative_error(ours[name], theirs[name]) for name in theirs}
    assert max(errors.values()) <= tolerance, errors

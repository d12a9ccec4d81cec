"""Greedy text and the limits of sampling against Transformers' `generate` and its own rules."""

import numpy as np
import pytest
from peer_models import SHAPES, peer, to_numpy, torch, transformers, tree_of

from generating import distribution
from minicompress.gpt2.generate import generate
from minicompress.gpt2.prefix import read_slots, read_tokens
from minicompress.verification.oracles import relative_error

peft = pytest.importorskip("peft", reason="the peers are not installed")
pytestmark = pytest.mark.peers
each_model = pytest.mark.parametrize("seed", [0, 1, 2])
each_shape = pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.n_layer}x{c.n_embd}")
ROWS, STEPS = [[3, 1, 4, 1], [9], [2, 6]], 8


def theirs(model, read=ROWS, **options):
    """Each row alone and with a mask of ones, for they take token 0 for padding; greedy to the last step."""
    options, written = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0} | options, []
    for row in read:
        ids = torch.as_tensor([row])
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        written.append(out[0, len(row) :].tolist())
    return written


@each_model
@each_shape
def test_greedy(config, seed):
    model = peer(config, seed)
    assert generate(tree_of(model), config, ROWS, STEPS) == theirs(model)


@each_shape
def test_greedy_until_a_last_token(config):
    """Their end of text is our stop: a row ends with that token, whatever the others do."""
    model = peer(config, 0)
    written = generate(tree_of(model), config, ROWS, STEPS)
    last = written[0][1]
    ended = generate(tree_of(model), config, ROWS, STEPS, stop=lambda row, new: new[-1] == last)
    assert ended == theirs(model, eos_token_id=last) != written


@each_shape
def test_greedy_behind_a_text(config):
    """A text read once for all rows, against the text and each row read by them."""
    model, text = peer(config, 1), [7, 0, 5]
    params = tree_of(model)
    rows = generate(params, config, ROWS, STEPS, read_tokens(params, config, text))
    assert rows == theirs(model, [text + row for row in ROWS])


@each_model
@each_shape
def test_greedy_behind_a_soft_prompt(config, seed):
    """Theirs without a cache: with one, PEFT 0.21 on Transformers 5.24 puts the prompt in anew before every later token."""
    model = peer(config, seed)
    params = tree_of(model)
    facts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    tuned = peft.get_peft_model(model, facts).to(torch.float64).eval()
    slots = tuned.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        slots.normal_()
    prefix, _ = read_slots(params, config, to_numpy(slots))
    assert generate(params, config, ROWS, STEPS, prefix) == theirs(tuned, use_cache=False)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 9])
@pytest.mark.parametrize("top_p", [None, 0.2, 0.8])
def test_the_distribution_that_is_drawn_from(temperature, top_k, top_p, rng):
    """The definition that the tests of `sample` use, against the processors of Transformers."""
    logits = rng.standard_normal((20, 9))
    logits[:, 3] = logits[:, 5]  # equals
    scores = transformers.TemperatureLogitsWarper(temperature)(None, torch.as_tensor(logits))
    for limit, rule in ((top_k, transformers.TopKLogitsWarper), (top_p, transformers.TopPLogitsWarper)):
        scores = rule(limit)(None, scores) if limit is not None else scores
    for ours, probs in zip(logits, torch.softmax(scores, -1).numpy(), strict=True):
        assert relative_error(np.sort(distribution(ours, temperature, top_k, top_p)), np.sort(probs)) <= 1e-14

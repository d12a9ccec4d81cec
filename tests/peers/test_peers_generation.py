"""Greedy text and the limits of sampling against Transformers' `generate` and its own rules."""

import numpy as np
import pytest
from peer_models import SHAPES, peer, to_numpy, torch, transformers, tree_of

from generating import distribution
from minicompress.gpt2.generate import generate
from minicompress.gpt2.prefix import read_slots
from minicompress.verification.oracles import relative_error

peft = pytest.importorskip("peft", reason="the peers are not installed")
pytestmark = pytest.mark.peers
each_model = pytest.mark.parametrize("seed", [0, 1, 2])
each_shape = pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.n_layer}x{c.n_embd}")
ROWS, STEPS = [[3, 1, 4, 1], [9], [2, 6]], 8


def theirs(model, **options):
    """Each row alone, so that nothing is padded, greedy to the last step."""
    options = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0} | options
    rows = [model.generate(input_ids=torch.as_tensor([row]), **options)[0].tolist() for row in ROWS]
    return [new[len(row) :] for new, row in zip(rows, ROWS, strict=True)]


@each_model
@each_shape
def test_greedy(config, seed):
    model = peer(config, seed)
    assert generate(tree_of(model), config, ROWS, STEPS) == theirs(model)


@each_model
@each_shape
def test_greedy_behind_a_soft_prompt(config, seed):
    model = peer(config, seed)
    params = tree_of(model)
    facts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    tuned = peft.get_peft_model(model, facts).to(torch.float64).eval()
    slots = tuned.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        slots.normal_()
    prefix, _ = read_slots(params, config, to_numpy(slots))
    assert generate(params, config, ROWS, STEPS, prefix) == theirs(tuned)


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

"""Models of other hands: the sorting GPT with its authors' own activations, and, where there is one, GPT-2."""

import base64
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from minicompress.gpt2 import Config, embed, forward, logits
from minicompress.gpt2.block import self_attention
from minicompress.layers.attention import softmax
from minicompress.layers.layernorm import layernorm
from weights_loader import load, load_tokenizer

TOLERANCE = {  # largest absolute difference allowed: about ten times the one observed, of values up to 8.4
    "tok_emb": 0, "ln1": 5e-6, "q": 3e-6, "k": 4e-6, "v": 2e-6, "attSm": 2e-6, "y": 2e-6, "yProj": 3e-7,
    "block0": 8e-6, "block1": 8e-6, "block2": 1.2e-5, "ln_f": 1.4e-5, "lm_head": 2e-5, "probs": 5e-6,
}  # fmt: skip


@pytest.fixture(scope="module")
def sorter(data):
    params, config = load(data / "checkpoints" / "minigpt_nano_sort")
    return params, Config.from_dict(config)


@pytest.fixture(scope="module")
def partials(data):
    """{name: array} as the authors' own code computed them, float32."""
    stored = json.loads((data / "checkpoints/minigpt_nano_sort/gpt-nano-sort-t0-partials.json").read_text())
    return {
        name: np.frombuffer(base64.b64decode(entry["data"]), "<f4").reshape(entry["shape"])
        for name, entry in stored.items()
        if name != "config"
    }


def activations(params, config, ids):
    """{the authors' name: ours} for token ids (B, T)."""
    x, first, stream = embed(params, ids), params["h"]["0"], []
    found = {"tok_emb": params["wte"]["weight"][ids]}
    found["ln1"], _ = layernorm(x, **first["ln_1"], eps=config.layer_norm_epsilon)
    found["yProj"], (found["k"], found["v"]), cache = self_attention(found["ln1"], first["attn"], config.n_head)
    (q,), _, v, _, (found["attSm"],) = cache["attention"]  # one piece
    found["q"] = q * math.sqrt(q.shape[-1])  # ours is scaled already
    found["y"] = (found["attSm"] @ v).swapaxes(1, 2).reshape(x.shape)
    found["ln_f"], _, _ = forward(params, config, x, watch=stream)
    found |= dict(zip(("block0", "block1", "block2"), stream[1:], strict=True))
    found["lm_head"] = logits(params, found["ln_f"])
    return found | {"probs": softmax(found["lm_head"])}


def test_the_sorter_s_activations_are_its_authors(sorter, partials):
    found = activations(*sorter, partials["idx"].astype(int))
    assert found.keys() == TOLERANCE.keys()
    for name, limit in TOLERANCE.items():
        assert np.abs(found[name] - partials[name]).max() <= limit, name


def test_the_sorter_sorts(sorter):
    params, config = sorter
    inputs = np.array(list(itertools.product(range(3), repeat=6)))  # every input there is
    ids = inputs
    for _ in range(6):
        hidden, _, _ = forward(params, config, embed(params, ids), keep="nothing")
        ids = np.concatenate([ids, logits(params, hidden[:, -1:]).argmax(-1)], axis=1)
    np.testing.assert_array_equal(ids[:, 6:], np.sort(inputs))


@pytest.fixture(scope="module")
def gpt2():
    """(params, config, tokenizer) of the real GPT-2, from the folder that MINICOMPRESS_GPT2 names."""
    if "MINICOMPRESS_GPT2" not in os.environ:
        pytest.skip("MINICOMPRESS_GPT2 names no folder with the real GPT-2 124M")
    folder = Path(os.environ["MINICOMPRESS_GPT2"])
    params, config = load(folder)
    return params, Config.from_dict(config), load_tokenizer(folder)


@pytest.fixture(scope="module")
def facts(data):
    return json.loads((data / "gpt2_124m_facts.json").read_text())


def last_logits(params, config, ids):
    """ids (T,) -> the logits (V,) after the last, by a full forward."""
    hidden, _, _ = forward(params, config, embed(params, [ids]), keep="nothing")
    return logits(params, hidden[0, -1])


@pytest.mark.real_gpt2
def test_gpt2_continues_greedily_as_published(gpt2, facts):
    params, config, tokenizer = gpt2
    for fact in facts["generations"]:
        expected = fact.get("full_text", fact["prompt"] + fact.get("continuation", ""))
        ids = tokenizer.encode(fact["prompt"]).ids
        for _ in range(len(tokenizer.encode(expected).ids) - len(ids)):
            ids.append(int(last_logits(params, config, ids).argmax()))
        assert tokenizer.decode(ids) == expected


@pytest.mark.real_gpt2
def test_gpt2_logits_are_the_published_ones(gpt2, facts):
    params, config, tokenizer = gpt2
    for fact in facts["logits"]["examples"]:
        assert tokenizer.encode(fact["prompt"]).ids == fact["token_ids"]
        found = last_logits(params, config, fact["token_ids"])
        tokens, values = zip(*fact["top20"], strict=True)
        np.testing.assert_allclose(found[list(tokens)], values, rtol=0, atol=2e-3)
        top = found.max()
        logsumexp = top + np.log(np.exp(found - top).sum())
        assert abs(logsumexp - fact["last_position_logits"]["logsumexp"]) < 2e-3

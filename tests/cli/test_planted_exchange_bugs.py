"""Bugs planted in export, import and what opens a prompt, one edit each, that a check of `exchanging.py` must catch."""

import pytest
from exchanging import CHECKS

from minicompress import commands
from minicompress.cli import exchange
from test_planted_bugs import Bug, planted_error

BUGS = [
    Bug("the imported config forgotten", "there and back", exchange.peft_facts,
        'if "peft" in prompt.provenance', "if False"),
    Bug("the imported dtype forgotten", "there and back", exchange.export,
        'stands.provenance["dtype"] if "peft" in stands.provenance else "F32"', '"F32"'),
    Bug("numbers go through the model's dtype", "there and back", exchange.export,
        "commands.read_prompt(prompt, opened)", "commands.open_prompt(prompt, opened)"),
    Bug("the model's hash forgotten", "there and back", exchange.import_,
        'stands.provenance["model"] = opened.hash', "pass"),
    Bug("keys and values by layer, not by slot", "as PEFT's", exchange.write_peft,
        "flat_from_kv(prompt.slots)", "prompt.slots.reshape(prompt.length, -1)"),
    Bug("P-tuning called prompt tuning", "as PEFT's", exchange.peft_facts,
        'recipe.get("method") == "p-tuning"', "False"),
    Bug("how many slots are frozen forgotten", "as PEFT's", exchange.peft_facts,
        '{"num_frozen_tokens": recipe["frozen"]}', "{}"),
    Bug("heads and layers confused", "as PEFT's", exchange.peft_facts,
        "num_layers=config.n_layer, num_attention_heads=config.n_head", "num_layers=config.n_head, num_attention_heads=config.n_layer"),
    Bug("values called keys", "arrays of kv", exchange.write_arrays,
        '("key", "value", "beta")', '("value", "key", "beta")'),
    Bug("masses are not written", "arrays of kv with masses", exchange.write_arrays,
        '("key", "value", "beta")', '("key", "value")'),
    Bug("the first token behind the slots, wherever it stands", "arrays of hidden, unshifted", exchange.write_arrays,
        "str(prompt.start)", "str(prompt.length)"),
    Bug("an offset forgotten", "arrays of embeddings, logical", exchange.write_arrays,
        "str(prompt.start)", "str(prompt.length)"),
    Bug("hidden states computed in single precision", "arrays of hidden", exchange.export,
        'dtype="float64", words=False', "words=False"),
    Bug("masses go to PEFT", "refusals", exchange.check_peft,
        "prompt.beta is not None and prompt.beta.any()", "False"),
    Bug("masses of 1 do not go", "refusals", exchange.check_peft,
        "prompt.beta is not None and prompt.beta.any()", "prompt.beta is not None"),
    Bug("positions go to PEFT", "refusals", exchange.check_peft,
        "not prompt.in_rows and prompt.start != prompt.length", "False"),
    Bug("an infix goes to PEFT", "refusals", exchange.in_front,
        "list(parts[: len(blocks)]) == blocks and", ""),
    Bug("tied slots go to PEFT", "refusals", exchange.in_front,
        " and len(set(names)) == len(names)", ""),
    Bug("heads of another model", "other models", commands.peft_prompt,
        ', "num_attention_heads": config.n_head', ""),
    Bug("large numbers become infinite", "range", exchange.rounded,
        "if (np.isinf(stored) & np.isfinite(x)).any():", "if False:"),
    Bug("a key without mass is too large a number", "range", exchange.rounded,
        "(np.isinf(stored) & np.isfinite(x)).any()", "np.isinf(stored).any()"),
    Bug("any position is called a slot", "places", commands.before,
        '"slots" if prompt.positions == "compact" else', '"slots" if True else'),
    Bug("slots that a text stands beside, not behind", "places", commands.before,
        "or not prompt.start", ""),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_real_source(check):
    assert check() <= 1e-13


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    assert not planted_error(bug, CHECKS, monkeypatch, ValueError) <= 1e-10

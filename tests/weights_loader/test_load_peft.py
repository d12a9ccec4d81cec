"""Prompts in PEFT's files: what is read, and what is refused."""

import json

import numpy as np
import pytest

from weights_loader import EMBEDDING_TYPES, KV_TYPES, LoadError, PeftPrompt, load_peft_prompt

F32 = np.float32
LEAST = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "inference_mode": True}


@pytest.fixture
def write_adapter(tmp_path, to_bytes):
    """write(x or {name: x}, **config changes) -> folder."""

    def write(tensors=None, **changes):
        if not isinstance(tensors, dict):
            tensors = {"prompt_embeddings": np.ones((3, 4), np.float32) if tensors is None else tensors}
        (tmp_path / "adapter_config.json").write_text(json.dumps(LEAST | changes))
        (tmp_path / "adapter_model.safetensors").write_bytes(to_bytes(tensors))
        return tmp_path

    return write


CODES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@pytest.mark.parametrize("peft_type", EMBEDDING_TYPES + KV_TYPES)
@pytest.mark.parametrize("code", CODES)
def test_every_type_and_dtype_is_read_exactly(write_adapter, peft_type, code):
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(CODES[code])
    prompt = load_peft_prompt(write_adapter(x, peft_type=peft_type))
    assert isinstance(prompt, PeftPrompt) and prompt.dtype == code
    assert prompt.config == LEAST | {"peft_type": peft_type}
    assert prompt.array.dtype == (np.float64 if code == "F64" else np.float32)
    assert prompt.array.flags.writeable and prompt.array.flags.owndata  # the file may be written again
    np.testing.assert_array_equal(prompt.array, x.astype(prompt.array.dtype))


def test_bfloat16_is_the_upper_half_of_float32(write_adapter):
    prompt = load_peft_prompt(write_adapter(np.full((3, 4), 0x4049, np.uint16)))
    assert prompt.dtype == "BF16" and prompt.array.dtype == np.float32 and (prompt.array == 3.140625).all()


FITTING = [
    ("PROMPT_TUNING", {"token_dim": 4, "num_layers": 9, "num_attention_heads": 3}, 4),  # layers and heads say nothing
    ("P_TUNING", {"token_dim": None, "encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 7}, 5),
    ("PREFIX_TUNING", {"token_dim": 6, "num_layers": 2, "num_attention_heads": 3, "prefix_projection": True}, 24),
    ("PREFIX_TUNING", {"token_dim": 6}, 36),
    ("CARTRIDGE", {"num_layers": 3}, 12),
    ("CARTRIDGE", {"num_frozen_tokens": 3, "num_transformer_submodules": 1, "task_type": None}, 2),
    ("CARTRIDGE", {"num_frozen_tokens": 0, "inference_mode": False}, 2),
]


@pytest.mark.parametrize(("peft_type", "facts", "width"), FITTING)
def test_sizes_that_fit_are_read_and_every_key_is_kept(write_adapter, peft_type, facts, width):
    prompt = load_peft_prompt(write_adapter(np.ones((3, width), F32), peft_type=peft_type, other=[1], **facts))
    assert prompt.array.shape == (3, width)
    assert prompt.config == LEAST | {"peft_type": peft_type, "other": [1]} | facts


PREFIX, CARTRIDGE = {"peft_type": "PREFIX_TUNING"}, {"peft_type": "CARTRIDGE"}
SIZES = {"token_dim": 6, "num_layers": 2, "num_attention_heads": 3}
REFUSED = [
    ({"peft_type": "LORA"}, None, ['peft_type is "LORA", not one of PROMPT_TUNING, P_TUNING, PREFIX_TUNING, CARTRIDGE: '
                                   "it changes the model's weights and has no slots"]),
    ({"peft_type": "MULTITASK_PROMPT_TUNING"}, None, ["MULTITASK_PROMPT_TUNING", "differ from task to task"]),
    ({"peft_type": "CPT"}, None, ['"CPT"', "its loss scores them too", 'write "PROMPT_TUNING" there']),
    ({"peft_type": "ADAPTION_PROMPT"}, None, ["ADAPTION_PROMPT", "a softmax and a gate of their own"]),
    ({"peft_type": "IA3"}, None, ['peft_type is "IA3"', "not known here"]),
    ({"peft_type": "prompt_tuning"}, None, ['peft_type is "prompt_tuning"', "not known here"]),
    ({"peft_type": None}, None, ["peft_type is null"]),
    ({"peft_type": ["P_TUNING"]}, None, ['peft_type is ["P_TUNING"]']),
    ({"task_type": "SEQ_2_SEQ_LM"}, None, ['task_type is "SEQ_2_SEQ_LM"', "an encoder and a decoder", "CAUSAL_LM"]),
    ({"num_transformer_submodules": 2}, None, ["num_transformer_submodules 2: its slots are for an encoder"]),
    (PREFIX | {"num_transformer_submodules": "1"}, None, ['num_transformer_submodules "1"']),
    ({"num_virtual_tokens": None}, None, ["num_virtual_tokens is null"]),
    ({"num_virtual_tokens": 0}, None, ["num_virtual_tokens is 0"]),
    ({"num_virtual_tokens": True}, None, ["num_virtual_tokens is true"]),
    ({"token_dim": 0}, None, ["token_dim is 0; it must be a whole number above 0"]),
    (PREFIX | {"num_layers": 2.0}, None, ["num_layers is 2.0"]),
    (CARTRIDGE | {"num_attention_heads": "3"}, None, ['num_attention_heads is "3"']),
    (PREFIX | SIZES | {"num_attention_heads": 4}, None, ["token_dim 6 is not divisible by num_attention_heads 4"]),
    (CARTRIDGE | {"num_frozen_tokens": 4}, None, ["num_frozen_tokens is 4", "from 0 to num_virtual_tokens, 3"]),
    (CARTRIDGE | {"num_frozen_tokens": -1}, None, ["num_frozen_tokens is -1"]),
    (CARTRIDGE | {"num_frozen_tokens": None}, None, ["num_frozen_tokens is null"]),
    ({"num_virtual_tokens": 4}, None, ["shape [3, 4], expected [4, C]", "num_virtual_tokens"]),
    ({"token_dim": 5}, None, ["shape [3, 4], expected [3, 5]"]),
    ({"token_dim": 2}, None, ["shape [3, 4], expected [3, 2]"]),
    ({}, np.ones((3, 4, 1), F32), ["shape [3, 4, 1], expected [3, C]"]),
    ({}, np.ones((3, 0), F32), ["shape [3, 0], expected [3, C]"]),
    (PREFIX, np.ones((3, 5), F32), ["shape [3, 5], expected [3, 2·L·C]"]),
    (CARTRIDGE, np.ones((3, 1), F32), ["shape [3, 1], expected [3, 2·L·C]"]),  # which PEFT stretches silently
    (CARTRIDGE, np.ones((3, 0), F32), ["shape [3, 0], expected [3, 2·L·C]"]),
    (PREFIX | {"num_layers": 3}, np.ones((3, 8), F32), ["shape [3, 8], expected [3, 2·3·C]"]),
    (PREFIX | {"token_dim": 3}, np.ones((3, 8), F32), ["shape [3, 8], expected [3, 2·L·3]"]),
    (PREFIX | SIZES, np.ones((3, 48), F32), ["shape [3, 48], expected [3, 24]"]),
    (PREFIX | SIZES, np.ones((2, 24), F32), ["shape [2, 24], expected [3, 24]"]),
    ({}, np.ones((3, 4), np.uint8), ["'prompt_embeddings' has dtype U8"]),
    ({}, np.full((3, 4), np.nan, F32), ["prompt_embeddings holds 12 of 12 numbers that are infinite or NaN"]),
    ({}, np.full((3, 4), 0xFF80, np.uint16), ["holds 12 of 12 numbers that are infinite"]),
    ({}, {"other": np.ones((3, 4), F32)}, ["holds 'other', expected the one tensor 'prompt_embeddings'; save it again"]),
    ({}, {"prompt_embeddings": np.ones((3, 4), F32), "base_model.lm_head.weight": np.ones(1, F32)},
     ["'base_model.lm_head.weight'", "modules_to_save"]),
    ({}, {}, ["holds nothing"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "tensors", "words"), REFUSED, ids=[words[0][:60] for *_, words in REFUSED])
def test_other_adapters_are_refused(write_adapter, changes, tensors, words):
    folder = write_adapter(tensors, **changes)
    with pytest.raises(LoadError) as caught:
        load_peft_prompt(folder)
    assert all(word in str(caught.value) for word in [str(folder), *words]) and "\n" not in str(caught.value)


def test_missing_files_and_pickles_are_refused(write_adapter):
    folder = write_adapter()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"no adapter_model\.safetensors"):
        load_peft_prompt(folder)
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'echo harm'\ntR.")
    with pytest.raises(LoadError, match=r"adapter_model\.bin is a pickle.*python -c"):
        load_peft_prompt(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(LoadError, match=r"no adapter_config\.json"):
        load_peft_prompt(folder)

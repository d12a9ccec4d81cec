"""Prompts in PEFT's files: what is read, and what is refused."""

import json

import numpy as np
import pytest

from weights_loader import LoadError, load_peft_prompt

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


@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "P_TUNING"])
@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
def test_embeddings_are_read_exactly(write_adapter, peft_type, stored):
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(stored)
    embeddings, config = load_peft_prompt(write_adapter(x, peft_type=peft_type))
    assert config == LEAST | {"peft_type": peft_type}
    assert embeddings.dtype == (np.float64 if stored is np.float64 else np.float32)
    assert embeddings.flags.writeable and embeddings.flags.owndata  # the file may be written again
    np.testing.assert_array_equal(embeddings, x.astype(embeddings.dtype))


def test_bfloat16_embeddings(write_adapter):
    embeddings, _ = load_peft_prompt(write_adapter(np.full((3, 4), 0x4049, np.uint16)))
    assert embeddings.dtype == np.float32 and (embeddings == 3.140625).all()


F32 = np.float32
REFUSED = [
    ({"peft_type": "PREFIX_TUNING"}, None, ["PREFIX_TUNING", "a prefix of keys and values, not embeddings"]),
    ({"peft_type": "LORA"}, None, ['peft_type is "LORA"']),
    ({"peft_type": None}, None, ["peft_type is null"]),
    ({"peft_type": ["P_TUNING"]}, None, ["peft_type is"]),
    ({"num_virtual_tokens": None}, None, ["num_virtual_tokens is null"]),
    ({"num_virtual_tokens": 0}, None, ["num_virtual_tokens is 0"]),
    ({"num_virtual_tokens": 4}, None, ["shape [3, 4], expected [4, C]", "num_virtual_tokens"]),
    ({}, np.ones((3, 4, 1), F32), ["shape [3, 4, 1], expected [3, C]"]),
    ({}, np.ones((3, 0), F32), ["shape [3, 0], expected [3, C]"]),
    ({}, np.ones((3, 4), np.uint8), ["'prompt_embeddings' has dtype U8"]),
    ({}, {"other": np.ones((3, 4), F32)}, ["holds 'other', expected the one tensor 'prompt_embeddings'"]),
    ({}, {"prompt_embeddings": np.ones((3, 4), F32), "prompt_task_cols": np.ones(1, F32)}, ["'prompt_task_cols'"]),
    ({}, {}, ["holds nothing"]),
]


@pytest.mark.parametrize(("changes", "tensors", "words"), REFUSED, ids=[words[0] for *_, words in REFUSED])
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


def test_peft_s_own_files_are_read(tmp_path):
    peft = pytest.importorskip("peft", reason="a peer, needed only to compare with")
    transformers = pytest.importorskip("transformers", reason="a peer, needed only to compare with")
    tiny = transformers.GPT2Config(vocab_size=7, n_positions=9, n_embd=4, n_layer=1, n_head=2)
    for config in (peft.PromptTuningConfig, peft.PromptEncoderConfig):
        model = peft.get_peft_model(transformers.GPT2LMHeadModel(tiny),
                                    config(task_type="CAUSAL_LM", num_virtual_tokens=3))  # fmt: skip
        model.save_pretrained(tmp_path / config.__name__)
        embeddings, _ = load_peft_prompt(tmp_path / config.__name__)
        theirs = model.get_prompt_embedding_to_save("default").detach().numpy()
        np.testing.assert_array_equal(embeddings, theirs)

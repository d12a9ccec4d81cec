"""Prompts written as PEFT writes them: to the bit, whole or not at all, and never over a model."""

import json
import os
import stat

import numpy as np
import peft_checks
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft_checks import BITS, FACTS, TYPES, finite, random_bits, round_trip_error, rounding_error, table, values_of
from safetensors import deserialize, safe_open

from weights_loader import LoadError, load_peft_prompt, peft_config, save_peft_prompt

each_code = pytest.mark.parametrize("code", BITS)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@pytest.mark.parametrize("check", peft_checks.CHECKS.values(), ids=peft_checks.CHECKS)
def test_checks(check):
    assert check() == 0


@each_code
@given(data=st.data(), slots=st.integers(1, 4), C=st.integers(1, 5), peft_type=st.sampled_from(TYPES))
def test_every_finite_bit_pattern_comes_back(code, data, slots, C, peft_type):
    """Loaded and saved again, both files are the same bytes, in every type and dtype."""
    width = C if peft_type in ("PROMPT_TUNING", "P_TUNING") else 2 * C
    size = slots * width * BITS[code]().nbytes
    bits = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), BITS[code]).reshape(slots, width)
    config = FACTS | {"peft_type": peft_type, "num_virtual_tokens": slots}
    assert round_trip_error(code, finite(bits, code), config) == 0


@given(unknown=st.dictionaries(st.text(), json_values, max_size=4))
def test_every_key_of_a_config_comes_back_in_its_place(unknown):
    known = FACTS | {
        "token_dim": None,
        "num_layers": None,
        "num_attention_heads": None,
        "num_transformer_submodules": None,
    }
    assert round_trip_error("F32", config=unknown | known) == 0


@pytest.mark.parametrize("code", ["F16", "BF16"])
@given(data=st.data())
def test_rounding_is_to_the_nearest(code, data):
    """Against the table of all 16-bit numbers, by fractions: near a middle, and anywhere."""
    numbers = table(code)
    i = data.draw(st.integers(0, len(numbers) - 3))
    middle = (numbers[i] + numbers[i + 1]) / 2
    step = data.draw(st.sampled_from([0.0, 2.0**-52, -(2.0**-53), 2.0**-25, -(2.0**-30)]))
    anywhere = data.draw(st.floats(-numbers[-2], numbers[-2]))
    assert rounding_error(code, np.array([middle * (1 + step), -middle * (1 + step), anywhere, numbers[i], -0.0])) == 0


@each_code
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_of_every_precision_are_saved_in_every_other(tmp_path, code, dtype):
    x = np.random.default_rng(0).integers(-128, 128, (3, 4)).astype(dtype) / dtype(64)  # 8 bits: exact everywhere
    save_peft_prompt(tmp_path, x, FACTS, code)
    prompt = load_peft_prompt(tmp_path)
    assert prompt.dtype == code
    np.testing.assert_array_equal(prompt.array, x)


@each_code
def test_the_safetensors_library_reads_what_is_written(tmp_path, code):
    bits = random_bits(code, (3, 5))
    save_peft_prompt(tmp_path, values_of(bits, code), FACTS, code)
    raw = (tmp_path / "adapter_model.safetensors").read_bytes()
    [(name, tensor)] = deserialize(raw)
    assert (name, tensor["dtype"], tensor["shape"]) == ("prompt_embeddings", code, [3, 5])
    assert bytes(tensor["data"]) == bits.tobytes() and (len(raw) - bits.nbytes) % 8 == 0
    with safe_open(tmp_path / "adapter_model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_default_is_single_precision(tmp_path):
    x = np.random.default_rng(0).standard_normal((3, 4))
    save_peft_prompt(str(tmp_path / "made" / "here"), x, peft_config("PROMPT_TUNING", 3))
    prompt = load_peft_prompt(tmp_path / "made" / "here")
    assert prompt.dtype == "F32"
    np.testing.assert_array_equal(prompt.array, x.astype(np.float32))


def test_what_was_loaded_stays_valid_when_its_folder_is_written_again(tmp_path):
    peft_checks.save(tmp_path, 1)
    first = load_peft_prompt(tmp_path)
    peft_checks.save(tmp_path, 2)
    assert (first.array == 1).all() and (load_peft_prompt(tmp_path).array == 2).all()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "any").touch()
    peft_checks.save(tmp_path / "new")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "new").iterdir()}
    assert modes == {stat.S_IMODE((tmp_path / "any").stat().st_mode)}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(LoadError, match=r"cannot be written \(Permission denied\)"):
        peft_checks.save(tmp_path)
    tmp_path.chmod(0o700)


def test_the_config_is_laid_out_as_peft_lays_it_out(tmp_path):
    save_peft_prompt(tmp_path, np.ones((3, 4)), peft_config("PROMPT_TUNING", 3, base_model_name_or_path="Å"))
    text = (tmp_path / "adapter_config.json").read_bytes()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True).encode()
    assert text.isascii()  # PEFT opens it in the encoding of wherever it runs

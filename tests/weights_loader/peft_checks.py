"""Checks of PEFT's folders, each a function that returns how much is wrong, which the tests and the planted bugs share."""

import json
import tempfile
from bisect import bisect_right
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np

from weights_loader import LoadError, peft

TYPES = peft.EMBEDDING_TYPES + peft.KV_TYPES
BITS = {"F64": np.uint64, "F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
EXPONENT = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 0x1F << 10, "BF16": 0xFF << 7}
FACTS = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "inference_mode": True}
HEADER = '{"__metadata__":{"format":"pt"},"prompt_embeddings":{"dtype":"%s","shape":[%d,%d],"data_offsets":[0,%d]}}'


def file_of(code, bits):
    """The bytes of adapter_model.safetensors for bits (n, width), spelled out as the safetensors library lays them out."""
    header = HEADER % (code, *bits.shape, bits.nbytes)
    while len(header) % 8:
        header += " "
    return len(header).to_bytes(8, "little") + header.encode() + bits.tobytes()


def finite(bits, code):
    """The same bits, but an exponent of all ones, which makes no number, loses its last."""
    mask, one = (BITS[code](n) for n in (EXPONENT[code], EXPONENT[code] & -EXPONENT[code]))
    return np.where(bits & mask == mask, bits & ~one, bits)


def random_bits(code, shape, seed=0):
    bits = np.random.default_rng(seed).integers(1 << 63, size=shape, dtype=np.uint64) * np.uint64(2)
    return finite((bits >> np.uint64(64 - 8 * BITS[code]().nbytes)).astype(BITS[code]), code)


def values_of(bits, code):
    """What the bits mean, as float64."""
    if code == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits.view({"F64": np.float64, "F32": np.float32, "F16": np.float16}[code]).astype(np.float64)


def round_trip_error(code, bits=None, config=FACTS):
    """Files that somebody wrote, loaded and saved again: how many of two files, the numbers and the dtype differ."""
    bits = random_bits(code, (3, 8)) if bits is None else bits
    files = {
        "adapter_model.safetensors": file_of(code, bits),
        "adapter_config.json": json.dumps(config, indent=2).encode(),
    }
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder, "here"), Path(folder, "new", "there")
        here.mkdir()
        for name, raw in files.items():
            (here / name).write_bytes(raw)
        prompt = peft.load_peft_prompt(here)
        wrong = prompt.dtype != code or prompt.array.astype(np.float64).tobytes() != values_of(bits, code).tobytes()
        peft.save_peft_prompt(there, *prompt)
        return wrong + sum((there / name).read_bytes() != raw for name, raw in files.items())


def layout_error():
    """An array that lies in memory the other way round is stored row by row."""
    x = np.asfortranarray(np.random.default_rng(0).standard_normal((3, 4)))
    with tempfile.TemporaryDirectory() as folder:
        peft.save_peft_prompt(folder, x, FACTS, "F64")
        return np.abs(peft.load_peft_prompt(folder).array - x).max()


def table(code):
    """All numbers of a 16-bit type from 0 upwards, and the first that is too large for it: entry i has the bits i."""
    bits = np.arange(EXPONENT[code], dtype=np.uint16)
    values = values_of(bits, code).tolist()
    return [*values, 2 * values[-1] - values[-2]]


def nearest(x, numbers):
    """The index of the nearest to x >= 0, exactly; of two as near, the even one."""
    i = min(bisect_right(numbers, x) - 1, len(numbers) - 2)
    below, above = (abs(Fraction(x) - Fraction(n)) for n in numbers[i : i + 2])
    return i if below < above else i + 1 if above < below else i + i % 2


def rounding_error(code, x=None):
    """How many of x are not stored as their nearest: without x, the middles of all pairs, and what lies just beside them."""
    numbers = table(code)
    if x is None:
        middles = [(a + b) / 2 for a, b in zip(numbers[::97], numbers[1::97], strict=False)] + numbers[::89]
        x = np.array([n for m in middles for n in (np.nextafter(m, 0), m, np.nextafter(m, np.inf))])
    expected = np.array([nearest(n, numbers) for n in np.abs(x).tolist()])
    x, expected = x[expected < len(numbers) - 1], expected[expected < len(numbers) - 1]  # the rest does not fit
    with tempfile.TemporaryDirectory() as folder:
        peft.save_peft_prompt(folder, x[None], FACTS | {"num_virtual_tokens": 1}, code)
        stored = np.frombuffer(Path(folder, peft.TENSORS).read_bytes()[-2 * x.size :], np.uint16)
    return int((stored != expected | np.signbit(x) * 0x8000).sum())


def refuses(call, *words):
    """Does the call raise a LoadError of one line that holds all the words?"""
    try:
        call()
    except LoadError as refusal:
        return "\n" not in str(refusal) and all(word in str(refusal) for word in words)
    return False


ROWS = np.ones((3, 24))
SIZES = {"token_dim": 6, "num_layers": 2, "num_attention_heads": 3}
PREFIX, CARTRIDGE = {"peft_type": "PREFIX_TUNING"} | SIZES, {"peft_type": "CARTRIDGE"} | SIZES
UNSAVABLE = {  # name: array, changes of the config, dtype, the words of the refusal
    "another type": (ROWS, {"peft_type": "LORA"}, "F32", ['peft_type is "LORA"', "it changes the model's weights"]),
    "no type": (ROWS, {"peft_type": np.float32}, "F32", ["peft_type is", "not known here"]),
    "no task": (ROWS, {"task_type": None}, "F32", ["there is no task_type", "PEFT leaves the prompt out", "CAUSAL_LM"]),
    "two tasks": (ROWS, {"task_type": "SEQ_2_SEQ_LM"}, "F32", ["an encoder and a decoder"]),
    "two modules": (ROWS, {"num_transformer_submodules": 2}, "F32", ["num_transformer_submodules 2"]),
    "no slots": (ROWS[:0], {"num_virtual_tokens": 0}, "F32", ["num_virtual_tokens is 0"]),
    "slots of NumPy": (ROWS, {"num_virtual_tokens": np.int64(3)}, "F32", ["num_virtual_tokens is", "whole number"]),
    "too many rows": (np.ones((4, 24)), {}, "F32", ["the array has shape [4, 24], expected [3, C]"]),
    "three axes": (ROWS[None], {}, "F32", ["the array has shape [1, 3, 24]"]),
    "narrow": (ROWS, {"token_dim": 12}, "F32", ["shape [3, 24], expected [3, 12]"]),
    "one layer of two": (ROWS[:, :12], PREFIX, "F32", ["shape [3, 12], expected [3, 24]"]),
    "twice the layers": (np.c_[ROWS, ROWS], CARTRIDGE, "F32", ["shape [3, 48], expected [3, 24]"]),
    "a key without a value": (ROWS[:, :5], {"peft_type": "CARTRIDGE"}, "F32", ["shape [3, 5], expected [3, 2·L·C]"]),
    "keys of two layers": (ROWS[:, :6], PREFIX | {"token_dim": None}, "F32", ["shape [3, 6], expected [3, 2·2·C]"]),
    "heads": (ROWS, PREFIX | {"num_attention_heads": 4}, "F32", ["token_dim 6 is not divisible by"]),
    "frozen": (ROWS, CARTRIDGE | {"num_frozen_tokens": 4}, "F32", ["num_frozen_tokens is 4"]),
    "whole numbers": (ROWS.astype(int), {}, "F32", ["the array holds int64", "floating-point numbers"]),
    "complex numbers": (ROWS + 0j, {}, "F32", ["the array holds complex128"]),
    "nan": (np.where(np.eye(3, 24), np.nan, 1), {}, "F32", ["holds 3 of 72 numbers that are infinite or NaN"]),
    "inf": (np.where(np.eye(3, 24), np.inf, 1), {}, "F64", ["holds 3 of 72 numbers that are infinite or NaN"]),
    "too large for F16": (-65520 * ROWS, {}, "F16", ["65520, the largest number, is too large for F16", "F32 or F64"]),
    "too large for BF16": (3.4e38 * ROWS, {}, "BF16", ["3.4e+38", "is too large for BF16"]),
    "too large for F32": (1e39 * ROWS, {}, "F32", ["1e+39", "is too large for F32"]),
    "another dtype": (ROWS, {}, "float32", ["dtype is 'float32'; it can be F16, BF16, F32, F64"]),
    "no JSON": (ROWS, {"k": {1, 2}}, "F32", ["cannot be written as JSON", "set"]),
    "a key that is not a number": (ROWS, {"k": float("nan")}, "F32", ["cannot be written as JSON"]),
}


def unsavable_error(name):
    """Is it saved all the same, or is anything left behind?"""
    array, changes, dtype, words = UNSAVABLE[name]
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder, "new")
        refused = refuses(lambda: peft.save_peft_prompt(new, array, FACTS | changes, dtype), str(new), *words)
        return (not refused) + new.exists()


def place_error():
    """Files, and folders that hold a model, are left as they are; an adapter's folder, and an empty one, are used."""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in ("config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
            there = Path(folder, name + " inside")
            there.mkdir()
            (there / name).write_text("a model's")
            wrong += not refuses(lambda there=there: save(there), str(there), f"there is a model here ({name})")
            wrong += not refuses(lambda there=there, name=name: save(there / name), "this is a file; name a folder")
            wrong += [(file.name, file.read_text()) for file in there.iterdir()] != [(name, "a model's")]
        wrong += not refuses(lambda: save(there / name / "below"), "cannot be written (Not a directory)")
        used = Path(folder, "used")
        used.mkdir()
        save(used)
        (used / "README.md").write_text("a card")
        save(used, 2)
        wrong += (peft.load_peft_prompt(used).array != 2).any() + ((used / "README.md").read_text() != "a card")
    return int(wrong)


def save(folder, value=1):
    peft.save_peft_prompt(folder, np.full((3, 4), value, np.float32), FACTS | {"made": value})


def writing_error():
    """The disk is full at the first file, then at the second: what was there stays, and nothing lies beside it."""
    wrong = 0
    for fails in (0, 1):
        with tempfile.TemporaryDirectory() as folder:
            save(folder)
            before = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
            full = [None] * fails + [OSError(28, "No space left on device")]
            with mock.patch("os.fsync", side_effect=full):
                wrong += not refuses(
                    lambda folder=folder: save(folder, 2), "cannot be written (No space left on device)"
                )
            wrong += {file.name: file.read_bytes() for file in Path(folder).iterdir()} != before
    return wrong


def killed_error():
    """What lies under the two names whenever the program may be killed: the old file or the new, each whole."""
    with tempfile.TemporaryDirectory() as old_folder, tempfile.TemporaryDirectory() as new_folder:
        save(old_folder)
        save(new_folder, 2)
        old, new = ({file.name: file.read_bytes() for file in Path(f).iterdir()} for f in (old_folder, new_folder))
        seen = []

        def look(*_):
            seen.append({name: Path(old_folder, name).read_bytes() for name in old})

        with mock.patch("os.fsync", side_effect=look):
            save(old_folder, 2)
        look()
    states = [[files[name] == new[name] for name in files] for files in seen]
    return sum(raw not in (old[name], new[name]) for files in seen for name, raw in files.items()) + (
        states != [[False, False], [False, False], [True, True]]
    )


def least_error():
    """The config of each type, and that facts come in, whatever they are."""
    wrong = 0
    for peft_type in TYPES:
        wrong += peft.peft_config(peft_type, 3) != FACTS | {"peft_type": peft_type}
        more = peft.peft_config(peft_type, 3, token_dim=6, task_type="FEATURE_EXTRACTION", mine=[1])
        facts = {"peft_type": peft_type, "token_dim": 6, "task_type": "FEATURE_EXTRACTION", "mine": [1]}
        wrong += more != FACTS | facts or list(more) != sorted(more)
    wrong += not refuses(lambda: peft.peft_config("CPT", 3), "adapter_config.json: peft_type is", "CPT")
    return wrong + (not refuses(lambda: peft.peft_config("P_TUNING", 0), "num_virtual_tokens is 0"))


def accepted_error():
    """Sizes at their bounds are saved and read."""
    with tempfile.TemporaryDirectory() as folder:
        for changes in ({"num_frozen_tokens": 3}, {"num_frozen_tokens": 0}, {"num_transformer_submodules": 1},
                        {"token_dim": None}, {"num_layers": None}, {"token_dim": 12, "num_layers": 1}):  # fmt: skip
            peft.save_peft_prompt(folder, ROWS, FACTS | CARTRIDGE | changes)
            if peft.load_peft_prompt(folder).config != FACTS | CARTRIDGE | changes:
                return 1
    return 0


CHECKS = {
    **{f"round trip of {code}": lambda code=code: round_trip_error(code) for code in BITS},
    **{f"rounding to {code}": lambda code=code: rounding_error(code) for code in ("F16", "BF16")},
    **{f"refused: {name}": lambda name=name: unsavable_error(name) for name in UNSAVABLE},
    "layout": layout_error,
    "places": place_error,
    "a full disk": writing_error,
    "killed": killed_error,
    "least config": least_error,
    "accepted": accepted_error,
}

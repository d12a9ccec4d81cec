"""Bugs planted in the reading and writing of PEFT's folders, one edit each."""

import contextlib

import numpy as np
import pytest
from peft_checks import CHECKS

from test_planted_bugs import Bug, plant
from weights_loader import peft

BUGS = [
    # numbers
    Bug("double precision read as single", "round trip of F64", peft.load_peft_prompt,
        'np.float64 if tensor.dtype == "F64" else np.float32', "np.float32"),
    Bug("half precision stays half", "round trip of F16", peft.load_peft_prompt,
        "return PeftPrompt(array,", "return PeftPrompt(array.astype(np.float16) * np.float16(0.1),"),
    Bug("the file's dtype forgotten", "round trip of BF16", peft.load_peft_prompt,
        "config, tensor.dtype)", 'config, "F32")'),
    Bug("bfloat16 cut, not rounded", "rounding to BF16", peft._bfloat16,
        "bits + 0x7FFF + (bits >> 16 & 1)", "bits"),
    Bug("ties away from zero", "rounding to BF16", peft._bfloat16,
        "0x7FFF + (bits >> 16 & 1)", "0x8000"),
    Bug("ties to odd", "rounding to BF16", peft._bfloat16,
        "0x7FFF + (bits >> 16 & 1)", "0x8000 - (bits >> 16 & 1)"),
    Bug("rounded twice", "rounding to BF16", peft._bfloat16,
        "bits |= near != x", "pass"),
    Bug("off the middle on the wrong side", "rounding to BF16", peft._bfloat16,
        " - (np.abs(near) > np.abs(x))", ""),
    Bug("bfloat16 by way of half precision", "round trip of BF16", peft._bfloat16,
        'near = x.astype("<f4")', 'near = x.astype("<f2").astype("<f4")'),
    Bug("half precision by way of bfloat16", "rounding to F16", peft._rounded,
        "x.astype(FLOATS[dtype])", '(_bfloat16(x).astype("<u4") << 16).view("<f4").astype(FLOATS[dtype])'),
    Bug("too large is infinite", "refused: too large for F16", peft._rounded,
        "if not finite.all()", "if False"),
    Bug("every bfloat16 is finite", "refused: too large for BF16", peft._rounded,
        "stored & 0x7F80 != 0x7F80", "np.isfinite(stored)"),
    Bug("infinite passes", "refused: inf", peft._check_finite,
        "np.isfinite(array)", "(array == array)"),
    Bug("not a number passes", "refused: nan", peft._check_finite,
        "np.isfinite(array)", "(abs(array) != np.inf)"),
    Bug("complex numbers pass", "refused: complex numbers", peft.save_peft_prompt,
        'array.dtype.kind != "f"', 'array.dtype.kind in "iu"'),
    # the file
    Bug("as it lies in memory", "layout", peft._encoded,
        "x.tobytes()", 'x.tobytes("A")'),
    Bug("numbers begin anywhere", "round trip of F64", peft._encoded,
        '-len(raw) % 8', "0"),
    Bug("no format in the metadata", "round trip of F32", peft._encoded,
        '{"format": "pt"}', "{}"),
    Bug("bfloat16 named as its bits are", "round trip of BF16", peft._encoded,
        '"dtype": dtype', '"dtype": {"BF16": "U16"}.get(dtype, dtype)'),
    Bug("the config in another order", "round trip of F32", peft.save_peft_prompt,
        "indent=2,", "indent=2, sort_keys=True,"),
    Bug("a key that JSON does not have", "refused: a key that is not a number", peft.save_peft_prompt,
        ", allow_nan=False", ""),
    # the config
    Bug("another type passes", "refused: another type", peft._check_config,
        '_check_type(config.get("peft_type"), path)', "pass"),
    Bug("a prompt that PEFT leaves out", "refused: no task", peft.save_peft_prompt,
        'not isinstance(config.get("task_type"), str)', "False"),
    Bug("the decoder's slots too", "refused: two modules", peft._check_config,
        " or submodules not in (None, 1)", ""),
    Bug("slots for an encoder", "refused: two tasks", peft._check_config,
        'task == "SEQ_2_SEQ_LM" or ', ""),
    Bug("as many slots as there are", "refused: too many rows", peft._check_shape,
        "shape[0] == slots", "shape[0]"),
    Bug("keys without values", "refused: a key without a value", peft._check_shape,
        "2 * (L or 1) * (C or 1)", "(L or 1) * (C or 1)"),
    Bug("any number of layers", "refused: twice the layers", peft._check_shape,
        "shape[1] == width if", "shape[1] % width == 0 if"),
    Bug("no width without both sizes", "accepted", peft._check_shape,
        "C and L, f", "True, f"),
    Bug("heads that do not divide", "refused: heads", peft._check_config,
        "C and H and C % H", "C and H and H % C == 0"),
    Bug("one token must be trained", "accepted", peft._check_config,
        "0 <= frozen <= slots", "0 <= frozen < slots"),
    Bug("one token must be frozen", "accepted", peft._check_config,
        "0 <= frozen <= slots", "0 < frozen <= slots"),
    Bug("facts do not count", "least config", peft.peft_config,
        "least | facts", "facts | least"),
    Bug("a config to train on", "least config", peft.peft_config,
        '"inference_mode": True', '"inference_mode": False'),
    Bug("an impossible config", "least config", peft.peft_config,
        "_check_config(config, CONFIG)", "pass"),
    # the folder
    Bug("beside a model", "places", peft._check_place,
        "if (folder / name).exists()", "if False"),
    Bug("over a file", "places", peft._check_place,
        "not folder.is_dir()", "False"),
    Bug("an adapter is never replaced", "places", peft._check_place,
        "for name in MODEL_FILES", "for name in (*MODEL_FILES, CONFIG)"),
    Bug("the disk's refusal is raised as it is", "a full disk", peft.save_peft_prompt,
        "except OSError", "except ZeroDivisionError"),
    Bug("written in place", "killed", peft._replace_together,
        'open(beside[path], "wb")', 'open(beside[path].touch() or path, "wb")'),
    Bug("renamed one by one", "a full disk", peft._replace_together,
        "os.fsync(file.fileno())\n        for path, partial in beside.items():\n            os.replace(partial, path)",
        "os.fsync(file.fileno())\n            os.replace(beside[path], path)"),
    Bug("not brought to the disk", "a full disk", peft._replace_together,
        "os.fsync(file.fileno())", "pass"),
    Bug("half a file left beside", "a full disk", peft._replace_together,
        "partial.unlink(missing_ok=True)", "pass"),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_is_caught(bug, monkeypatch):
    plant(bug, monkeypatch)
    with contextlib.suppress(ValueError, OSError, np.exceptions.ComplexWarning):  # it cannot be read again, or written
        assert CHECKS[bug.caught_by]() != 0

"""Golden vectors as a port uses them: examples/golden_check.c, compiled, right, and wrong in many ways."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from minicompress.verification.golden.folder import CASES, given_and_asked

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "golden_check.c"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """compiled(old, new, *flags) -> the program, with a text of its source replaced."""
    if not (cc := shutil.which("cc")):
        pytest.skip("no C compiler: there is no cc on the PATH")
    made = {}

    def build(old="", new="", *flags):
        if (old, new, flags) not in made:
            source, program = (tmp_path_factory.mktemp("c") / name for name in ("golden_check.c", "golden_check"))
            text = SOURCE.read_text(encoding="utf-8")
            assert not old or text.count(old) == 1, f"{old!r} is not once in {SOURCE.name}: rewrite this plant"
            source.write_text(text.replace(old, new) if old else text, encoding="utf-8")
            subprocess.run([cc, "-O2", "-Wall", "-Wextra", "-Werror", *flags, source, "-o", program, "-lm"], check=True)
            made[old, new, flags] = program
        return made[old, new, flags]

    return build


def proved(program, *paths):
    """-> exit code, {(file, tensor): PASS or FAIL}, what it says aside."""
    run = subprocess.run([program, *paths], capture_output=True, text=True)
    lines = [line.split() for line in run.stdout.splitlines()]
    return run.returncode, {(Path(file).stem, tensor): verdict for file, tensor, _, verdict in lines}, run.stderr


def its_files(folder):
    return sorted(path for start in ("layer-layernorm", "layer-attention") for path in folder.glob(f"{start}*"))


@pytest.mark.parametrize("flags", [(), ("-Dreal=float",), ("-std=c99",)], ids=str)
def test_the_port_in_c_passes(flags, compiled, kept):
    code, verdicts, _ = proved(compiled("", "", *flags), *its_files(kept))
    asked = [(path.stem, n) for path in its_files(kept) for n in given_and_asked(path.stem, CASES[path.stem])[1]]
    assert code == 0 and verdicts == dict.fromkeys(asked, "PASS") and len(asked) > 40


@pytest.mark.parametrize("name, tensor", [("layer-layernorm", "grad.x"), ("layer-attention", "grad.k"), ("layer-attention-past", "out")])
@pytest.mark.parametrize("by", [1e-6, np.nan])
def test_the_port_in_c_sees_a_corrupted_number(name, tensor, by, compiled, folder, changed):
    changed(f"{name}.safetensors", lambda tensors: tensors[tensor].flat.__setitem__(-1, tensors[tensor].flat[-1] + by))
    code, verdicts, _ = proved(compiled(), *its_files(folder))
    assert code == 1 and [one for one, verdict in verdicts.items() if verdict == "FAIL"] == [(name, tensor)]


@pytest.mark.parametrize(
    "old, new, caught",
    [
        ("sqrt(variance + eps)", "(sqrt(variance) + eps)", ("layer-layernorm", "out")),
        ("xhat[c] * stretch);", "xhat[c] * stretch / (variance * r * r));", ("layer-layernorm-small", "grad.x")),
        ("* (x[n + c] - mean) / C", "* (x[n + c] - mean) / (C - 1)", ("layer-layernorm", "out")),
        ("+= q[i * D + d] * slot(pk, k, i, s)[d] / root;\n            if", "+= q[i * D + d] * slot(pk, k, i, s)[d];\n            if", ("layer-attention", "out")),
        ("(dp[s] - dot)", "dp[s]", ("layer-attention", "grad.q")),
        ("exp(p[s] - most)", "exp(p[s])", ("layer-attention-extreme", "out")),
        ("% (pasts ? pasts : 1)", "* 0", ("layer-attention-past", "out")),
        ("beta && s < P ?", "beta && s < 0 ?", ("layer-attention-past-masses", "out")),
        ("if (mask && !mask[", "if (mask && mask[0] < 0 && !mask[", ("layer-attention-key-mask", "out")),
        ("long S = P + i % T + 1", "long S = P + (i % T + 2 > T ? T : i % T + 2)", ("layer-attention", "out")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_bug_planted_in_the_port_is_seen(old, new, caught, compiled, kept):
    code, verdicts, _ = proved(compiled(old, new, "-O0"), *its_files(kept))
    assert code == 1 and verdicts[caught] == "FAIL"


@pytest.mark.parametrize("bytes_kept, words", [(None, "cannot be opened"), (0, "ends before its header"), (100, "ends before its header"), (-8, "ends within")])
def test_the_port_in_c_says_what_is_wrong_with_a_file(bytes_kept, words, compiled, folder):
    path = folder / "layer-attention.safetensors"
    raw = path.read_bytes()
    path.unlink() if bytes_kept is None else path.write_bytes(raw[:bytes_kept])
    code, _, said = proved(compiled(), path)
    assert code == 1 and words in said and str(path) in said and len(said.splitlines()) == 1


def test_the_port_in_c_says_what_it_cannot_prove(compiled, kept, tmp_path):
    (tmp_path / "bad").write_bytes(struct.pack("<Q", 9) + b'{"x": {"a')
    for path, words in (("layer-gelu.safetensors", "lacks weight"), ("decode-greedy.safetensors", "lacks x"), (tmp_path / "bad", "not JSON")):
        code, _, said = proved(compiled(), kept / path)
        assert code == 1 and words in said and len(said.splitlines()) == 1
    assert proved(compiled())[0] == 1


def test_the_port_in_c_is_short_and_needs_libc_and_libm_alone():
    text = SOURCE.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150 and max(map(len, text.splitlines())) <= 120
    assert set(re.findall(r"#include <(\w+)\.h>", text)) <= {"stdint", "stdio", "stdlib", "string", "tgmath"}

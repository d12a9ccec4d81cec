"""What page 17 says of the golden files, and the answer to its exercise, against the files themselves."""

import json
import struct

import answers
import numpy as np
import pytest
from test_quoted_numbers import DOCS, assert_quoted, figure  # noqa: F401  (a fixture)

from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.verification.golden.case import computed
from minicompress.verification.golden.folder import CASES, MANIFEST, write_golden

PAGE = (DOCS / "17-golden-vectors.md").read_text(encoding="utf-8")


def test_the_table_is_that_of_the_set(figure):  # noqa: F811
    title, line, *rows = figure("17-golden-vectors").table()
    assert sorted(row.split("`")[1] for row in rows) == list(CASES)
    assert "\n".join([title, line, *rows, ""]) in PAGE, "put the lines of docs/figures/17-golden-vectors.py table() in"


def test_sizes_and_bytes(tmp_path):
    files = write_golden(tmp_path / "set")["files"]
    total = sum(one["bytes"] for one in files.values()) + (tmp_path / "set" / MANIFEST).stat().st_size
    raw = (tmp_path / "set" / "layer-tanh.safetensors").read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + n])
    assert_quoted(17, f"{len(files)} small files and a manifest, {total / 1e6:.2f} MB", f"`layer-tanh.safetensors`, {len(raw):,} bytes")
    assert_quoted(17, f"`{raw[:8].hex(' ')}` is {n}", f"| 8 … {n + 7} | n |", f"| {n + 8} … {len(raw) - 1} | {len(raw) - n - 8:,} |")
    assert raw[8 : 8 + n].endswith(b" ") and f'"x":{json.dumps(header["x"], separators=(",", ":"))}'.encode() in raw
    assert_quoted(17, f'"x":{json.dumps(header["x"], separators=(",", ":"))}')
    assert_quoted(17, f"{len((DOCS.parent / 'examples/golden_check.c').read_text(encoding='utf-8').splitlines())} lines")


def test_the_tolerances_are_those_of_the_table():
    usual = {"one function": (1e-13, 1e-5), "a whole model": (1e-12, 1e-4)}
    others = {n: (c.float64, c.float32) for n, c in CASES.items() if (c.float64, c.float32) not in usual.values()}
    for name, (double, single) in (usual | {f"`{n}`": pair for n, pair in others.items()}).items():
        assert_quoted(17, f"| {name} | $10^{{{round(np.log10(double))}}}$ | $10^{{{round(np.log10(single))}}}$ |")


def test_what_the_figure_says_of_mistakes(figure):  # noqa: F811
    error = {name: errors() for name, (_, errors) in figure("17-golden-vectors").MISTAKES.items()}
    within = lambda name, kind: [e <= getattr(CASES[name], kind) for e in error[name]]
    assert not any(any(within(name, "float64")) for name in error)
    seen_in_float64_alone = {name for name in error if any(within(name, "float32"))}
    assert seen_in_float64_alone == {"layer-layernorm", "layer-gelu", "step-adamw"}
    assert error["layer-layernorm"][0] / CASES["layer-layernorm"].float64 > 1e7
    assert_quoted(17, "seven orders beyond a float64 port's")


def key_third(name, dtype=np.float64):
    grad = computed(name, CASES[name], dtype)[1]["grad.model.h.0.attn.c_attn.bias"]
    return np.split(grad, 3)[1]


def test_17_a_keys_bias():
    """Zero but for rounding, where nothing but keys with the bias is seen."""
    assert 1e-19 < np.abs(key_third("gpt2-untied")).max() < 1e-16 < 1e-3 < np.abs(key_third("carrier-kv")).max()
    assert 1e-11 < np.abs(key_third("gpt2-untied", np.float32)).max() < 1e-8


@pytest.mark.parametrize("gradient, eps, share", [(1e-17, 1e-8, 1e-9), (1e-9, 1e-8, 0.1), (1e-9, 2.0**-10, 1e-6)])
def test_17_of_the_rate(gradient, eps, share):
    x = {"x": np.zeros(1)}
    adamw_step(x, {"x": np.array([gradient])}, adamw_init(x), 0.5, eps=eps)
    assert -x["x"][0] / 0.5 == pytest.approx(answers.of_the_rate(gradient, eps)) == pytest.approx(share, rel=0.1)

"""How the test of PEFT judges and shows; nothing here needs PEFT. With PEFT: tests/peers/test_peers_conformance.py."""

import json
import subprocess
import sys

import pytest

from minicompress.verification.peft_conformance import __main__ as program
from minicompress.verification.peft_conformance.finding import (
    ACCEPTED,
    AGREES,
    CONVENTION,
    DEFECT,
    NOT_RUN,
    Finding,
    Row,
    attempt,
    counted,
    examined,
    plain,
    refusal,
    text,
)

NAN, VERSIONS = float("nan"), {"peft": "1.2", "transformers": "3.4", "torch": "5.6"}


@pytest.mark.parametrize(
    "found, verdict",
    [
        (Finding(1.0, 1.0, 1e-11), AGREES),
        (Finding(1.0, 1.1, 0.1), DEFECT),
        (Finding(1.0, 1.1, 0.1, otherwise=CONVENTION), CONVENTION),
        (Finding(1.0, 1.1, 0.1, tolerance=0.2), AGREES),
        (Finding(1.0, NAN, NAN), DEFECT),
        (Finding("float64", "float32"), DEFECT),
        (Finding(48, 48), AGREES),
        (Finding("no", "no", same=False), DEFECT),
        (refusal("ValueError: a", "KeyError: b"), AGREES),
        (refusal("ValueError: a", ACCEPTED), DEFECT),
        (refusal(ACCEPTED, "ValueError: a", CONVENTION), CONVENTION),
        (refusal(None, ACCEPTED), DEFECT),
        (refusal(None, "ValueError: a"), AGREES),
    ],
)
def test_verdicts(found, verdict):
    assert found.verdict == verdict


def raising(error):
    def f():
        raise error

    return f


@pytest.mark.parametrize(
    "error, words",
    [(ValueError("one\ntwo"), "ValueError: one"), (KeyError("x"), "KeyError: 'x'"), (RuntimeError(), "RuntimeError")],
)
def test_what_a_check_raises_is_shown_in_one_line(error, words):
    assert examined("c", "k", raising(error)) == Row("c", "k", None, None, None, None, NOT_RUN, words)
    assert attempt(raising(error)) == words and attempt(int) == ACCEPTED


def test_who_stops_the_program_stops_it():
    with pytest.raises(KeyboardInterrupt):
        examined("c", "k", raising(KeyboardInterrupt()))


ROWS = [
    Row("one", "a", 1.0, 1.0, 0.0, 1e-10, AGREES, ""),
    Row("one", "b", 2.0, NAN, NAN, 1e-10, DEFECT, "broken; do this"),
    Row("one", "c", 2.0, 3.0, 0.5, 1e-10, DEFECT, "broken; do this"),
    Row("two", "a", "yes", "a very long line that does not fit into a column", None, 1e-10, CONVENTION, "otherwise"),
    Row("three", "a", None, None, None, None, NOT_RUN, "KeyError: 'x'"),
]


def test_the_table_as_text():
    lines = "\n".join(text(VERSIONS, 7, ROWS, ["cartridge"])).split("\n")
    assert lines[0] == "peft 1.2, transformers 3.4, torch 5.6; seed 7" and "cartridge" in lines[1]
    table = [line for line in lines if line.endswith((AGREES, CONVENTION, DEFECT, NOT_RUN)) and line.startswith("  ")]
    assert (
        len(table) == len(ROWS) and len({line.index(row.verdict) for line, row in zip(table, ROWS, strict=True)}) == 1
    )
    assert "  one (b, c): broken; do this" in lines and "  three (a): KeyError: 'x'" in lines
    assert lines[-1] == "1 agrees, 1 differs: a convention, 2 differs: a defect, 1 cannot be run"


def test_the_table_as_json():
    found = json.loads(json.dumps(plain(VERSIONS, 7, ROWS, ["cartridge"]), allow_nan=False))
    assert found["versions"] == VERSIONS and found["counts"] == counted(ROWS) and found["absent"] == ["cartridge"]
    assert [row["difference"] for row in found["rows"]] == [0.0, None, 0.5, None, None]


@pytest.mark.parametrize("rows, code", [(ROWS[:1], 0), (ROWS[3:4], 0), (ROWS[:2], 1), (ROWS[4:], 1)])
def test_exit_codes(rows, code, monkeypatch, capsys):
    class Lib:
        versions = VERSIONS

    monkeypatch.setattr(program, "libraries", lambda seed: Lib)
    monkeypatch.setattr(program, "examine", lambda lib: (rows, []))
    assert program.main(["--json", "--seed", "3"]) == code
    assert json.loads(capsys.readouterr().out)["seed"] == 3


@pytest.mark.parametrize("missing", ["peft", "torch", "transformers"])
def test_without_the_peers_one_line_and_code_2(missing, monkeypatch, capsys):
    for name in ("peft", "torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else sys)  # None: cannot be imported
    assert program.main([]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and missing in err and "pip install" in err


@pytest.mark.parametrize("seed", ["-1", "x", str(2**32)])
def test_a_wrong_seed_is_refused(seed, capsys):
    with pytest.raises(SystemExit, match="2"):
        program.main(["--seed", seed])
    assert "--seed" in capsys.readouterr().err.splitlines()[-1]


def test_the_checks_are_there_without_torch():
    code = "import sys, minicompress.verification.peft_conformance.__main__; print({'torch', 'peft', 'transformers'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"

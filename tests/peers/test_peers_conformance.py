"""The test of the installed PEFT, run whole; and PEFT broken on purpose, one bug at a time, which it must see."""

import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from pkgutil import resolve_name

import pytest

from minicompress.verification.peft_conformance import __main__ as program
from minicompress.verification.peft_conformance import folders, passes, run, traps, writing
from minicompress.verification.peft_conformance.bench import KV, libraries
from minicompress.verification.peft_conformance.finding import AGREES, DEFECT, NOT_RUN, VERDICTS, Row, text

peft = pytest.importorskip("peft", reason="the peers are not installed")
pytestmark = pytest.mark.peers
RECORDED = json.loads((Path(__file__).resolve().parents[2] / "docs/figures/18-verdicts.json").read_text())


@pytest.fixture(scope="module")
def lib():
    return libraries(0)


@pytest.fixture(scope="module")
def whole():
    """Exit code, what stands on standard output and what on standard error."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = program.main(["--json"])
    return code, json.loads(out.getvalue()), err.getvalue()


def named(found):
    return {(row["check"], row["kind"]): row for row in found["rows"]}


def test_it_runs_whole(whole):
    code, found, errors = whole
    verdicts = [row["verdict"] for row in found["rows"]]
    assert {name: verdicts.count(name) for name in VERDICTS if name in verdicts} == found["counts"]
    assert code == (DEFECT in verdicts or NOT_RUN in verdicts) and not errors
    assert len(named(found)) == len(found["rows"]) >= 100 and not found["absent"]


def test_nothing_is_left_out(whole):
    assert not [row for row in whole[1]["rows"] if row["verdict"] == NOT_RUN]


def test_what_agreed_agrees(whole):
    """Whatever the versions: what the page says of agreement is said of these numbers too."""
    now = named(whole[1])
    for key, row in named(RECORDED).items():
        if row["verdict"] == AGREES and key in now:
            assert now[key]["verdict"] == AGREES, now[key]


def test_the_page_s_verdicts_are_those_of_a_run(whole):
    now = whole[1]
    if now["versions"] | {"torch": ""} != RECORDED["versions"] | {"torch": ""}:
        pytest.skip(f"recorded with {RECORDED['versions']}")
    kept = ("verdict", "words", "tolerance")
    assert [[row[k] for k in kept] for row in now["rows"]] == [[row[k] for k in kept] for row in RECORDED["rows"]]
    assert named(now).keys() == named(RECORDED).keys() and now["counts"] == RECORDED["counts"]


def test_another_seed_has_the_same_verdicts(whole):
    rows, _ = run.examine(libraries(1))
    assert [row.verdict for row in rows] == [row["verdict"] for row in whole[1]["rows"]]


def test_the_table_is_as_long_as_the_catalogue(whole):
    found = whole[1]
    lines = list(text(found["versions"], 0, [Row(**row) for row in found["rows"]]))
    assert sum(line.endswith(VERDICTS) and "  " in line for line in lines) >= len(found["rows"])
    assert max(map(len, lines[: len(found["rows"])])) <= 120


def test_a_check_that_raises_is_shown_and_the_rest_is_run(lib, monkeypatch):
    def broken(lib, *kind):
        raise RuntimeError("no such thing\nmore")

    monkeypatch.setattr(run, "EVERY_KIND", {"broken": broken, "logits": passes.logits})
    monkeypatch.setattr(run, "SINGLES", [("broken too", "CPT", broken), ("zero", "prefix tuning", passes.zero_prefix)])
    rows, _ = run.examine(lib)
    shown = {row.words for row in rows if row.check.startswith("broken")}
    assert shown == {"RuntimeError: no such thing"}
    assert all((row.verdict == NOT_RUN) == row.check.startswith("broken") for row in rows)


def test_a_kind_that_is_not_there_is_named(lib):
    class Older:
        """This PEFT without cartridges."""

        def __getattr__(self, name):
            if name == "CartridgeConfig":
                raise AttributeError(name)
            return getattr(peft, name)

    lines, absent = run.catalogue(lib._replace(peft=Older()))
    assert absent == ["cartridge"] and "cartridge" not in {kind for _, kind, *_ in lines}


# Bugs planted in PEFT: (name, what to ask, its verdict where PEFT is as it is, how to break it).


def replaced(owner, name, make):
    """A plant: the attribute of `module:Class` becomes make(the attribute as it was)."""

    def plant(patch):
        found = resolve_name(owner)
        patch.setattr(found, name, make(getattr(found, name)))

    return plant


def after(change):
    """A function whose result is changed."""
    return lambda f: lambda *args, **options: change(f(*args, **options))


def swapped(cache):
    return lambda pairs: cache([(v, k) for k, v in pairs])


def unshifted(f):
    """Without the n that prefix tuning adds to the positions it is given."""
    return lambda self, config, *, kwargs, **options: None


def without_cache(f):
    return lambda self, *args, **options: f(self, *args, **(options | {"use_cache": False}))


def before_the_encoder(f):
    """What the encoder reads, saved for what it makes."""
    return lambda self, adapter: self.prompt_encoder[adapter].embedding.weight.detach()


MODEL, CAUSAL, ENCODERS = "peft.peft_model", "peft.peft_model:PeftModelForCausalLM", "peft.tuners"
BUGS = [
    ("keys and values swapped", passes.logits, "prefix tuning", replaced(MODEL, "DynamicCache", swapped)),
    ("a prompt scaled", passes.logits, "prompt tuning",
     replaced(f"{ENCODERS}:PromptEmbedding", "forward", after(lambda x: 1.001 * x))),
    ("slots reversed", passes.logits, "P-tuning, MLP",
     replaced(f"{ENCODERS}:PromptEncoder", "forward", after(lambda x: x.flip(1)))),
    ("the first slot twice", passes.loss, "P-tuning, LSTM",
     replaced(CAUSAL, "get_prompt", after(lambda x: x[:, [0, 0, 2, 3]]))),
    ("a prompt in float32", passes.logits, "CPT", replaced(CAUSAL, "get_prompt", after(lambda x: x.float().double()))),
    ("half of the gradient", passes.gradient, "multitask",
     replaced(CAUSAL, "get_prompt", after(lambda x: (x + x.detach()) / 2))),
    ("an activation left out", passes.gradient, "prefix, projected",
     replaced("torch.nn:Tanh", "forward", lambda f: lambda self, x: x)),
    ("a batch that changes its rows", passes.rows_alone, "prompt tuning",
     replaced(CAUSAL, "get_prompt", after(lambda x: x * len(x)))),
    ("positions not moved", passes.left_with_positions, "cartridge",
     replaced(CAUSAL, "_adjust_prompt_learning_kwargs", unshifted)),
    ("text from other slots", writing.uncached, "prompt tuning",
     replaced(CAUSAL, "get_prompt", after(lambda x: x.roll(1, 1)))),
    ("the encoder's input saved", folders.file, "P-tuning, MLP",
     replaced(CAUSAL, "get_prompt_embedding_to_save", before_the_encoder)),
    ("loaded with a sign turned", folders.reloaded, "prefix tuning",
     replaced("torch.nn:Embedding", "load_state_dict",
              lambda f: lambda self, state, **options: f(self, {n: -x for n, x in state.items()}, **options))),
    ("one number too many", passes.numbers_trained, "cartridge",
     replaced(CAUSAL, "get_nb_trainable_parameters", after(lambda pair: (pair[0] + 1, pair[1])))),
]  # fmt: skip


@pytest.mark.parametrize("ask, kind, plant", [bug[1:] for bug in BUGS], ids=[bug[0] for bug in BUGS])
def test_a_planted_bug_is_seen(ask, kind, plant, lib, monkeypatch):
    assert ask(lib, kind).verdict == AGREES
    with monkeypatch.context() as patch:
        plant(patch)
        assert ask(lib, kind).verdict == DEFECT
    assert ask(lib, kind).verdict == AGREES


def test_a_ball_that_does_not_hold_is_seen(lib, monkeypatch):
    assert traps.cpt_ball(lib).verdict == AGREES
    replaced(f"{ENCODERS}:CPTEmbedding", "get_projection", lambda f: lambda self: self.delta_embedding.weight)(
        monkeypatch
    )
    assert traps.cpt_ball(lib).verdict == DEFECT


# And defects mended: what the table advises, done to PEFT itself.


@pytest.mark.parametrize("kind", ["prompt tuning", "prefix tuning"])
def test_text_without_their_cache_is_right(kind, lib, monkeypatch):
    replaced(CAUSAL, "generate", without_cache)(monkeypatch)
    assert writing.cached(lib, kind).verdict == AGREES


def test_the_wrong_cache_is_known(whole):
    """Where cached text is wrong, the table says what it is instead; nothing is said where it is right."""
    for (check, kind), row in named(whole[1]).items():
        if check == "greedy text, with the cache" and kind != "adaption prompt":
            known = writing.LOST if kind in KV else writing.ANEW
            assert row["words"].startswith(known) if row["verdict"] == DEFECT else not row["words"]

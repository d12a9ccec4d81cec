"""Prompts out and in: PEFT's folders to the bit, plain arrays, and what PEFT cannot say refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from test_cli_mistakes import assert_one_line, left

import weights_loader
from minicompress.gpt2 import Config, embed, forward
from minicompress.prompts.carriers import slots_shape
from minicompress.prompts.soft_prompt import SoftPrompt
from minicompress.verification.oracles import relative_error
from reading import KINDS, random_prompt, read_row
from weights_loader import load_peft_prompt, model_hash, peft_config, save_peft_prompt

TYPES = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE")
DTYPES = ("F64", "F32", "F16", "BF16")
SMALL = Config(vocab_size=2048, n_positions=128, n_embd=24, n_layer=2, n_head=2)  # the fixture `model`
FILES = ("adapter_config.json", "adapter_model.safetensors")
P, L, C, H = 3, SMALL.n_layer, SMALL.n_embd, SMALL.n_head
each_type = pytest.mark.parametrize("peft_type", TYPES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture
def params(model):
    return weights_loader.load(model, "float64")[0]


@pytest.fixture
def saved(here, model):
    """saved(kind, **changes) -> the file `p` of a random prompt for the model."""

    def save(kind, **changes):
        prompt = random_prompt(kind, SMALL, P, np.random.default_rng(0), np.float32)
        provenance = {"model": model_hash(model)} | changes.pop("provenance", {})
        prompt = replace(prompt, provenance=provenance, **changes)
        prompt.save(here / "p")
        return prompt

    return save


def peft_folder(folder, peft_type, dtype="F32", **facts):
    """A folder of PEFT's with numbers that its dtype tells apart, of both signs, large and small."""
    width = C if peft_type in weights_loader.EMBEDDING_TYPES else 2 * L * C
    x = np.random.default_rng(0).standard_normal((P, width)) * 10.0 ** np.arange(-2, 1)[:, None]
    x[0, :2] = -0.0, 1 / 3
    facts = {"token_dim": C, "num_layers": L, "num_attention_heads": H, "base_model_name_or_path": "größer",
             "num_transformer_submodules": 1, "inference_mode": True, "prompt_tuning_init": None} | facts  # fmt: skip
    save_peft_prompt(folder, x, peft_config(peft_type, P, **facts), dtype)


def told(result):
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


def arrays_of(path):
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


# PEFT.


@each_type
@each_dtype
def test_what_is_imported_is_exported_to_the_bit(peft_type, dtype, run, here, model):
    """Tensor and config, whatever else stands in it, and unknown to this program."""
    peft_folder("theirs", peft_type, dtype, some_new_key=[1, {"a": 0.1}], revision=None)
    result = told(run("import", "theirs", "--out", "p", "--model", model, "--json"))
    carrier = "embeddings" if peft_type in TYPES[:2] else "kv"
    assert result == {"out": "p", "peft_type": peft_type, "carrier": carrier, "slots": P, "dtype": dtype}
    result = told(run("export", "p", "--to", "peft", "ours", "--model", model, "--json"))
    assert result == {"out": "ours", "to": "peft", "holds": peft_type, "dtype": dtype, "slots": P}
    for name in FILES:
        assert (here / "ours" / name).read_bytes() == (here / "theirs" / name).read_bytes()
    assert left(here / "ours") == set(FILES)


@each_type
def test_an_imported_prompt_is_the_folder(peft_type, run, here, model):
    """It answers, writes and is traced as the folder itself."""
    peft_folder("theirs", peft_type)
    assert run("import", "theirs", "--out", "p", "--model", model)[0] == 0
    prompt = SoftPrompt.load("p")
    assert prompt.provenance["model"] == model_hash(model) and prompt.provenance["peft"]["peft_type"] == peft_type
    written, traces = [], []
    for name in ("p", "theirs"):
        written.append(told(run("generate", "Tom has", "--prompt", name, "--tokens", 6, "--model", model, "--json")))
        written[-1]["answer"] = told(run("ask", name, "Who?", "--model", model, "--json"))["answer"]
        arguments = ["--tokens", "tokens.json", "--gradients", "all", "--model", model, "--out", f"{name}.t"]
        assert run("trace", "--prompt", name, *arguments)[0] == 0
        traces.append(arrays_of(f"{name}.t")[0])
    assert written[0] == written[1]
    assert {n: x.tobytes() for n, x in traces[0].items()} == {n: x.tobytes() for n, x in traces[1].items()}
    assert traces[0]["grad.prompt"].shape == load_peft_prompt("theirs").array.shape


@pytest.mark.parametrize("dtype", [None, *DTYPES])
@pytest.mark.parametrize("kind, recipe, peft_type", [
    ("embeddings", {}, "PROMPT_TUNING"), ("kv", {}, "PREFIX_TUNING"), ("kv, logical", {}, "PREFIX_TUNING"),
    ("embeddings", {"method": "p-tuning", "parameterisation": "mlp"}, "P_TUNING"),
    ("kv", {"method": "prefix", "parameterisation": "cartridge", "frozen": 2}, "CARTRIDGE"),
    ("kv with masses", {}, "PREFIX_TUNING"),
])  # fmt: skip
def test_own_prompts_as_folders_of_peft(kind, recipe, peft_type, dtype, run, here, model, saved):
    """What says the same in other words goes as well: an offset of P, masses of 1."""
    changes = {"offset": P} if "logical" in kind else {"beta": np.zeros((L, H, P), "f4")} if "masses" in kind else {}
    prompt = saved(kind, provenance={"recipe": recipe}, **changes)
    more = ["--dtype", dtype] if dtype else []
    result = told(run("export", "p", "--to", "peft", "ours", "--model", model, "--json", *more))
    assert result["holds"] == peft_type and result["dtype"] == (dtype or "F32")
    array, facts, stored = load_peft_prompt("ours")
    assert stored == (dtype or "F32")
    flat = prompt.slots if prompt.carrier == "embeddings" else [prompt.slots[:, :, :, p].ravel() for p in range(P)]
    assert relative_error(array, flat) <= {"F16": 1e-3, "BF16": 1e-2}.get(dtype, 0)
    told_facts = {"peft_type": peft_type, "task_type": "CAUSAL_LM", "num_virtual_tokens": P, "token_dim": C,
                  "num_layers": L, "num_attention_heads": H, "num_transformer_submodules": 1, "inference_mode": True}
    assert facts == told_facts | ({"num_frozen_tokens": 2} if peft_type == "CARTRIDGE" else {})
    assert run("import", "ours", "--out", "q", "--model", model)[0] == 0
    back = SoftPrompt.load("q")
    assert back.carrier == prompt.carrier and relative_error(back.slots, prompt.slots) <= 1e-2


def test_a_template_whose_slots_stand_in_front_is_a_prefix(run, here, model, saved):
    for template in (r"[3]{text}", r"[1][a 2]Q: {text}\nA:", "[3: some words]{text}", "{text} without slots"):
        saved("embeddings", template=template)
        code, out, _ = run("export", "p", "--to", "peft", "ours", "--model", model)
        assert code == 0 and repr(template) in out and "which PEFT does not keep" in out


@pytest.mark.parametrize("kind, changes, words", [
    ("hidden", {}, ["PEFT has no slots as hidden states", "--to arrays"]),
    ("kv with masses", {}, ["log-masses", "--to arrays"]),
    ("kv, unshifted", {}, ["tokens begin at position 0 (unshifted)", "at 3", "--to arrays"]),
    ("embeddings, logical", {}, ["tokens begin at position 7 (logical)", "at 3", "--to arrays"]),
    ("in rows", {}, ["template '{before}[3]{text}'", "--to arrays"]),
    ("in rows", {"template": "[1]{text}[2]"}, ["elsewhere than in front"]),
    ("in rows", {"template": "[a 3][a]{text}"}, ["elsewhere than in front"]),
    ("in rows", {"template": "A[3]{text}"}, ["elsewhere than in front"]),
])  # fmt: skip
def test_what_peft_cannot_say(kind, changes, words, run, here, model, saved):
    saved(kind, **changes)
    before = left(here)
    assert_one_line(run("export", "p", "--to", "peft", "ours", "--model", model), "p: ", *words)
    assert left(here) == before
    assert run("export", "p", "--to", "arrays", "ours", "--model", model)[0] == 0  # as advised


# Arrays.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [None, "F64", "F32", "F16"])
def test_arrays(kind, dtype, run, here, model, params, saved):
    """They say what the prompt says: read in front of a row, the row's states are the same."""
    prompt = saved(kind)
    more = ["--dtype", dtype] if dtype else []
    result = told(run("export", "p", "--to", "arrays", "a", "--model", model, "--json", *more))
    arrays, facts = arrays_of("a")
    assert {x.dtype.itemsize for x in arrays.values()} == {{"F64": 8, "F16": 2}.get(dtype, 4)}
    assert facts["position_start"] == str(prompt.start) and facts["model"] == model_hash(model)
    assert facts["carrier"] == prompt.carrier and facts.get("template") == prompt.template
    tolerance = {"F64": 1e-13, "F16": 1e-2}.get(dtype, 1e-5)
    if prompt.carrier == "embeddings":
        assert list(arrays) == ["inputs_embeds"] == [result["holds"]]
        assert relative_error(arrays["inputs_embeds"], prompt.slots[None]) <= (1e-3 if dtype == "F16" else 0)
        return
    parts = ("key", "value", "beta") if prompt.beta is not None else ("key", "value")
    assert set(arrays) == {f"past_key_values.{n}.{part}" for n in range(L) for part in parts}
    assert arrays["past_key_values.0.key"].shape == (1, H, P, C // H) and result["holds"] == "past_key_values"
    past = [tuple(arrays[f"past_key_values.{n}.{part}"].astype(float) for part in parts) for n in range(L)]
    row, start = [5, 6, 7], int(facts["position_start"])
    hidden, *_ = forward(params, SMALL, embed(params, [row], start), past, keep="nothing")
    wide = replace(prompt, slots=prompt.slots.astype(float), beta=None if prompt.beta is None else prompt.beta.astype(float))
    told_logits = read_row(params, SMALL, wide, row).logits
    assert relative_error(hidden[0] @ params["wte"]["weight"].T, told_logits) <= tolerance


@each_type
@each_dtype
def test_arrays_of_a_peft_folder(peft_type, dtype, run, here, model):
    """BF16, which NumPy has not, as F32: nothing is lost."""
    peft_folder("theirs", peft_type, dtype)
    result = told(run("export", "theirs", "--to", "arrays", "a", "--model", model, "--json"))
    arrays, _ = arrays_of("a")
    theirs = load_peft_prompt("theirs").array
    assert result["dtype"] == ("F32" if dtype == "BF16" else dtype)
    if peft_type in weights_loader.EMBEDDING_TYPES:
        assert (arrays["inputs_embeds"][0] == theirs).all()
    else:
        assert (arrays["past_key_values.1.value"][0, 1, 2] == theirs[2].reshape(L, 2, H, -1)[1, 1, 1]).all()


# Mistakes.


@pytest.mark.parametrize("arguments, words", [
    (["p", "--to", "onnx", "x"], ["--to is 'onnx'", "peft or arrays"]),
    (["p", "--to", "peft", "x", "--dtype", "int8"], ["--dtype is 'int8'", "BF16"]),
    (["p", "--to", "arrays", "x", "--dtype", "BF16"], ["--dtype is 'BF16'", "F64 or F32 or F16"]),
    (["nowhere", "--to", "peft", "x"], ["nowhere"]),
    (["p", "--to", "peft", "p"], ["p: this is a file"]),
    (["p", "--to", "arrays", "."], [". is a folder; name a file"]),
    (["p", "--to", "arrays", "nowhere/x"], ["there is no folder nowhere"]),
    (["q", "--to", "peft", "x", "--dtype", "F16"], ["too large for F16"]),
    (["q", "--to", "arrays", "x", "--dtype", "F16"], ["x: ", "70000", "too large for F16", "F32"]),
])  # fmt: skip
def test_mistakes_of_export(arguments, words, run, here, model, saved):
    prompt = saved("embeddings")
    replace(prompt, slots=prompt.slots * 0 + 70000).save(here / "q")
    before = left(here)
    assert_one_line(run("export", *arguments, "--model", model), *words)
    assert left(here) == before


def test_a_prompt_of_another_model_is_not_exported(run, here, model, new_model, saved):
    saved("kv")
    for to in ("peft", "arrays"):
        assert_one_line(run("export", "p", "--to", to, "x", "--model", new_model(7)), "was made for the model", "--model")


def test_a_model_s_folder_is_left_alone(run, here, model, saved):
    saved("kv")
    before = left(model)
    assert_one_line(run("export", "p", "--to", "peft", model, "--model", model), "there is a model here")
    assert left(model) == before


@pytest.mark.parametrize("facts, words", [
    ({"token_dim": 12}, ["theirs: its token_dim is 12, this model's 24"]),
    ({"num_layers": 5}, ["its num_layers is 5, this model's 2"]),
    ({"num_attention_heads": 4}, ["its num_attention_heads is 4, this model's 2"]),
])  # fmt: skip
@pytest.mark.parametrize("peft_type", TYPES[:1] + TYPES[2:3])
def test_a_folder_for_another_model(peft_type, facts, words, run, here, model):
    """Heads too: the same numbers cut in another way would be other keys."""
    width = facts.get("token_dim", C) * (2 * facts.get("num_layers", L) if peft_type == "PREFIX_TUNING" else 1)
    facts = {"token_dim": C, "num_layers": L, "num_attention_heads": H} | facts
    save_peft_prompt("theirs", np.ones((P, width)), peft_config(peft_type, P, **facts))
    for command in (["import", "theirs", "--out", "q"], ["generate", "Tom", "--prompt", "theirs"], ["ask", "theirs", "Who?"],
                    ["trace", "--tokens", "tokens.json", "--prompt", "theirs", "--out", "t"]):  # fmt: skip
        assert_one_line(run(*command, "--model", model), *words)
    assert not (here / "q").exists() and not (here / "t").exists()


def test_a_prefix_that_tells_no_sizes_is_held_against_the_model(run, here, model):
    save_peft_prompt("theirs", np.ones((P, 72)), peft_config("PREFIX_TUNING", P))
    assert_one_line(run("import", "theirs", "--out", "q", "--model", model), "72 wide", "2 x 2 x 24 = 96")
    save_peft_prompt("theirs", np.ones((P, 12)), peft_config("PROMPT_TUNING", P))
    assert_one_line(run("import", "theirs", "--out", "q", "--model", model), "embeddings are [3, 12]", "[3, 24]")
    save_peft_prompt("theirs", np.ones((P, 96)), peft_config("PREFIX_TUNING", P))
    assert run("import", "theirs", "--out", "q", "--model", model)[0] == 0
    assert SoftPrompt.load("q").slots.shape == slots_shape("kv", SMALL, P)


@pytest.mark.parametrize("folder, words", [
    ("nowhere", ["nowhere: there is no such folder"]), ("context.txt", ["context.txt is a file", "PEFT"]),
    (".", ["adapter_config.json"]), ("lora", ['peft_type is "LORA"']),
])  # fmt: skip
def test_mistakes_of_import(folder, words, run, here, model):
    (here / "lora").mkdir()
    (here / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    before = left(here)
    assert_one_line(run("import", folder, "--out", "q", "--model", model), *words)
    assert left(here) == before


def test_where_the_imported_prompt_goes(run, here, model):
    peft_folder("theirs", "P_TUNING")
    assert_one_line(run("import", "theirs", "--out", ".", "--model", model), "--out . is a folder")
    assert_one_line(run("import", "theirs", "--out", "nowhere/q", "--model", model), "there is no folder nowhere")


def test_too_many_slots_for_the_model(run, here, model):
    save_peft_prompt("theirs", np.ones((128, C)), peft_config("PROMPT_TUNING", 128))
    words = ["theirs: n_positions is 128", "128 slots and a token from position 128 on need 129"]
    assert_one_line(run("import", "theirs", "--out", "q", "--model", model), *words)

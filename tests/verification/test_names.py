"""The same numbers under the names and in the layouts of others: Hugging Face, nanoGPT, llm.c, a padded batch."""

import numpy as np
import pytest

from minicompress.verification.compare import compare
from minicompress.verification.names import align
from minicompress.verification.setup import Setup
from tracing import TINY, Case

L, C, H, V = TINY.n_layer, TINY.n_embd, TINY.n_head, TINY.vocab_size


@pytest.fixture(scope="module")
def bare():
    """A trace without a prompt, of three rows of equal length: what others' traces are of."""
    rows = np.random.default_rng(3).integers(V, size=(3, 7)).tolist()
    case = Case(slots=0, rows=rows, labels=None)
    return Setup(case.model, rows).tensors()


@pytest.fixture(scope="module")
def prompted():
    case = Case(4, labels=None)
    return Setup(case.model, case.rows, case.prompt).tensors()


def weights(trace):
    return {name.removeprefix("grad.model."): g for name, g in trace.items() if name.startswith("grad.model.")}


def hugging_face(t):
    """output_hidden_states, output_attentions, and .grad of the parameters."""
    found = {f"hidden_states.{n}": t[f"hidden.{n}"] for n in range(L)} | {f"hidden_states.{L}": t["ln_f"]}
    found |= {f"attentions.{n}": t[f"attention.{n}"] for n in range(L)} | {"logits": t["logits"], "loss": t["loss"]}
    return found | {f"transformer.{name}.grad": g for name, g in weights(t).items()}


def nano_gpt(t):
    """Outputs of modules, hooked; nn.Linear's weights are (out, in); the head's gradient is wte's."""
    fused = lambda n: np.concatenate([t[f"{kind}.{n}"].swapaxes(1, 2).reshape(3, 7, C) for kind in ("query", "key", "value")], axis=-1)
    found = {f"transformer.h.{n}": t[f"hidden.{n + 1}"] for n in range(L)} | {"transformer.drop": t["hidden.0"]}
    found |= {f"transformer.h.{n}.attn.c_attn": fused(n) for n in range(L)} | {f"transformer.h.{n}.ln_1": t[f"ln_1.{n}"] for n in range(L)}
    found |= {f"transformer.h.{n}.mlp.c_fc": t[f"fc.{n}"] for n in range(L)} | {"lm_head": t["logits"], "transformer.ln_f": t["ln_f"]}
    turned = lambda name, g: g.T if g.ndim == 2 and name.startswith("h.") else g
    return found | {f"grad.transformer.{name}": turned(name, g) for name, g in weights(t).items()}


def llm_c(t):
    """All layers in one array, a padded vocabulary, gradients as d followed by the parameter's name."""
    each = lambda name, start=0: np.stack([t[f"{name}.{n}"] for n in range(start, L + start)])
    fused = np.stack([np.concatenate([t[f"{kind}.{n}"].swapaxes(1, 2).reshape(3, 7, C) for kind in ("query", "key", "value")], -1) for n in range(L)])
    found = {"encoded": t["hidden.0"], "ln1": each("ln_1"), "qkv": fused, "att": each("attention"), "atty": each("attended"), "lnf": t["ln_f"]}
    found |= {"residual2": each("middle"), "fch": each("fc"), "fch_gelu": each("gelu"), "residual3": each("hidden", 1)}
    found |= {"logits": np.pad(t["logits"], [(0, 0), (0, 0), (0, 15)]), "mean_loss": t["loss"][None]}
    w, stack = weights(t), lambda name: np.stack([weights(t)[f"h.{n}.{name}"] for n in range(L)])
    found |= {"dwte": w["wte.weight"], "dln1w": stack("ln_1.weight"), "dqkvw": stack("attn.c_attn.weight").swapaxes(1, 2)}
    return found | {"dfcprojb": stack("mlp.c_proj.bias"), "dlnfb": w["ln_f.bias"]}


OTHERS = {"Hugging Face": (hugging_face, 35), "nanoGPT": (nano_gpt, 42), "llm.c": (llm_c, 30)}


@pytest.mark.parametrize("written, at_least", OTHERS.values(), ids=OTHERS)
def test_others_names_and_layouts(bare, written, at_least):
    theirs = written(bare)
    found = compare(bare, theirs)
    assert found.equal and not found.unknown and len(found.lines) >= at_least


@pytest.mark.parametrize("written, name, part", [
    (hugging_face, "transformer.h.1.mlp.c_fc.weight.grad", "grad.model.h.1.mlp.c_fc.weight"),
    (nano_gpt, "grad.transformer.h.0.attn.c_proj.weight", "grad.model.h.0.attn.c_proj.weight"),
    (nano_gpt, "transformer.h.1.attn.c_attn", "value.1"), (llm_c, "att", "attention.0"), (llm_c, "dqkvw", "grad.model.h.1.attn.c_attn.weight"),
])  # fmt: skip
def test_an_error_under_their_names_is_found_under_ours(bare, written, name, part):
    theirs = written(bare)
    theirs[name] = theirs[name].copy()
    theirs[name][..., -1] *= 1 + 1e-6
    first = compare(bare, theirs).first
    assert first.name == part


def test_batch_second_heads_behind_and_one_row(bare):
    theirs = {"hidden.1": bare["hidden.1"].swapaxes(0, 1), "query.0": bare["query.0"].swapaxes(1, 2)}
    theirs["key.0"] = bare["key.0"].swapaxes(1, 2).reshape(3, 7, C)
    found = compare(bare, theirs)
    assert found.equal and {one.note for one in found.lines} == {"batch second", "heads behind tokens", "heads side by side"}
    one = {name: x[:1] for name, x in bare.items() if name.startswith(("hidden", "logits"))}
    assert compare(one, {name: x[0] for name, x in one.items()}).equal


def test_separate_projections_are_put_together(bare):
    def split(transposed):
        parts = {}
        for kind, third in zip("qkv", range(3), strict=True):
            for name in ("weight", "bias"):
                g = bare[f"grad.model.h.0.attn.c_attn.{name}"][..., third * C : (third + 1) * C]
                parts[f"grad.h.0.attn.{kind}_proj.{name}"] = g.T if transposed else g
        return parts

    for transposed in (False, True):
        found = compare(bare, split(transposed))
        assert found.equal and [one.name for one in found.lines] == ["grad.model.h.0.attn.c_attn.bias", "grad.model.h.0.attn.c_attn.weight"]


def test_logits_with_rows_for_the_slots(prompted):
    """n + T rows of logits: the last slot's is the first token's prediction."""
    first = np.repeat(prompted["first_logits"][:, None], 4, axis=1)
    theirs = {"logits": np.concatenate([first, prompted["logits"]], axis=1), "hidden.1": np.pad(prompted["hidden.1"], [(0, 0), (4, 0), (0, 0)])}
    found = compare(prompted, theirs)
    assert found.equal and {one.name for one in found.lines} == {"hidden.1", "logits", "first_logits"}
    theirs["logits"][:, 3] += 1e-9
    assert compare(prompted, theirs).first.name == "first_logits"


def test_rows_padded_on_the_left_are_moved(prompted):
    def moved(x):
        out = np.zeros_like(x)
        for row, n in enumerate((5, 1, 3)):
            out[row, 5 - n :] = x[row, :n]
        return out

    theirs = {name: moved(prompted[name]) for name in ("hidden.0", "hidden.2", "logits")}
    found = compare(prompted, theirs)
    assert found.equal and all("left padding" in one.note for one in found.lines)


def test_what_nobody_knows_is_listed(bare):
    assert align({"hidden.0": bare["hidden.0"], "my.rotary": bare["loss"]}, bare).unknown == ["my.rotary"]
    with pytest.raises(ValueError, match="share no tensor"):
        compare(bare, {"my.rotary": bare["loss"]})


def test_another_shape_is_the_first_difference(bare):
    found = compare(bare, {"hidden.0": bare["hidden.0"], "hidden.1": bare["hidden.1"][:, :, :-1]})
    assert found.first.name == "hidden.1" and "shape [3, 7, 11], not [3, 7, 12]" in found.first.note


def test_a_whole_left_padded_trace_is_moved(prompted):
    """Heads, keys and probabilities too, the slots' own staying in front."""
    lengths, P, T = (5, 1, 3), 4, 5

    def moved(x, axis, slots):
        out = np.zeros_like(x)
        for row, n in enumerate(lengths):
            from_, into = np.moveaxis(x[row], axis - 1, 0), np.moveaxis(out[row], axis - 1, 0)
            into[:slots], into[slots + T - n :] = from_[:slots], from_[slots : slots + n]
        return out

    theirs = {name: moved(prompted[name], 1, 0) for name in ("hidden.0", "ln_1.1", "logits", "losses")}
    theirs |= {"query.0": moved(prompted["query.0"], 2, 0), "key.1": moved(prompted["key.1"], 2, P)}
    theirs["attention.0"] = moved(moved(prompted["attention.0"], 2, 0), 3, P)
    assert compare(prompted, theirs).equal


@pytest.mark.parametrize("name", ["hidden.1", "logits", "query.0", "key.0", "attention.1", "gelu.0", "losses"])
def test_what_stands_in_padding_does_not_count(prompted, name):
    theirs, rows = {name: prompted[name].copy()}, slice(3, None) if name.startswith(("hidden", "logits", "gelu", "losses")) else None
    if rows:
        theirs[name][2, rows] = 7
    else:
        theirs[name][2, :, (4 if name.startswith("key") else 0) + 3 :] = 7
    assert compare(prompted, theirs).equal
    theirs[name] = theirs[name] + 1e-6
    assert not compare(prompted, theirs).equal


def test_queries_keys_and_values_by_their_whole_names(bare):
    whole = bare["grad.model.h.0.attn.c_attn.weight"]
    split = {f"grad.h.0.attn.{kind}.weight": whole[:, n * C : (n + 1) * C] for n, kind in enumerate(("query", "key", "value"))}
    found = compare(bare, split)
    assert found.equal and not found.unknown and len(found.lines) == 1


def test_a_padded_vocabulary_of_a_gradient_and_losses_one_place_earlier(bare):
    theirs = {"encoded": bare["hidden.0"], "dwte": np.pad(bare["grad.model.wte.weight"], [(0, 7), (0, 0)])}
    theirs["losses"] = np.concatenate([bare["losses"][:, 1:], np.zeros((3, 1))], axis=1)
    assert compare(bare, theirs).equal


def test_one_square_weight_turned_is_a_mistake_and_all_of_them_a_layout(bare):
    square, long = "grad.model.h.1.attn.c_proj.weight", "grad.model.h.1.mlp.c_fc.weight"
    assert not compare(bare, {square: bare[square].T, long: bare[long]}).equal
    assert compare(bare, {square: bare[square].T, long: bare[long].T}).equal


def test_a_shared_infinity_hides_nothing(bare):
    reference = bare | {"logits": bare["logits"].copy()}
    reference["logits"][0, 0, 0] = np.inf
    theirs = {"logits": reference["logits"].copy()}
    assert compare(reference, theirs).equal
    theirs["logits"][0, 1:] = 7
    assert compare(reference, theirs).first.name == "logits"
    assert compare(bare, {"logits": np.where(bare["logits"] > 0, np.nan, bare["logits"])}).first.note == "not a number"


def test_odd_names_are_passed_over(bare):
    odd = {"key": bare["loss"], "grad.model.h.0.mlp.up.weight": bare["loss"], "qkvw": bare["loss"], "again.loss": bare["loss"]}
    assert compare(bare | odd, {"logits": bare["logits"]}).equal
    found = compare(bare, {"logits": bare["logits"]} | odd)
    assert found.equal and found.unknown == sorted(odd)

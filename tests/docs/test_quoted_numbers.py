"""The numbers that the pages quote, measured anew; and what the pages claim besides."""

import importlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from helpers import TINY, random_ids, random_params
from minicompress.compression.objectives import likelihood
from minicompress.compression.queries import pad
from minicompress.gpt2 import Config, embed, forward, logits
from minicompress.gpt2.prefix import EMBEDDINGS, Prefix
from minicompress.layers.layernorm import layernorm
from minicompress.prompts.carriers import DOORS, lift, placed, slots_shape
from minicompress.prompts.gradient import slots_gradient
from minicompress.prompts.parameterisations import cartridge, direct, low_rank, prefix_mlp, ptuning_lstm, ptuning_mlp
from minicompress.training.adamw import adamw_init, adamw_step
from minicompress.training.shards import Shards
from minicompress.trees import flatten, tree_map
from minicompress.verification.oracles import relative_error

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def figure(monkeypatch):
    """A figure's script as a module, by its name."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(DOCS / "figures")
    return importlib.import_module


def assert_quoted(page, *words):
    """The page has these very words, wherever its lines break."""
    text = " ".join(next(DOCS.glob(f"{page}-*.md")).read_text(encoding="utf-8").split())
    assert not (missing := [some for some in words if some not in text]), missing


def test_05_what_each_top_k_form_makes_of_the_gradient(figure):
    module = figure("05-top-k")
    assert_quoted("05", f"{len(module.pair()[0])} tokens of questions", f"the student has {module.SLOTS} of its tokens")
    for name, share in (("far", 1.0), ("near", module.NEAR)):
        truth, values, errors = module.measured(share)
        for form, row in errors.items():
            found = [row[module.KS.index(k)] for k in (1, 5, 20, 100)]
            assert_quoted("05", f"| {form}, {name} | " + " | ".join(f"{e:.2g}" if e >= 0.01 else f"{e:.4f}" for e in found) + " |")
        assert (np.diff(values["tail bucket"]) >= -1e-14).all() and values["tail bucket"][-1] == pytest.approx(truth, rel=1e-12)
    mass = np.sort(np.exp(module.pair()[0]))[:, ::-1].cumsum(-1).mean(0)
    assert_quoted("05", f"hold {mass[19]:.1%} of the teacher's mass on average, the likeliest alone {mass[0]:.0%}", f"{module.NEAR:.0%} of the difference")


@pytest.fixture
def notes(figure):
    """The figure's module; the embedded model, the notes' ids and the questions."""
    module = figure("07-positions")
    return module, *module.opened()


def test_07_one_prompt_under_each_convention(notes):
    module, model, ids, queries = notes
    whole, half = module.prompts(model, ids, queries).values()
    at = lambda kv, start: module.loss_at(model, queries, kv, start)
    n, P = whole.shape[3], half.shape[3]
    assert_quoted("07", f"{n} tokens", f"the {len(queries)} questions", f"the {P} that the questions look at most")
    assert_quoted("07", f"| all {n} keys | {at(whole, 0):.2f} | {at(whole, n):.4f} | {at(whole, n):.4f} |")
    assert_quoted("07", f"| {P} of them | {at(half, 0):.2f} | {at(half, P):.2f} | {at(half, n):.3f} |")


def test_07_a_zero_prefix_is_not_nothing(notes):
    module, model, _, queries = notes
    none, zero = module.losses(model, Prefix(), *pad(queries)).mean(), np.zeros(slots_shape("kv", model[1], 1))
    unshifted, compact = (module.loss_at(model, queries, zero, start) for start in (0, 1))
    assert_quoted("07", f"it is {none:.2f}", f"from {none:.2f} to {unshifted:.2f}, or to {compact:.2f} where it shifts")
    massless = {"slots": zero, "beta": np.full(zero[:, 0, ..., 0].shape, -np.inf)}
    assert module.loss_at(model, queries, massless, 0) == pytest.approx(none, rel=1e-13)


def test_07_the_first_token_is_scored_by_embeddings_alone(notes):
    module, model, ids, queries = notes
    rows, _ = pad(queries)
    real = np.arange(rows.shape[1]) < np.array([[len(query.ids)] for query in queries])
    later = real & (np.arange(rows.shape[1]) > 0)
    embeddings = model[0]["wte"]["weight"][ids]
    prompts = EMBEDDINGS.read(*model, embeddings)[0], DOORS["kv"].read(*model, lift(*model, embeddings, "kv"))[0]
    soft, prefix = module.losses(model, prompts[0], rows, real), module.losses(model, prompts[1], rows, later)
    assert relative_error(prefix, module.losses(model, prompts[0], rows, later)) < 1e-12
    assert_quoted("07", f"{soft.mean():.3f} ({len(soft)} targets)", f"{prefix.mean():.3f} ({len(prefix)})")
    with pytest.raises(ValueError, match="first token"):
        module.losses(model, prompts[1], rows, real)


@pytest.mark.parametrize("carrier", ["hidden", "kv"])
def test_07_slots_that_compute_nothing_may_be_shuffled(carrier, rng):
    params, ids, order = random_params(TINY, rng), random_ids(TINY, rng, 2, 5), [2, 0, 3, 1]
    slots = rng.standard_normal(slots_shape(carrier, TINY, 4))
    read = lambda slots: forward(params, TINY, embed(params, ids, 4), DOORS[carrier].read(params, TINY, slots)[0].past)[0]
    assert relative_error(read(slots.take(order, axis=slots.ndim - 2)), read(slots)) < 1e-13


@pytest.mark.peers
def test_07_left_padding_elsewhere_leaves_a_gap():
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from peers.peer_models import peer, to_numpy, tree_of

    P, pads, ids = 4, 3, [[3, 5, 7, 9]]
    theirs = peer(TINY, seed=0)
    params = tree_of(theirs)
    theirs = peft.get_peft_model(theirs, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)).double().eval()
    slots = to_numpy(theirs.get_prompt(1)[0]).astype(float)

    def ours(start):
        prefix, _ = placed(EMBEDDINGS, start).read(params, TINY, slots)
        return logits(params, forward(params, TINY, embed(params, ids, prefix.start), prefix.past)[0])

    mask = torch.tensor([[0] * pads + [1] * 4])
    given = {"input_ids": torch.tensor([[0] * pads + ids[0]]), "attention_mask": mask}
    with pytest.warns(UserWarning, match="Ignoring position ids"):
        repaired = theirs(**given, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    padded = theirs(**given).logits
    assert torch.equal(repaired, padded)
    assert relative_error(to_numpy(padded)[:, P + pads :], ours(P + pads)) < 1e-12
    assert relative_error(to_numpy(padded)[:, P + pads :], ours(P)) > 1e-2


def test_08_fits_of_the_carriers(figure):
    module = figure("08-carriers")
    _, found = module.mean_fits()
    for carrier in DOORS:
        values = [found[carrier, P][1] for P in module.SLOTS]
        assert_quoted("08", f"| `{carrier}` | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    ranks = [np.linalg.matrix_rank(module.jacobian(carrier), tol=1e-9) for carrier in DOORS]
    assert_quoted("08", "the {}, {} and {} directions".format(*ranks))


def test_08_numbers_of_the_carriers():
    small, P = Config(), 20
    at_run_time = np.prod(slots_shape("kv", small, P))
    for carrier in DOORS:
        assert_quoted("08", f"| `{carrier}` | {np.prod(slots_shape(carrier, small, P)):,} | {at_run_time:,} |")


def test_08_a_hidden_slot_is_bounded(rng):
    """|x̂|² < C, so no key is longer than what the weights make of that."""
    C = TINY.n_embd
    xhat, _ = layernorm(10.0 ** rng.uniform(-4, 2, (50, 1)) * rng.standard_normal((50, C)), np.ones(C), np.zeros(C))
    assert ((xhat * xhat).sum(-1) < C).all()


@pytest.mark.parametrize("carrier", ["embeddings", "hidden"])
def test_08_one_gradient_up_to_the_door(carrier, figure, rng):
    """What keys and values are asked, taken back through the prefix's derivative, is the slots' gradient."""
    module, P = figure("08-carriers"), 2
    model, ids = (module.random_params(module.CONFIG, 0), module.CONFIG), random_ids(module.CONFIG, rng, 3, 6)
    slots = lift(*model, np.random.default_rng(0).standard_normal((P, module.CONFIG.n_embd)), carrier)
    scored = np.arange(6) > np.zeros((3, 1))  # all but the first tokens
    objective = lambda rows, weight: likelihood(ids[rows][:, 1:].ravel(), weight)
    past = DOORS[carrier].read(*model, slots)[0].past
    with Shards(1) as shards:
        _, dslots = slots_gradient(model, slots, ids, scored, objective, shards, DOORS[carrier])
        kv = np.stack([np.stack([k[0], v[0]]) for k, v in past])
        _, dkv = slots_gradient(model, kv, ids, scored, objective, shards, DOORS["kv"])
    assert relative_error(module.jacobian(carrier, P).T @ dkv.ravel(), dslots.ravel()) < 1e-12


def test_09_trained_numbers():
    C, L, P, rng = 768, 12, 20, np.random.default_rng(0)
    kv = np.zeros(slots_shape("kv", Config(), P), np.float32)
    made = {
        "`direct`, embeddings | P C": direct.init(rng, np.zeros((P, C))),
        "`direct`, kv | 2 L P C": direct.init(rng, kv),
        "`cartridge`, 1 slot fixed | 2 L (P − 1) C": cartridge.init(rng, kv),
        "`low_rank` of kv, r = 8 | r (P + 2 L C)": low_rank.init(rng, kv, 8),
        "`prefix_mlp`, h = C | P C + (C + 1) h + (h + 1) 2 L C": prefix_mlp.init(rng, P, L, C, C),
        "`ptuning_mlp`, h = C | P C + (C + 1) h + (h + 1) h + (h + 1) C": ptuning_mlp.init(rng, P, C, C),
        "`ptuning_lstm`, h = C, 2 layers | P C + 46 C² + 35 C": ptuning_lstm.init(rng, P, C, C),
    }
    for words, raw in made.items():
        trained = sum(x.size for name, x in flatten(raw).items() if name not in ("base", "frozen"))
        bakes_to = P * C if "ptuning" in words or "embeddings" in words else kv.size
        assert_quoted("09", f"| {words} | {trained:,} | {bakes_to:,} |")
    assert 46 * C**2 + 35 * C + P * C == 27174144 and 8 * (P + 2 * L * C) == 147616
    assert round(14780160 * 4 / 1e6) == 59 and round(kv.nbytes / 1e6, 1) == 1.5


def test_09_any_slots_are_reached_by_the_last_layer(rng):
    P, C, L, H = 4, 12, 2, 3
    encoders = {
        "transform": (prefix_mlp.init(rng, P, L, C, 8, np.float64), partial(prefix_mlp.bake, n_layer=L, n_head=H), "2"),
        "mlp_head": (ptuning_mlp.init(rng, P, C, 8, np.float64), ptuning_mlp.bake, "4"),
        "lstm": (ptuning_lstm.init(rng, P, C, 8, dtype=np.float64), ptuning_lstm.bake, "2"),
    }
    for name, (raw, bake, number) in encoders.items():
        last = raw["transform" if name == "transform" else "mlp_head"][number]
        width, wanted = last["weight"].shape[1], rng.standard_normal(bake(raw)[0].shape)
        rows = low_rank.rows  # keys and values as (P, 2 L C)
        before = np.linalg.lstsq(last["weight"].T, (rows(bake(raw)[0]) - last["bias"]).T, rcond=None)[0].T  # Z (P, h)
        solution = np.linalg.lstsq(np.c_[before, np.ones(P)], rows(wanted), rcond=None)[0]
        last["weight"][:], last["bias"][:] = solution[:-1], solution[-1]
        assert width >= 8 and relative_error(bake(raw)[0], wanted) < 1e-10, name


@pytest.mark.parametrize("name", ["direct", "low rank", "MLP"])
def test_09_a_step_is_preconditioned(name, figure):
    """Δσ is -rate J Jᵀ g, exactly (direct, and low rank from b = 0) or but for terms of the rate's square."""
    module = figure("09-preconditioner")
    raw, bake, bake_backward = module.parameterisations()[name]
    (slots, cache), J = bake(raw), module.jacobian(raw, bake, bake_backward)
    g = np.random.default_rng(5).standard_normal(slots.shape)
    draw = bake_backward(g, cache)
    first_order = module.preconditioned(raw, bake, draw)
    assert relative_error(first_order.ravel(), J @ J.T @ g.ravel()) < 1e-12

    def remainder(rate):
        moved = bake(tree_map(lambda x, d: x - rate * d, raw, draw))[0] - slots
        return np.linalg.norm(moved + rate * first_order)

    if name == "MLP":
        assert remainder(1e-3) / remainder(5e-4) == pytest.approx(4, abs=0.1)
    else:
        assert remainder(1e-3) < 1e-13


def test_09_eigenvalues(figure):
    module = figure("09-preconditioner")
    values = {name: np.linalg.svd(module.jacobian(*made), compute_uv=False) ** 2 for name, made in module.parameterisations().items()}
    assert values["direct"] == pytest.approx(1) and (values["low rank"][-96:] < 1e-12).all() and values["low rank"][95] > 1
    mlp = values["MLP"]
    assert_quoted("09", f"from {mlp.min():.1f} to {mlp.max():.1f}, with a mean of {mlp.mean():.1f}", f"direct training at {mlp.mean():.1f} times")


def test_09_lines_and_dots_are_the_same_to_the_eye(figure):
    module = figure("09-preconditioner")
    with Shards(1) as shards:
        f = module.problem(shards)
        for made in module.parameterisations().values():
            by_raw, by_slots = module.descend(f, *made, module.RATE)
            assert np.abs(np.subtract(by_raw, by_slots)).max() < 0.002


def test_09_what_the_baked_slots_do_not_tell(figure):
    module, steps = figure("09-preconditioner"), 30
    raw, bake, bake_backward = module.parameterisations()["MLP"]

    def train(f, raw, bake, bake_backward, state=None, steps=steps):
        """[first loss, last loss], and Adam's moments; raw is trained in place."""
        state, first = state or adamw_init(raw), f(bake(raw)[0])[0]
        for _ in range(steps):
            slots, cache = bake(raw)
            adamw_step(raw, bake_backward(f(slots)[1], cache), state, 0.01)
        return (first, f(bake(raw)[0])[0]), state

    with Shards(1) as shards:
        f = module.problem(shards)
        whole = train(f, tree_map(np.copy, raw), bake, bake_backward, steps=2 * steps)[0]
        raw = tree_map(np.copy, raw)
        _, state = train(f, raw, bake, bake_backward)
        fresh, slots = tree_map(np.copy, raw), {"slots": bake(raw)[0]}
        both = train(f, raw, bake, bake_backward, state)[0]
        only_raw = train(f, fresh, bake, bake_backward)[0]
        only_slots = train(f, slots, direct.bake, direct.bake_backward)[0]
        anew = prefix_mlp.init(np.random.default_rng(9), module.P, 2, 12, 24, np.float64)
        nothing = train(f, anew, bake, bake_backward)[0]
    assert both[1] == whole[1]
    row = lambda words, pair: f"| {words} | {pair[0]:.3f} | {pair[1]:.3f}"
    assert_quoted("09", row("raw arrays and moments", both), row("raw arrays, moments of zero", only_raw))
    assert_quoted("09", row("slots, trained on directly", only_slots), row("nothing but the recipe: an encoder drawn anew", nothing))


def test_10_releases(figure):
    """The table and the numbers around it are those of the kept results."""
    script = figure("10-releases")
    assert_quoted(10, *script.table())
    steps = {name: [run[name]["steps"] for run in script.FOUND.values()] for name in ("tuned on", "tuned anew")}
    (a, b), (c, d) = ((min(some), max(some)) for some in steps.values())
    worst = min(run["soft from 1 shown"]["accuracy"][1] for run in script.FOUND.values())
    words = next(iter(script.FOUND.values()))["read as words"]["text"]
    assert_quoted(10, f"{a} to {b} steps instead of {c} to {d}", f"they fall to {worst:.0%}", f"`{words}`")


def test_06_curve(figure):
    script = figure("06-curve")
    each = lambda name, of: [of(script.of(slots, name)) for slots in script.SLOTS]
    line = lambda name, cells, form: f"| {name} | " + " | ".join(form.format(cell) for cell in cells) + " |"
    assert_quoted(
        "06",
        line("gap closed, mean", each("gap_closed", np.mean), "{:.1%}"),
        line("gap closed, worst run", each("gap_closed", np.min), "{:.1%}"),
        line("recall", each("recall", np.mean), "{:.0%}"),
        f"recalls {np.mean(each('recall_full', np.mean)):.0%} of them",
    )


def test_12_tables(figure):
    """The tables, and the accuracies named around the first figure, are those of the kept results."""
    assert_quoted(12, *figure("12-ways").table(), *figure("12-savings").table())
    mean = figure("12-beginnings").mean
    low, high = (mean("groups", how, 8, 0.003) for how in ("normal", "uniform"))
    best = {how: max(mean("facts", how, 8, lr) for lr in figure("12-beginnings").RATES) for how in ("noise", "vocab", "uniform", "normal")}
    assert_quoted(12, f"`normal` has {low:.0%} on groups where `uniform` has {high:.0%}")
    assert_quoted(12, f"`noise` reaches {best['noise']:.0%}, `vocab` and `uniform` {best['vocab']:.0%}, `normal` at its best rate {best['normal']:.0%}")
    assert best["vocab"] == best["uniform"]


def test_18_tables(figure):
    """The tables and what is said of their numbers are those of the kept run."""
    script = figure("18-verdicts")
    counts = script.FOUND["counts"]
    assert_quoted(18, *script.every_kind(), *script.singles())
    assert_quoted(18, f"| 0.21.2 | 5.24.0 | {counts['agrees']} | {counts['differs: a convention']} | {counts['differs: a defect']} | 0 |")
    most = max(script.worst("logits, rows padded on the right"), script.worst("the gradient of all that is trained"))
    assert_quoted(18, f"agree to {most:.0e}".replace("e-0", "e-"), f"agree to {script.worst('the loss that is returned'):.0e}".replace("e-0", "e-"))
    measured = [row["difference"] for row in script.FOUND["rows"] if row["difference"] is not None]
    assert not [x for x in measured if 2e-7 < x < 0.1]
    versions = script.FOUND["versions"]
    assert_quoted(18, f"PEFT {versions['peft']} on Transformers {versions['transformers']} and PyTorch {versions['torch'].split('+')[0]}")


def test_19_what_trained_compressors_keep(figure):
    """Every line of the table, what is said below it, and the stream, are those of the kept runs."""
    script = figure("19-compressors")
    shown = {"gist, one segment": (1, 8, 32), "icae": (4, 8), "rmt": (1, 16), "ccm-mean": (1, 16),
             "autocompressor, overwriting": (1, 16)}  # fmt: skip
    for label in script.KINDS:
        assert_quoted(19, *(script.row(label, size) for size in shown.get(label, (1, 4, 8))))
    recall = lambda label, size: f"{script.recall(script.of_size(label, size)):.0f}%"
    full = script.recall(script.of_size("gist", 8), "full")
    assert_quoted(19, f"The full notes are recalled at {full:.0f}%", f"recalls {recall('gist, one segment', 32)} however many")
    assert_quoted(19, f"{recall('gist', 4)} with four, {recall('gist', 8)} with eight", f"recalls {recall('icae', 4)}. An")
    learned = [label for label in script.KINDS if label != "autocompressor, overwriting"]
    widths = [high - low for label in learned for size in (4, 8) for low, high in [script.interval(label, size)]]
    assert min(widths) / 2 > 1 and max(widths) / 2 < 3, "about two points to either side"


def test_19_what_is_left_of_a_stream(figure):
    script = figure("19-compressors")
    for label, end in (("500x", 12), ("ccm", 12), ("autocompressor", 24), ("rmt", 24), ("ccm-mean", 24)):
        gaps = dict(script.over_stream(label, "sigma"))
        assert_quoted(19, f"{gaps[1]:.0f}% after one note and {gaps[end]:.0f}% after {end} (`{label}`)")
    tokens, last = script.of_kind("rmt", "passed")[-1]["tokens"], dict(script.over_stream("rmt", "last"))[24]
    assert_quoted(19, f"By then {tokens} tokens have passed", f"the last ones, keep {last:.0f}%")


def test_19_compressors_do_better_than_truncation(figure):
    """Each at every size, to as many slots; in the stream at every length, but for the one that carries nothing on."""
    script = figure("19-compressors")
    for label in script.KINDS:
        for size in script.SIZES:
            if chosen := script.of_size(label, size):
                assert script.gap(chosen, "sigma") > max(script.gap(chosen, name) for name in ("first", "last")), (label, size)
        last, ours = (dict(script.over_stream(label, name)) for name in ("last", "sigma"))
        if label == "autocompressor, overwriting":
            assert all(ours[passed] < last[passed] for passed in ours if passed >= 4)
        else:
            assert all(ours[passed] > last[passed] for passed in ours)


def test_19_what_is_left_of_prose(figure):
    script = figure("19-compressors")
    assert_quoted(19, *(script.prose(tokens) for tokens in (64, 192, 384)))
    cost = {name: f"{script.bits(name, 96, 'sigma'):.1f}" for name in ("500x", "ccm")}
    assert_quoted(19, f"slots of `500x` cost {cost['500x']} bits a token, those of `ccm` {cost['ccm']}, where nothing at all costs")
    better = [script.bits("books", tokens, "sigma") < script.bits("books", tokens, "last") for tokens in (64, 192, 384)]
    assert better == [True, False, False]


def test_20_what_attention_matching_keeps(figure):
    """Every line of the table, what is said of the other choice of keys, and the times, are those of the kept run."""
    script = figure("20-matching")
    assert_quoted(20, *(script.row("rms", slots) for slots in (*script.SIZES, None)))
    omp = [f"{np.mean(script.gaps(script.runs('omp', slots))):.0f}%" for slots in (8, 16, 32)]
    assert_quoted(20, f"by `omp` closes {omp[0]} with eight slots, {omp[1]} with 16, {omp[2]} with 32")
    seconds = {line["tokens"]: f"{line['seconds']:.1f} s" for line in script.FOUND if "choose" not in line}
    assert_quoted(20, f"{seconds[256]} for 256 and {seconds[488]} for 488")
    assert min(script.gaps(script.runs("rms"))) > 80

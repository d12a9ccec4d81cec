"""One prompt of keys and values under three conventions of positions, on the embedded model: what each costs."""

import json

import numpy as np
from common import BLUE, FIGURES, GREEN, GREY, ORANGE, RED, plt, save

import weights_loader
from minicompress.compression.queries import pad, question_query
from minicompress.gpt2 import Config, embed, forward, logits
from minicompress.gpt2.prefix import Prefix, predictors
from minicompress.layers.attention import probabilities
from minicompress.layers.losses import cross_entropy
from minicompress.prompts.carriers import DOORS, lift, placed, start_of

EXAMPLES, KEPT = FIGURES.parents[1] / "examples", 48
COLOURS = {"unshifted": RED, "compact": GREEN, "logical": BLUE}


def opened():
    """The embedded model in float64, the ids of the notes, and the questions about them."""
    params, raw = weights_loader.load(weights_loader.EMBEDDED, "float64")
    tokenizer = weights_loader.load_tokenizer(weights_loader.EMBEDDED)
    lines = [json.loads(line) for line in (EXAMPLES / "questions.jsonl").read_text().splitlines()]
    queries = [question_query(tokenizer, line["question"], line["answer"]) for line in lines]
    return (params, Config.from_dict(raw)), tokenizer.encode((EXAMPLES / "notes.txt").read_text()).ids, queries


def losses(model, prefix, ids, scored):
    """Cross-entropy in nats of every scored target (N,)."""
    hidden, _ = predictors(*model, prefix, ids, scored)
    return cross_entropy(logits(model[0], hidden), ids[scored])[0]


def loss_at(model, queries, kv, start):
    """Mean loss of the answers behind kv slots, where the questions begin at position `start`."""
    return losses(model, placed(DOORS["kv"], start).read(*model, kv)[0], *pad(queries)).mean()


def most_looked_at(model, queries, kv, keep):
    """The slots, in order, that the questions and answers give most probability, over all layers and heads."""
    (ids, _), P = pad(queries), kv.shape[3]
    _, _, (caches, _) = forward(*model, embed(model[0], ids, P), DOORS["kv"].read(*model, kv)[0].past)
    real = np.arange(ids.shape[1]) < np.array([[len(query.ids)] for query in queries])  # (B, T)
    probs = [probabilities(cache["attn"]["attention"])[..., :P].swapaxes(1, 2)[real] for cache in caches]  # (N, H, P)
    return np.sort(np.argsort(sum(p.sum((0, 1)) for p in probs))[-keep:])


def prompts(model, ids, queries):
    """{name: kv (L, 2, H, P, D)}: the notes' own keys and values, and the half of them that is looked at most."""
    kv = lift(*model, model[0]["wte"]["weight"][ids], "kv")
    return {f"all {len(ids)} keys": kv, f"{KEPT} of them": kv[:, :, :, most_looked_at(model, queries, kv, KEPT)]}


def draw_lines(axes):
    """Three lines of positions: a text of eight, of which four keys are kept, and four tokens behind them."""
    kept, T, text = (0, 3, 4, 7), 4, 8
    for row, (name, colour) in enumerate(COLOURS.items()):
        y, start = -2.2 * row, start_of(name, len(kept), text if name == "logical" else None)
        axes.plot([-0.5, text + T - 0.5], [y, y], color=GREY, lw=0.8, zorder=0)
        for s in range(text):
            axes.text(s, y + 0.42, s, ha="center", va="center", color="k" if s in kept else "#bbbbbb",
                      bbox={"boxstyle": "square,pad=0.25", "fc": "#f6dcb4" if s in kept else "w", "ec": ORANGE if s in kept else "#cccccc"})  # fmt: skip
        for t in range(start, start + T):
            axes.text(t, y - 0.42, t, ha="center", va="center", color="w", bbox={"boxstyle": "square,pad=0.25", "fc": colour, "ec": colour})
        axes.text(-0.5, y + 1.0, name, color=colour, weight="bold", va="center")
    axes.set(xlim=(-0.8, text + T - 0.2), ylim=(-5.2, 1.7), xticks=[], yticks=[], title="keys kept of a text, and tokens behind them")
    axes.spines[["left", "bottom"]].set_visible(False)


def main():
    model, ids, queries = opened()
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.3), gridspec_kw={"width_ratios": [1, 1.1]})
    draw_lines(left)
    starts = sorted({*range(0, 150, 10), KEPT, len(ids)})
    for (name, kv), style in zip(prompts(model, ids, queries).items(), ("--", "-"), strict=True):
        right.semilogy(starts, [loss_at(model, queries, kv, s) for s in starts], style, color=GREY, lw=1.2, label=name)
        for position, colour in COLOURS.items():
            start = start_of(position, kv.shape[3], len(ids) if position == "logical" else None)
            right.semilogy(start, loss_at(model, queries, kv, start), "o", ms=6, color=colour, label=position if style == "-" else None)
    right.axhline(losses(model, Prefix(), *pad(queries)).mean(), color="k", lw=0.8, ls=":", label="no context")
    right.set(xlabel="position of the questions' first token", ylabel="loss of the answers, nats a token")
    right.legend(fontsize=8, loc="lower left")
    save(figure, __file__)


if __name__ == "__main__":
    main()

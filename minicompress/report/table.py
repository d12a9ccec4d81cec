"""The honest table, as text for a terminal."""

import math

NAMES = {
    "full": "full context",
    "none": "no context",
    "first": "first {k} tokens",
    "last": "last {k} tokens",
    "first-last": "first and last, {k}",
    "random": "random {k} tokens",
    "selective": "least guessed {k}",
    "pooled-embeddings": "mean embeddings",
    "pooled-kv": "mean keys, values",
    "h2o": "H2O, {k} a head",
    "snapkv": "SnapKV, {k} a head",
    "init": "slots, untrained",
    "sigma": "slots, trained",
    "other": "other text's slots",
    "queries": "slots, answers only",
}


def number(value, form):
    return "–" if value is None else format(value, form)


def evaluation_table(result, asked="held-out queries"):
    """A rich Table of `evaluate`'s result, 80 columns wide; asked: what they are, as far as anybody knows."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{result['queries']} {asked}; KL from the full context, in bits per token"
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
    )
    table.add_column("before the question", no_wrap=True)
    for heading in ("length", "KL", "95%", "gap closed", "top-1", "recall"):
        table.add_column(heading, justify="right", no_wrap=True)
    labels = NAMES | ({"sigma": result["producer"]} if "producer" in result else {})  # where nothing was trained
    for name, label in labels.items():
        if name not in result["rows"]:
            continue
        row = result["rows"][name]
        gap, interval = row["gap_closed"], row["gap_closed_interval"]
        wanted = interval and name not in ("none", "full") and interval[0] > -10  # else too long for the line
        span = f" ({100 * interval[0]:.0f} to {100 * interval[1]:.0f})" if wanted else ""
        shown = number(gap, ".0%" if gap is not None and gap <= -1 else ".1%") + span
        table.add_row(
            label.format(k=result["slots"]), str(row["positions"]), f"{max(row['kl'], 0):.3f}", f"{row['kl_p95']:.2f}",
            shown, f"{row['top1_agreement']:.1%}", number(row["recall"], ".1%"),
            style="bold green" if name == "sigma" else None,
        )  # fmt: skip
    return table


def cost_line(result):
    """Ratio, bytes and seconds in one sentence."""
    even, ratio = result["break_even_queries"], result["ratio"]
    fewer = f"{ratio:.1f} times fewer positions" if ratio else "low-rank weights of that size take no position"
    return (
        f"{result['context_tokens']:,} tokens in {result['slots']} slots: {fewer}, "
        f"keys and values {result['kv_bytes_context'] / 1024:,.0f} -> {result['kv_bytes_slots'] / 1024:,.0f} KiB; "
        f"{result['seconds']:.1f} s to make, "
        + (f"paid back after {even:,.0f} queries" if even else "which a query of this length does not pay back")
    )


def contexts_table(results, most=40):
    """A rich Table of what many contexts have become; of more than `most` those that keep least."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("context")
    for heading in ("tokens", "slots", "KL", "gap closed", "recall", "of full", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    if len(results) > most:
        table.title, table.title_justify = f"the {most} of {len(results):,} that keep least", "left"
        worth = lambda result: math.inf if result.get("gap_closed") is None else result["gap_closed"]
        results = sorted(results, key=worth)[:most]
    for r in results:
        shown = [f"{r['context_tokens']:,}", str(r["slots"]), number(r.get("kl_sigma"), ".3f")]
        shown += [number(r.get(name), ".1%") for name in ("gap_closed", "recall_sigma", "recall_full")]
        table.add_row(r["name"], *shown, f"{r['seconds']:.1f}")
    return table

"""A soft prompt as its inspection shows it: a dict for JSON, tables for a terminal, and a picture."""

import math

import numpy as np

from minicompress.training.checkpoints import replace_file

WIDTH = 100  # columns of a table
LENS_COLUMNS = 5
SHOWN = 11  # columns of a token
LETTERS_PER_INCH = 10  # of a picture's whole width, below its heat map
BLUE, ORANGE, GREEN, GREY = "#3465a4", "#ce7b00", "#4e8a06", "#8a8a8a"


def plain(found, decode):
    """The numbers of `inspection` as JSON can hold them: None for what is infinite or not known, tokens in words.

    found: {"nearest", "moved"} and what `over_texts` gives. decode: a list of ids -> text. Gives
    nearest: {cosine, euclidean}, for each slot k times {id, token, value}; moved: {distance, relative,
    cosine}, each (P), or None; attention: {slots (L, H, P), prompt (L, H)}; lens: for each state and slot
    {id, token, probability}, or None; left_out: {kl, loss, places}, each (P).
    """
    nearest, lens, moved, attention = found["nearest"], found["lens"], found["moved"], found["attention"]
    return {
        "nearest": {measure: words(ids, values, "value", decode) for measure, (ids, values) in nearest.items()},
        "moved": moved and {name: numbers(values) for name, values in moved.items()},
        "attention": {"slots": numbers(attention), "prompt": numbers(attention.sum(-1))},
        "lens": lens and words(*lens, "probability", decode),
        "left_out": {name: numbers(found[name]) for name in ("kl", "loss", "places")},
    }


def numbers(values):
    """Nested lists of an array's numbers, None where one is none."""
    return [numbers(row) for row in values] if values.ndim else values.item() if np.isfinite(values) else None


def words(ids, values, name, decode):
    """(n, m) token ids and values -> n lists of {"id", "token", name}."""
    rows = zip(ids.tolist(), values.tolist(), strict=True)
    return [[{"id": i, "token": decode([i]), name: value} for i, value in zip(*row, strict=True)] for row in rows]


def visible(token):
    """A token in few printable characters: ␣ for a space, escapes for what does not print."""
    from rich.cells import cell_len, set_cell_size

    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in token.replace(" ", "␣"))
    return text if cell_len(text) <= SHOWN else set_cell_size(text, SHOWN - 1) + "…"


def tables(result):
    """Lines and Rich tables, 100 columns wide: what the slots do, the tokens nearest to them, and the logit lens."""
    share = np.array(result["attention"]["prompt"]).mean(1)
    parts = [
        f"{heading(result)}; what is lost without a slot is in bits per token", effects(result),
        f"attention to all slots, layer by layer: {' '.join(f'{x:.0%}' for x in share)}",
        f"\nnearest tokens, {COMPARED[result['carrier']]}", neighbours(result),
    ]  # fmt: skip
    if result["lens"]:
        parts += ["\nlogit lens: the token that each slot's state would predict, before a layer", lens_table(result)]
    return parts


def heading(result):
    count = lambda n, what: f"{n} {what}{'s' * (n != 1)}"
    return f"{result['prompt']}: {count(result['slots'], 'slot')}, read with {count(result['texts'], 'text')}"


COMPARED = {
    "embeddings": "slot against wte",
    "hidden": "slot in layer 0 against wte + wpe of its place",
    "kv": "slot's key in layer 0 against those of tokens in its place",
}
MOVED = {"distance": ("moved", ".2f"), "relative": ("of its length", ".0%"), "cosine": ("cosine", ".2f")}


def new_table(*headings, justify="left"):
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("slot", justify="right", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify=justify, no_wrap=True)
    return table


def effects(result):
    """A row for each slot: how far it moved, how much attention it gets, and what is lost without it."""
    moved, left, attention = result["moved"] or {}, result["left_out"], np.array(result["attention"]["slots"])
    lost = {name: heading for name, heading in (("kl", "KL without"), ("loss", "loss added")) if left[name]}
    table = new_table(*(MOVED[name][0] for name in moved), "attention", "most in", *lost.values(), justify="right")
    for p in range(result["slots"]):
        layer, head = np.unravel_index(attention[..., p].argmax(), attention.shape[:2])
        cells = [number(values[p], MOVED[name][1]) for name, values in moved.items()]
        cells += [f"{attention[..., p].mean():.1%}", f"{attention[layer, head, p]:.0%} layer {layer} head {head}"]
        table.add_row(str(p), *cells, *(number(left[name][p], ".3f") for name in lost))
    return table


def number(value, form):
    """A number as text, never "-0.000"; – where there is none."""
    if value is None:
        return "–"
    text = format(value, form)
    return text if any(c in text for c in "123456789") else text.removeprefix("-")


def neighbours(result):
    """A row for each slot: as many of its nearest tokens as the line holds."""
    from rich.text import Text

    table, room = new_table("cosine", "distance"), (WIDTH - 10) // 2
    for p in range(result["slots"]):
        lists = (result["nearest"][measure][p] for measure in ("cosine", "euclidean"))
        told = ([f"{visible(near['token'])} {near['value']:.2f}" for near in some] for some in lists)
        table.add_row(str(p), *(Text(fitting(entries, room)) for entries in told))
    return table


def fitting(entries, room):
    """As many entries in one line as there is room for, at least one."""
    from rich.cells import cell_len

    line = entries[0]
    for entry in entries[1:]:
        if cell_len(line) + 3 + cell_len(entry) > room:
            break
        line += f"   {entry}"
    return line


def lens_table(result):
    """A row for each slot: the token its residual stream would predict, before some layers and after the last."""
    from rich.text import Text

    lens = result["lens"]
    shown = np.unique(np.linspace(0, len(lens) - 1, min(len(lens), LENS_COLUMNS)).round().astype(int))
    table = new_table(*("the end" if n == result["layers"] else f"layer {n}" for n in shown))
    for p in range(result["slots"]):
        told = (lens[n][p] for n in shown)
        table.add_row(str(p), *(Text(f"{visible(t['token'])} {t['probability']:.0%}") for t in told))
    return table


def figure(result, path):
    """Draws what is lost without each slot, how far it moved and how much it is looked at, in the path's format."""
    from matplotlib.figure import Figure

    P, (L, H, _) = result["slots"], np.shape(result["attention"]["slots"])
    bars = {"KL without,\nbits per token": (result["left_out"]["kl"], BLUE)}
    if result["moved"]:
        bars["distance\nmoved"] = (result["moved"]["distance"], ORANGE)
    height = min(max(2.4, 0.12 * L * H), 7)
    size = min(max(7, 3.2 + 0.3 * P), 14), 1.1 * len(bars) + height + 1.2
    drawn = Figure(figsize=size, layout="constrained")
    grid = drawn.add_gridspec(len(bars) + 1, 2, width_ratios=(5, 1), height_ratios=[1.1] * len(bars) + [height])
    heat = drawn.add_subplot(grid[-1, 0])
    for row, (label, (values, colour)) in enumerate(bars.items()):
        draw_bars(drawn.add_subplot(grid[row, 0], sharex=heat), label, values, colour)
    draw_attention(drawn, heat, drawn.add_subplot(grid[-1, 1], sharey=heat), result["attention"])
    label_slots(heat, result, size[0])
    drawn.suptitle(heading(result), fontsize=10, parse_math=False)
    replace_file(path, lambda beside: drawn.savefig(beside, dpi=130, format=path.suffix[1:]))


def draw_bars(axes, label, values, colour):
    """One bar for each slot; none where the value is not known."""
    axes.bar(range(len(values)), [value or 0 for value in values], color=colour, width=0.7)
    axes.set_ylim(0, None if any(values) else 1)
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params(labelsize=8, labelbottom=False, bottom=False)
    axes.spines[["top", "right"]].set_visible(False)


def draw_attention(drawn, heat, side, attention):
    """The attention of each layer and head to each slot, and to all of them together at the side."""
    from matplotlib.colors import PowerNorm

    slots, prompt = np.array(attention["slots"]), np.array(attention["prompt"])
    L, H, P = slots.shape
    scale = PowerNorm(0.5, 0, slots.max() or 1)  # few heads look much and many a little
    image = heat.imshow(slots.reshape(L * H, P), aspect="auto", cmap="Blues", norm=scale, interpolation="nearest")
    side.barh(range(L * H), prompt.reshape(-1), color=GREEN, height=0.8)
    side.set(xlim=(0, 1), xticks=(0, 0.5, 1))
    side.set_xlabel("to all slots", fontsize=8)
    side.tick_params(labelsize=8, labelleft=False, left=False)
    side.spines[["top", "right"]].set_visible(False)
    for axes in (heat, side):
        for layer in range(1, L):
            axes.axhline(layer * H - 0.5, color=GREY, lw=0.6)
    heat.set_yticks([layer * H + (H - 1) / 2 for layer in range(L)], [f"layer {layer}" for layer in range(L)])
    heat.tick_params(axis="y", length=0, labelsize=8)
    heat.set_ylabel("attention, a row for each head", fontsize=8)
    bar = drawn.colorbar(image, ax=side, fraction=0.15, pad=0.08)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("to one slot", fontsize=8)


def label_slots(axes, result, inches):
    """Slot numbers, with the nearest token where there is room for words: below the number, else upright."""
    P = result["slots"]
    step = math.ceil(P / 40)
    names, tilt = [str(p) for p in range(0, P, step)], 0
    if step == 1:
        tokens = [drawable(visible(near[0]["token"])) for near in result["nearest"]["cosine"]]
        level = P * (max(map(len, tokens)) + 1) <= LETTERS_PER_INCH * inches
        names = [name + ("\n" if level else "  ") + token for name, token in zip(names, tokens, strict=True)]
        tilt = 0 if level else 90
    axes.set_xticks(range(0, P, step), names, rotation=tilt, fontsize=8, parse_math=False)
    axes.set_xlabel("slot, and its nearest token by cosine" if step == 1 else "slot", fontsize=8)


def drawable(text):
    """Text that the picture's font has: Latin letters, ␣ and …; else escapes."""
    return "".join(c if ord(c) < 0x250 or c in "␣…" else ascii(c)[1:-1] for c in text)

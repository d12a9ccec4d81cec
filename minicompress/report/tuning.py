"""The table of a tuning, as text for a terminal."""

from minicompress.report.table import number

NAMES = {"none": "no slots", "untrained": "slots, untrained", "tuned": "slots, tuned"}
COLUMNS = {"loss": ("nats a token", ".3f"), "accuracy": ("accuracy", ".1%"), "macro_f1": ("macro-F1", ".1%"),
           "exact_match": ("exact match", ".1%")}  # fmt: skip


def tuning_table(result):
    """A rich Table of `outcome`'s result: each row another thing before the same held-out texts."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = [name for name in COLUMNS if name in result["rows"]["tuned"]]
    title = f"{result['held_out']:,} held-out examples"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("before the answer", no_wrap=True)
    for name in shown:
        table.add_column(COLUMNS[name][0], justify="right", no_wrap=True)
    if "accuracy" in shown:
        values = {"accuracy": result["majority"]}
        table.add_row("the commonest label", *(number(values.get(name), COLUMNS[name][1]) for name in shown))
    for row, label in NAMES.items():
        found = result["rows"][row] or {}
        step = f" ({found['step']} steps)" if row == "tuned" else ""
        cells = (number(found.get(name), COLUMNS[name][1]) for name in shown)
        table.add_row(label + step, *cells, style="bold green" if row == "tuned" else None)
    return table


def tuning_lines(result):
    """Sizes and time in a sentence, then what was seen that is suspicious."""
    cut = f"; {result['texts_cut']:,} texts were cut to fit" if result["texts_cut"] else ""
    sizes = (
        f"{result['slots']} slots ({result['carrier']}): {result['numbers_trained']:,} numbers trained, "
        f"{result['numbers_baked']:,} kept; {result['examples']:,} examples{cut}; "
        f"{result['steps']:,} steps, {result['seconds_per_step']:.3f} s each"
    )
    return "\n".join([sizes, *(f"! {line}" for line in result["diagnosis"])])

"""The table of a tuning: every number in its place, and what was seen below it."""

import pytest
from rich.console import Console

from minicompress.report.tuning import tuning_lines, tuning_table

RESULT = {
    "held_out": 1234, "majority": 0.51, "slots": 8, "carrier": "kv", "numbers_trained": 12345, "numbers_baked": 6789,
    "examples": 2000, "texts_cut": 3, "steps": 400, "seconds_per_step": 0.1234, "diagnosis": ["this", "and that"],
    "rows": {
        "none": {"loss": 5.5, "accuracy": 0.25, "macro_f1": 0.125},
        "untrained": {"step": 0, "loss": 4.25, "accuracy": 0.375, "macro_f1": 0.25},
        "tuned": {"step": 350, "loss": 0.5, "accuracy": 0.875, "macro_f1": 0.75},
    },
}  # fmt: skip


def shown(result):
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(tuning_table(result))
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_labels():
    title, heading, _, *rows = shown(RESULT)
    assert title == "1,234 held-out examples"
    assert heading == "before the answer nats a token accuracy macro-F1"
    assert rows == ["the commonest label – 51.0% –", "no slots 5.500 25.0% 12.5%", "slots, untrained 4.250 37.5% 25.0%",
                    "slots, tuned (350 steps) 0.500 87.5% 75.0%"]  # fmt: skip


def test_outputs_and_a_row_that_could_not_be_had():
    rows = {"none": None, "untrained": {"loss": 4.0, "exact_match": 0.0}, "tuned": {"step": 9, "loss": 1.0, "exact_match": 0.5}}
    _, heading, _, *found = shown(RESULT | {"rows": rows})
    assert heading == "before the answer nats a token exact match"
    assert found == ["no slots – –", "slots, untrained 4.000 0.0%", "slots, tuned (9 steps) 1.000 50.0%"]


@pytest.mark.parametrize("cut, words", [(3, "; 3 texts were cut to fit"), (0, "")])
def test_sizes_and_what_was_seen(cut, words):
    assert tuning_lines(RESULT | {"texts_cut": cut}).splitlines() == [
        f"8 slots (kv): 12,345 numbers trained, 6,789 kept; 2,000 examples{words}; 400 steps, 0.123 s each", "! this", "! and that",
    ]  # fmt: skip

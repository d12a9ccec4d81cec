"""What is learned from: lines of JSON, each a text with its label, or an input with its output."""

import json
from dataclasses import dataclass

from minicompress.compression.texts import read_text
from minicompress.prompts.template import SURROGATE

FORM = '{"text": "…", "label": "…"} or {"input": "…", "output": "…"}'
KINDS = {"label": "text", "output": "input"}  # the field of the answer: the field that is read before it


@dataclass(frozen=True)
class Example:
    """One line of a file."""

    fields: dict  # everything in it that a template may show: all but the answer
    answer: str  # the label or the output
    where: str  # the file and the line


def read_examples(path):
    """A file's lines -> their kind, `label` or `output`, and the Examples. Raises ValueError with file and line."""
    kinds, found = {}, []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            kind, example = read_example(line, f"{path}, line {number}")
            kinds.setdefault(kind, example.where)
            if len(kinds) > 1:
                first, second = kinds.values()
                raise ValueError(f"{second} has another kind of answer than {first}; a file has labels or outputs")
            found.append(example)
    return next(iter(kinds)), found


def read_example(line, where):
    """One line -> its kind and the Example."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as reason:
        raise ValueError(f"{where}: {reason}; write {FORM}") from None
    kinds = [kind for kind in KINDS if isinstance(record, dict) and kind in record]
    if len(kinds) != 1:
        raise ValueError(f'{where}: one of "label" and "output" is needed; write {FORM}')
    answer = record.pop(kind := kinds[0])
    if kind == "label" and type(answer) is int:
        answer = str(answer)
    if not isinstance(answer, str):
        raise ValueError(f"{where}: its {kind} is of type {type(answer).__name__}; a text is needed")
    answer = answer.strip()
    if SURROGATE.search(answer) or "\n" in answer or kind == "label" and not answer:
        raise ValueError(f"{where}: its {kind} is {answer!r}; a text of one line is needed, for an answer ends with it")
    return kind, Example(record, answer, where)

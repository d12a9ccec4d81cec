"""What the compressed context will be asked: inputs z with answers y, as rows of tokens."""

import json
from dataclasses import dataclass

import numpy as np

from minicompress.arrays import pad_rows
from minicompress.compression.texts import read_text
from minicompress.gpt2.generate import generate

START = "Q:"
ROWS = 24  # written at once: each row keeps its own copy of what stands before it
FORM = "Q: {question}\nA:"


@dataclass(frozen=True)
class Query:
    """A row of tokens whose last part is scored: ids[start:] is y, what stands before it z."""

    ids: list
    start: int
    question: str | None = None
    answer: str | None = None  # as its author gave it, to be recalled word for word
    places: tuple | None = None  # of y, where not all of it is scored

    @property
    def key(self):
        """What two queries share that ask the same."""
        return self.question or tuple(self.ids)

    @property
    def targets(self):
        """The places in `ids` that are scored."""
        return range(self.start, len(self.ids)) if self.places is None else self.places


def pad(queries):
    """Rows of one batch -> ids (B, T), scored (B, T), padded on the right."""
    ids = pad_rows([q.ids for q in queries])
    scored = np.zeros(ids.shape, bool)
    for row, query in zip(scored, queries, strict=True):
        row[list(query.targets)] = True
    return ids, scored


def question_query(tokenizer, question, answer, known=None):
    """`Q: question`, newline, `A: answer`: the answer and the newline after it are scored."""
    asked = tokenizer.encode(FORM.format(question=question)).ids
    return Query(asked + tokenizer.encode(f" {answer}\n").ids, len(asked), question, known)


def text_query(tokenizer, text):
    """Plain text: every token but the first is scored."""
    ids = tokenizer.encode(text).ids
    return Query(ids, 1) if len(ids) > 1 else None


def read_queries(lines, name):
    """Lines of JSON ({"question": …} or {"question": …, "answer": …}) or of plain text.

    -> a list of (question, answer) or text. Raises ValueError with the file's name and line.
    """
    found = []
    for number, line in enumerate(lines, 1):
        if not (line := line.strip()):
            continue
        if not line.startswith("{"):
            found.append(line)
            continue
        try:
            record = json.loads(line)
            question, answer = record["question"], record.get("answer")
            if not isinstance(question, str) or not isinstance(answer, str | None):
                raise TypeError("question and answer must be texts")
            f"{question}{answer}".encode()  # half of a surrogate pair is JSON, but no text
        except json.JSONDecodeError as reason:
            where = f"{name}, line {number}, column {reason.colno}"
            raise ValueError(f'{where}: {reason.msg}; write {{"question": "…", "answer": "…"}}') from None
        except (ValueError, KeyError, TypeError, RecursionError) as reason:
            why = "it has no 'question'" if isinstance(reason, KeyError) else reason
            raise ValueError(f'{name}, line {number}: {why}; write {{"question": "…", "answer": "…"}}') from None
        found.append((question, answer))
    if not found:
        raise ValueError(f"{name} holds no query")
    return found


def file_queries(teacher, context_prefix, path, rng=None):
    """Queries of a file, or of a list as `read_queries` gives it; where an answer is not given, the teacher's own.

    That is its likeliest, token by token, as it reads the context; with an rng it is drawn.
    """
    found = path if isinstance(path, list) else read_queries(read_text(path).split("\n"), path)
    asked = [entry[0] for entry in found if isinstance(entry, tuple) and entry[1] is None]
    own = own_answers(teacher.pair, teacher.tokenizer, context_prefix, asked, rng) if asked else []
    answers, queries = dict(zip(asked, own, strict=True)), []
    for entry in found:
        if isinstance(entry, str):
            queries.append(text_query(teacher.tokenizer, entry))
        else:
            question, answer = entry
            given = answers[question] if answer is None else answer
            queries.append(question_query(teacher.tokenizer, question, given, answer))
    if not (queries := [query for query in queries if query]):
        raise ValueError(f"{path}: no line has a token to predict; write questions, or lines of two tokens or more")
    return queries


def line_ends(tokenizer, lines):
    """A stop rule for `generate`: True once a row's new text holds that many line ends."""
    return lambda row, new: tokenizer.decode(new).count("\n") >= lines


def self_study(model, tokenizer, prefix, count, rng, steps=48, temperature=1.0, seed_prompt=START):
    """The teacher, having read the context, writes `count` questions with answers; repeats are dropped.

    Each starts from the seed prompt and ends with the second line. Lines of any other form are kept whole as
    plain text, so that a teacher which does not ask questions still shows what it would say; behind a seed
    prompt that is no `Q:` all that it writes is scored.
    """
    start = tokenizer.encode(seed_prompt).ids
    rows = generate(
        *model, [start] * count, steps, prefix, line_ends(tokenizer, 2), rng=rng, temperature=temperature, top_p=0.95
    )
    queries, seen = [], set()
    for new in rows:
        text = seed_prompt + tokenizer.decode(new)
        if text in seen:
            continue
        seen.add(text)
        question, mark, answer = text.partition("\nA:")
        if not text.startswith(START):
            queries.append(Query(start + new, len(start)))
        elif mark and answer.strip():
            queries.append(question_query(tokenizer, question[len(START) :].strip(), answer.strip()))
        elif query := text_query(tokenizer, text):
            queries.append(query)
    return queries


def answer_greedily(model, tokenizer, prefix, questions, steps=32):
    """The model's own answers to the questions, as texts, token by token the likeliest."""
    return own_answers(model, tokenizer, prefix, questions, None, steps)


def own_answers(model, tokenizer, prefix, questions, rng, steps=32):
    """The model's own answers to the questions, as texts: drawn, or without an rng the likeliest."""
    sampling = {} if rng is None else {"rng": rng, "temperature": 1.0}
    rows = [tokenizer.encode(FORM.format(question=question)).ids for question in questions]
    return write_lines(model, tokenizer, prefix, rows, steps, **sampling)


def write_lines(model, tokenizer, prefix, rows, steps=32, **sampling):
    """What the model writes after each row of ids, up to the line's end or the last position, as texts."""
    ends = np.array([len(row) for row in rows]) + (prefix.start if prefix else 0)
    room = model[1].n_positions - int(ends.max())
    groups = [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
    steps, ends = max(1, min(steps, room)), line_ends(tokenizer, 1)
    write = lambda some: generate(*model, some, steps, prefix, ends, **sampling)
    return [tokenizer.decode(new).split("\n")[0].strip() for some in groups for new in write(some)]


def hold_out(queries, share, rng):
    """Two lists, split by question: the same question never stands in both."""
    keys = list(dict.fromkeys(q.key for q in queries))
    picked = rng.permutation(len(keys))[: max(1, round(share * len(keys)))] if len(keys) > 1 else []
    held = {keys[i] for i in picked}
    return [q for q in queries if q.key not in held], [q for q in queries if q.key in held]

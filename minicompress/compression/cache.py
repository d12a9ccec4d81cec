"""Queries once written, kept on disk under a hash of all that decides them: teacher, context, source, seed."""

import json
from pathlib import Path

from minicompress.compression.queries import Query
from minicompress.prompts.soft_prompt import text_hash
from minicompress.training.checkpoints import replace_file

DECIDES = ("queries", "self_study", "seed", "answers", "seed_prompt", "chunk")  # of a recipe, what is written


def kept(folder, recipe, hashes, vocabulary, write):
    """The queries that write() gives, from the folder's file where it gave them before; without a folder always anew.

    `hashes` tell one teacher and context from others. Raises ValueError where the file is damaged.
    """
    if folder is None:
        return write()
    facts = {name: hashes[name] for name in ("teacher", "context")} | {name: getattr(recipe, name) for name in DECIDES}
    name = text_hash(said := json.dumps(facts, sort_keys=True))
    path = Path(folder) / f"{name}.json"
    if path.exists():
        return read(path, said, vocabulary)
    if Path(folder).is_file():
        raise ValueError(f"--cache {folder} is a file; name a folder")
    queries = write()
    body = {"facts": json.loads(said), "queries": [[q.ids, q.start, q.question, q.answer] for q in queries]}
    Path(folder).mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda beside: beside.write_text(json.dumps(body), encoding="utf-8"))
    return queries


def read(path, said, vocabulary):
    """The file's queries, each looked at. Raises ValueError where something is not as `kept` writes it."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["facts"] != json.loads(said):
            raise ValueError("it is of other queries")
        queries = [Query(*parts) for parts in body["queries"]]
        for n, q in enumerate(queries):
            ids = isinstance(q.ids, list) and all(type(i) is int and 0 <= i < vocabulary for i in q.ids)
            words = isinstance(q.question, str | None) and isinstance(q.answer, str | None) and q.places is None
            if not ids or not words or type(q.start) is not int or not 0 <= q.start < len(q.ids):
                raise ValueError(f"query {n} is none")
        return queries
    except (ValueError, LookupError, TypeError, RecursionError) as reason:
        raise ValueError(f"{path} is damaged ({reason}); delete it, and its queries are written again") from None

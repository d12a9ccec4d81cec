"""`compress` on many contexts: a worker for each core, what is done is kept, and one that fails stops no other."""

import json
import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from threadpoolctl import threadpool_limits

from minicompress import commands
from minicompress.cli.common import aside, bar, finite, show
from minicompress.cli.compressors import FILE
from minicompress.cli.produce import Job, Opened
from minicompress.compression.run import hash_of_init
from minicompress.compression.training import read_record
from minicompress.evaluation.baselines import summary
from minicompress.evaluation.metrics import mean_interval
from minicompress.prompts.soft_prompt import bytes_hash, text_hash
from minicompress.report.table import contexts_table
from minicompress.training.checkpoints import replace_file
from minicompress.training.shards import Shards, available_cores


class Context(NamedTuple):
    """One of many: a text file, or a line of JSON."""

    name: str
    source: Path | str

    def read(self) -> tuple[str, Any]:
        """-> its text, and the questions of its own, if any: a record's, or those of NAME.jsonl beside NAME.txt."""
        if isinstance(self.source, Path):
            beside = self.source.with_suffix(".jsonl")
            return commands.read_text(self.source), beside if beside.exists() else None
        record = read_record(self.source, "the line")
        return (record["text"], None) if "text" in record else (record["context"], record["queries"])


def is_many(source: str) -> bool:
    return source.endswith(".jsonl") or Path(source).is_dir()


def contexts_of(source: str) -> list[Context]:
    """A folder's .txt files, or the lines of a .jsonl file. Raises ValueError where there are none."""
    if Path(source).is_dir():
        found = [Context(path.stem, path) for path in sorted(Path(source).glob("*.txt"))]
    else:
        lines = enumerate(commands.read_text(source).split("\n"), 1)
        found = [Context(f"line-{number:06}", line) for number, line in lines if line.strip()]
    if not found:
        raise ValueError(f"{source} holds no .txt file; name a folder of texts, or a .jsonl file with one in each line")
    return found


def facts_of(job: Job, opened: Opened) -> dict:
    """All that decides what the job makes of a context: what is kept under other facts is made anew."""
    hashes: dict[str, Any] = {"model": opened.student.hash, "teacher": opened.teacher.hash}
    asked = {"queries": job.queries, "evaluate_on": job.evaluate_on}
    hashes |= {name: text_hash(commands.read_text(path)) for name, path in asked.items() if path}
    if opened.compressor and job.compressor:
        hashes |= {"reader": opened.compressor[1].hash, "compressor": bytes_hash((job.compressor / FILE).read_bytes())}
    hashes |= hash_of_init(job.recipe)
    said = {name: getattr(job, name) for name in ("producer", "slots", "matching", "other", "selected")}
    said |= {"recipe": asdict(job.recipe), "hashes": hashes}
    return json.loads(json.dumps(said))  # as it will be read again


class Worker:
    """What a process keeps between two contexts: the models, and whether the user has stopped it."""

    opened: Opened | None = None
    stopped = False


def begin_worker() -> None:
    """Of a process: one core for its products, no word on the terminal; between two contexts Ctrl-C is the parent's."""
    threadpool_limits(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    aside.quiet = True


def work(job: Job, facts: dict, context: Context, out: Path) -> dict:
    """One context -> its facts, as they stand in NAME.json; or {"name", "failed": why}."""
    if Worker.stopped:
        return {"name": context.name, "failed": "stopped"}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        text, asked = context.read()
        own = text_hash(text + (asked.read_text(encoding="utf-8") if isinstance(asked, Path) else json.dumps(asked)))
        told = out / f"{context.name}.json"
        if job.resume and (known := finished(told)) and known["job"] == facts and known["context"] == own:
            return known
        Worker.opened = Worker.opened or job.open()
        prompt = out / f"{context.name}.safetensors"
        with Shards(1) as shards:
            result = job.make(Worker.opened, text, prompt, shards, asked)
        result |= summary(result) if "rows" in result else {}
        made = finite({"name": context.name, "job": facts, "context": own} | result)
        replace_file(told, lambda beside: beside.write_text(json.dumps(made) + "\n", encoding="utf-8"))
        return made
    except (ValueError, OSError, FloatingPointError, MemoryError) as reason:
        return {"name": context.name, "failed": str(reason) or "out of memory"}
    except KeyboardInterrupt:
        Worker.stopped = True
        return {"name": context.name, "failed": "stopped"}
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def finished(path: Path) -> dict | None:
    """What an earlier run wrote of a context, if its prompt is there as well."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if {"job", "context"} <= found.keys() and path.with_suffix(".safetensors").exists() else None
    except (OSError, ValueError, AttributeError):
        return None


def compress_many(job: Job, source: str, out: Path, workers: int | None) -> list[dict]:
    """Every context of the source -> OUT/NAME.safetensors and OUT/NAME.json; the facts of each, in their order.

    Raises ValueError where nothing can be begun, or where a process was killed.
    """
    contexts, facts = contexts_of(source), facts_of(job, job.open())
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; many contexts need a folder")
    out.mkdir(parents=True, exist_ok=True)
    if not job.resume and any(finished(out / f"{context.name}.json") for context in contexts):
        aside.print(f"what {out} holds will be overwritten; --resume would have kept what these options made")
    most = 1 if job.device != "cpu" else workers or available_cores()
    pool = ProcessPoolExecutor(min(most, len(contexts)), get_context("spawn"), begin_worker)
    found: dict[str, dict] = {}
    with pool, bar() as progress:
        task = progress.add_task("contexts", total=len(contexts), loss="")
        try:
            for future in as_completed([pool.submit(work, job, facts, context, out) for context in contexts]):
                told = future.result()
                found[told["name"]] = told
                progress.advance(task)
                if "failed" in told:
                    progress.console.print(f"{told['name']}: {told['failed']}")
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            progress.console.print(f"stopped; {out} keeps what is done, and --resume goes on from it")
            raise
        except BrokenProcessPool:
            words = "a worker was killed, perhaps for want of memory; --resume goes on, with fewer --threads"
            raise ValueError(words) from None
    return [found[context.name] for context in contexts]


def tell_many(results: list[dict], out: Path, as_json: bool) -> None:
    """A line for each context, and the mean over all. Raises ValueError, after that, where some have failed."""
    made = [result for result in results if "failed" not in result]
    failed = {result["name"]: result["failed"] for result in results if "failed" in result}
    gaps = [result["gap_closed"] for result in made if result.get("gap_closed") is not None]
    mean, interval = mean_interval(gaps, np.random.default_rng(0))
    shown = [{name: value for name, value in result.items() if name != "job"} for result in made]
    told = {"out": str(out), "contexts": shown, "failed": failed, "gap_closed": mean, "gap_closed_interval": interval}
    if not as_json and made:
        Console().print(contexts_table(made))
    words = "" if mean is None else f"gap closed, mean of {len(gaps)}: {mean:.1%}"
    words += f" ({interval[0]:.1%} to {interval[1]:.1%})" if interval else ""
    show(told, as_json, f"{words}\nwritten to {out}{os.sep}".strip())
    if failed:
        name, why = next(iter(failed.items()))
        raise ValueError(f"{len(failed)} of {len(results)} contexts failed, {name} first: {why}; --resume tries again")

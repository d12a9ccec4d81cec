"""How two programs are compared: side by side, in one run, each in its own process.

A `Benchmark` is one function and the *sides* that compute it. A side is a context manager that
sets everything up and gives `step()`, which is what is timed. The parent starts every side in a
process of its own, lets it warm up, and then asks the sides in turn for a few steps each, round
after round and every other round in the reverse order, so that whatever else the machine does
falls on all of them. While one side works the others wait for a line of input.

- A time is the median of all timed steps; a ratio is a ratio of medians.
- Memory is the process's own maximum (ru_maxrss) from its start to its last step, with Python,
  libraries and weights; `loaded` is the same before the first step. An exec'd process inherits the
  maximum of the process that started it, so the parent must stay small: it never loads PyTorch.
- The sides must compute the same function: each reports `facts` (losses, norms of gradients) of
  its warm-up steps, and a benchmark whose sides disagree says so in its result.
- Every side uses all cores that the process may use: ours by `Shards()` or threaded BLAS, PyTorch
  by `torch.set_num_threads`.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RUN = Path(__file__).with_name("run.py")
WARM_UP = 2  # steps; the facts of the second also depend on the first one's update
AGREE = 2e-4  # relative; float32 sums in two orders
REST = 0.2  # seconds between two turns, for the threads of the last one to fall asleep


class Aim(NamedTuple):
    """One number made of the sides' results, and what it should not exceed (None: it is only shown)."""

    what: str
    value: Callable[[dict], float]
    limit: float | None = None


@dataclass(frozen=True)
class Benchmark:
    name: str
    title: str
    full: Any  # the sizes that are measured
    tiny: Any  # sizes at which both sides are only tested
    sides: dict[str, Callable]  # side(size): a context manager that gives step()
    aims: list[Aim]
    facts: Callable[[Any], list] = lambda result: []  # of what step() returns; compared where not empty
    steps: dict[str, int] = field(default_factory=dict)  # a round's steps of a side, where not 3
    parts: Callable[[Any], int] = lambda size: 1  # times are shown per part (a token) of a step
    memory: bool = True  # False where the work is done in processes of its own: this one's size says nothing


def ratio(a, b, key="seconds"):
    return lambda results: results[a][key] / results[b][key]


def time_and_memory(peer, time_limit=None, memory_limit=None):
    """The two usual aims of `ours` against one peer."""
    return [
        Aim(f"time, ours / {peer}", ratio("ours", peer), time_limit),
        Aim(f"memory, ours / {peer}", ratio("ours", peer, "peak_mb"), memory_limit),
    ]


# The child: one side.


def serve(benchmark, side, tiny):
    """Sets up one side, warms up, then runs as many steps as each line of standard input asks for."""
    size = benchmark.tiny if tiny else benchmark.full
    with benchmark.sides[side](size) as step:
        loaded = peak_mb()
        facts = [fact for _ in range(WARM_UP) for fact in benchmark.facts(step())]
        tell(facts=facts, loaded_mb=loaded, libraries=libraries())
        for line in sys.stdin:
            tell(seconds=[timed(step) for _ in range(int(line))], peak_mb=peak_mb())


def timed(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def tell(**facts):
    print(json.dumps(facts), flush=True)


def libraries():
    """The BLAS and OpenMP libraries of this process: their kernels decide half of the result."""
    from threadpoolctl import threadpool_info

    found = {
        f"{lib['internal_api']} {lib['version']} {lib.get('architecture', '')}".strip() for lib in threadpool_info()
    }
    ours = [name for name in ("numpy", "torch", "transformers", "peft") if name in sys.modules]
    return sorted(found) + [f"{name} {sys.modules[name].__version__}" for name in ours]


# The parent: all sides of one benchmark.


def environment():
    """Our own source, and Transformers quiet and without the network."""
    return os.environ | {"PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}


class Child:
    """A side in its own process."""

    def __init__(self, benchmark, side, tiny):
        command = [sys.executable, str(RUN), "--only", benchmark.name, "--side", side, *(["--tiny"] if tiny else [])]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment(), **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.stdin.close()
        self.process.wait()

    def ask(self, steps):
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self.process.args)} ended with {self.process.wait()}")
        return json.loads(line)


def compare(benchmark, rounds=4, tiny=False):
    """Runs all sides of a benchmark -> a dict for the JSON file."""
    with ExitStack() as stack:
        children, results, seconds = {}, {}, {side: [] for side in benchmark.sides}
        for side in benchmark.sides:  # one after the other: a warm-up has the machine to itself
            children[side] = stack.enter_context(Child(benchmark, side, tiny))
            results[side] = children[side].answer()
        for number in range(rounds):
            for side in list(children)[:: -1 if number % 2 else 1]:
                time.sleep(REST)
                answer = children[side].ask(benchmark.steps.get(side, 3))
                seconds[side] += answer["seconds"]
                results[side]["peak_mb"] = answer["peak_mb"]
    for side, result in results.items():
        result["seconds"] = statistics.median(seconds[side])
        result["all_seconds"] = seconds[side]
    parts = benchmark.parts(benchmark.tiny if tiny else benchmark.full)
    aims = [{"what": aim.what, "value": aim.value(results), "limit": aim.limit} for aim in benchmark.aims]
    agree = facts_agree([result["facts"] for result in results.values()])
    return {"name": benchmark.name, "title": benchmark.title, "tiny": tiny, "parts": parts, "sides": results,
            "aims": aims, "sides_agree": agree, "memory": benchmark.memory}  # fmt: skip


def facts_agree(facts):
    """Whether all sides that report anything report the same numbers: floats to rounding, token ids exactly."""
    first, *others = [told for told in facts if told] or [[]]
    same = lambda a, b: a == b if isinstance(b, int) else abs(a - b) <= AGREE * abs(b)
    return all(len(told) == len(first) and all(map(same, told, first)) for told in others)


def markdown(results):
    """One table: a line for each side, its aims below it. At tiny sizes no aim is judged."""
    lines = ["| benchmark | side or ratio | median | spread of the steps | peak MB (loaded) | aim | |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for result in results:
        title = result["title"]
        for side, told in result["sides"].items():
            times = [told["seconds"], min(told["all_seconds"]), max(told["all_seconds"])]
            median, least, most = (1000 * seconds / result["parts"] for seconds in times)
            memory = f"{told['peak_mb']:,.0f} ({told['loaded_mb']:,.0f})" if result["memory"] else ""
            lines.append(f"| {title} | {side} | {median:,.1f} ms | {least:,.1f}–{most:,.1f} | {memory} | | |")
            title = ""
        for aim in result["aims"]:
            judged = aim["limit"] is not None and not result["tiny"]
            limit = f"≤ {aim['limit']}" if judged else ""
            mark = ("met" if aim["value"] <= aim["limit"] else "**missed**") if judged else ""
            lines.append(f"| | *{aim['what']}* | **{aim['value']:.3f}** | | | {limit} | {mark} |")
        if not result["sides_agree"]:
            lines.append("| | **the sides do not compute the same function** | | | | | **void** |")
    return "\n".join(lines)

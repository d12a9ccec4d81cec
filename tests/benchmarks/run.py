"""Runs the benchmarks and prints one Markdown table: `PYTHONPATH=. python tests/benchmarks/run.py [--json FILE]`.

Needs the `peers` extra and an otherwise idle machine; all of them take about ten minutes. OpenBLAS
and MKL choose their kernels by the processor and by the environment (OPENBLAS_CORETYPE, …): what
each side used is in the JSON file.
"""

import argparse
import json
import os
import platform
import sys

import compression_step
import generation
import imports
import measure
import prompt_step
import teacher_reading
import training_step

MODULES = (prompt_step, compression_step, teacher_reading, training_step, imports)
BENCHMARKS = {b.name: b for b in [*(module.BENCHMARK for module in MODULES), *generation.BENCHMARKS]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(BENCHMARKS), choices=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each side (default 4)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: a test of the scripts, not a measurement")
    parser.add_argument("--json", help="write everything that was measured to this file")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # this process is one side of one benchmark
    options = parser.parse_args()
    if options.side:
        return measure.serve(BENCHMARKS[options.only[0]], options.side, options.tiny)
    results = []
    for name in options.only:
        print(f"{name} …", file=sys.stderr, flush=True)
        results.append(measure.compare(BENCHMARKS[name], options.rounds, options.tiny))
        if options.json:  # after each one: an interrupted run keeps what it has
            with open(options.json, "w") as file:
                json.dump({"machine": machine(), "benchmarks": results}, file, indent=1)
    print(measure.markdown(results))


def machine():
    told = {name: value for name, value in os.environ.items() if name.startswith(("OPENBLAS_", "OMP_", "MKL_"))}
    return {"cores": len(os.sched_getaffinity(0)), "platform": platform.platform(), "python": platform.python_version(),
            "load": os.getloadavg(), "environment": told}  # fmt: skip


if __name__ == "__main__":
    main()

"""Runs the benchmarks and prints one Markdown table: `PYTHONPATH=. python tests/benchmarks/run.py [--json FILE]`.

Needs `pip install -e '.[peers]'`, 8 GB of memory and an otherwise idle machine; all of them take
about fifteen minutes, one (`--only prompt-step`) about two. Each benchmark's file says what is compared
and why that is fair, `sides.py` how times and memory are taken. Under the times of each stand the
ratios to the peers; where a limit is given it is what the project set out to reach, met or missed. A
row "void" means that the two sides did not compute the same numbers, so that their times say nothing.

Compare ratios, and only of one run: other machines have other ratios. Half of each is decided by the
kernels that OpenBLAS (ours) and MKL (PyTorch's) choose for the processor, and the environment has a
say in it: OPENBLAS_CORETYPE=Haswell keeps NumPy from the wider registers of a newer processor. The
JSON file holds what each side used, and those variables. `--tiny` takes seconds a side, measures
nothing, and shows that everything runs.
"""

import argparse
import json
import os
import platform
import sys

import compression_step
import compressor_step
import generation
import imports
import lstm_step
import matching_solve
import mixed_batch
import prefix_step
import prompt_step
import sides
import teacher_reading
import trace_and_diff
import training_step

MODULES = (
    prompt_step, prefix_step, lstm_step, mixed_batch, compression_step, compressor_step, matching_solve, teacher_reading,
    training_step, trace_and_diff, imports,
)  # fmt: skip
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
        return sides.serve(BENCHMARKS[options.only[0]], options.side, options.tiny)
    results = []
    for name in options.only:
        print(f"{name} …", file=sys.stderr, flush=True)
        results.append(sides.compare(BENCHMARKS[name], options.rounds, options.tiny))
        if options.json:  # after each one: an interrupted run keeps what it has
            with open(options.json, "w") as file:
                json.dump({"machine": machine(), "benchmarks": results}, file, indent=1)
    print(sides.markdown(results))


def machine():
    told = {name: value for name, value in os.environ.items() if name.startswith(("OPENBLAS_", "OMP_", "MKL_"))}
    return {"cores": len(os.sched_getaffinity(0)), "platform": platform.platform(), "python": platform.python_version(),
            "load": os.getloadavg(), "environment": told}  # fmt: skip


if __name__ == "__main__":
    main()

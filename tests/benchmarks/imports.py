"""How long a new Python takes to import us, over what NumPy alone takes; and PEFT, to compare.

A step starts a Python, imports one package and ends, so its time is that of the whole process. The
files are in the page cache after the warm-up. Bytecode is cached for all sides alike, or for none
where PYTHONDONTWRITEBYTECODE is set and no cache was written: the packages that were installed
have theirs, so ours is compiled once first, into a folder outside the repository.
"""

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager

from sides import Aim, Benchmark

FLOORS = "minicompress.prompts.gradient, minicompress.compression.teacher, minicompress.prompts.soft_prompt"


def importing(what):
    @contextmanager
    def side(size):
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"PYTHONPYCACHEPREFIX": folder} if "minicompress" in what else dict(os.environ)
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
            yield lambda: subprocess.run([sys.executable, "-c", what], env=environment, check=True)

    return side


BENCHMARK = Benchmark(
    "imports", "import, a whole process", None, None,
    {
        "numpy": importing("import numpy"),
        "ours": importing("import numpy, minicompress"),
        "ours, to a prompt's gradient": importing(f"import numpy, {FLOORS}"),
        "peft": importing("import peft"),
    },
    [
        Aim("seconds over numpy", lambda r: r["ours"]["seconds"] - r["numpy"]["seconds"], 0.05),
        Aim("seconds over numpy, to a prompt's gradient",
            lambda r: r["ours, to a prompt's gradient"]["seconds"] - r["numpy"]["seconds"]),
    ],
    steps={"peft": 1},
    memory=False,
)  # fmt: skip

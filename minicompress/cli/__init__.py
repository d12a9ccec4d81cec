"""The command line: one file for each group of commands, and one plain line for whatever goes wrong."""

import sys

from minicompress.cli.common import app
from minicompress.cli.compress import compress
from minicompress.cli.evaluate import evaluate
from minicompress.cli.exchange import export, import_
from minicompress.cli.golden import golden
from minicompress.cli.inspect import inspect
from minicompress.cli.train import train_compressor
from minicompress.cli.tune import tune
from minicompress.cli.use import ask, generate
from minicompress.cli.verify import diff, trace

__all__ = [
    "app",
    "ask",
    "compress",
    "diff",
    "evaluate",
    "export",
    "generate",
    "golden",
    "import_",
    "inspect",
    "main",
    "trace",
    "train_compressor",
    "tune",
]


def main() -> None:
    """Runs a command; a user's mistake costs one line and exit code 2, never a traceback."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError, MemoryError) as reason:
        print(f"minicompress: {str(reason) or 'out of memory'}", file=sys.stderr)
        sys.exit(2)

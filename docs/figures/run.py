"""A real run of `compress` and `ask` as a picture for the README: what the terminal shows at the end."""

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"


def commands(out):
    """What is typed, and the arguments that do it."""
    yield (
        "minicompress compress notes.txt --evaluate-on questions.jsonl --out notes.safetensors",
        ["compress", EXAMPLES / "notes.txt", "--evaluate-on", EXAMPLES / "questions.jsonl", "--out", out],
    )
    yield 'minicompress ask notes.safetensors "Where does Mara live?"', ["ask", out, "Where does Mara live?"]


def main():
    screen = Console(record=True, width=100, file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "notes.safetensors"
        for typed, arguments in commands(out):
            screen.print(Text(f"$ {typed}", style="bold"))
            program = [sys.executable, "-m", "minicompress", *map(str, arguments)]
            told = subprocess.run(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
                                  env={"COLUMNS": "100", "PYTHONPATH": str(EXAMPLES.parent)}).stdout  # fmt: skip
            screen.print(Text(told.replace(f"{folder}/", "")))
    svg = screen.export_svg(title="minicompress")
    own_fonts = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # whatever monospace the reader has
    (HERE / "run.svg").write_text(own_fonts.replace("Fira Code, monospace", "monospace"))


if __name__ == "__main__":
    main()

"""Puts the project's own source into the pages: `python docs/include.py`, or `--check` to name the pages that differ.

A page asks for a function, a class, a method or a table with a comment, and the fenced block below it is filled; or for
one stage of the catalogue of mistakes, and the table below it is:

    <!-- source: minicompress/layers/layernorm.py layernorm_backward -->
    <!-- catalogue: loss -->
"""

import ast
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
TABLE = re.compile(r"^(<!-- catalogue: (\w+) -->\n)(\|.*?\n)*", re.MULTILINE)
BLOCK = re.compile(r"^(<!-- source: (\S+) (\S+) -->\n+```python\n)(.*?)(^```$)", re.DOTALL | re.MULTILINE)


def source(path, name):
    """The lines of `name` (function, Class, Class.method or NAME = …) in ROOT/path. Raises LookupError where it is not."""
    text = (ROOT / path).read_text(encoding="utf-8")
    node = ast.parse(text)
    for part in name.split("."):
        named = [child for child in node.body if part in names(child)]
        if len(named) != 1:
            raise LookupError(f"{path} has no {name}")
        node = named[0]
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno]) + "\n"


def names(node):
    """What a function, class or assignment defines."""
    return [getattr(node, "name", None), *(getattr(target, "id", None) for target in getattr(node, "targets", []))]


def catalogue(stage):
    """The table of the mistakes that first show at a stage."""
    sys.path.insert(0, str(ROOT))
    from minicompress.verification.catalogue import BUGS

    rows = [f"| `{bug.id}` | {bug.title} | {bug.shows} | {bug.mend} |" for bug in BUGS if bug.stage == stage]
    return "\n".join(["| id | what is wrong | how it shows | what to do |", "|---|---|---|---|", *rows]) + "\n"


def refreshed(page):
    """The page's text with every included block and table as the source has it now."""
    page = TABLE.sub(lambda m: m[1] + catalogue(m[2]), page)
    return BLOCK.sub(lambda m: m[1] + source(m[2], m[3]) + m[5], page)


def main(check):
    """Writes the pages that differ, or only names them; True where one differs."""
    differ = False
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        if page != (now := refreshed(page)):
            differ = True
            print(f"{path.relative_to(ROOT)} {'differs from the source' if check else 'refreshed'}")
            if not check:
                path.write_text(now, encoding="utf-8")
    return differ


if __name__ == "__main__":
    sys.exit(main(check=True) if "--check" in sys.argv[1:] else main(check=False) and None)

"""The shape of the repository, held by reading the source: nothing here is run but `import minicompress`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [  # imports point only downwards: to a lower floor, or within one folder
    {"arrays", "trees", "__version__"},
    {"layers"},
    {"gpt2"},
    {"training"},
    {"prompts"},
    {"compression"},
    {"tuning"},
    {"evaluation"},
    {"verification"},
    {"report"},
    {"commands"},
    {"cli"},
    {"__main__", "__init__"},
]
TOP = {"minicompress", "weights_loader", "tests", "docs", "examples"}
NEVER = {"torch", "transformers", "peft", "tensorflow", "jax", "scipy", "pickle", "autograd", "ctypes"}
PEER = "minicompress/verification/peft_conformance/bench.py"  # which asks for PEFT when it is run, to put it to the test
STRATEGIES = "minicompress/verification/strategies.py"  # for tests that have Hypothesis
SOURCES = sorted(path for top in ("minicompress", "weights_loader") for path in (ROOT / top).rglob("*.py"))


def imports(path):
    """Dotted names of everything that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def part_of(dotted):
    """minicompress.gpt2.block -> gpt2; minicompress itself -> None."""
    return (dotted.split(".") + [None])[1]


def floor_of(part):
    return next(floor for floor, parts in enumerate(FLOORS) if part in parts)


def within(path):
    return str(path.relative_to(ROOT))


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", SOURCES, ids=within)
def test_imports_point_downwards(path):
    for name in imports(path):
        if name.startswith("minicompress.") and not within(path).startswith("weights_loader"):
            here, there = part_of(dotted(path)), part_of(name)
            assert there == here or floor_of(there) < floor_of(here), f"{within(path)} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=within)
def test_only_libraries_that_belong(path):
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in NEVER or within(path) == PEER, f"{within(path)} imports {name}"
        assert top != "hypothesis" or within(path) == STRATEGIES, f"{within(path)} imports {name}"
        if within(path).startswith("weights_loader"):
            assert top != "minicompress", f"{within(path)} imports {name}"
        elif floor_of(part_of(dotted(path))) < floor_of("commands"):
            assert top != "weights_loader", f"{within(path)} imports {name}; only the top floor joins the two"


def test_importing_the_package_loads_numpy_at_most():
    code = "import sys, minicompress; print(*{name.split('.')[0] for name in sys.modules})"
    run = [sys.executable, "-c", code]
    loaded = set(subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
    heavy = {"safetensors", "tokenizers", "threadpoolctl", "typer", "rich", "matplotlib", "jinja2", "cupy"}
    assert not loaded & (heavy | NEVER - {"pickle", "ctypes"})  # NumPy itself loads these two


def tracked():
    """The files that git knows or would take; none where this is no checkout."""
    run = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")


def test_top_folders_are_exactly_those_of_the_design():
    folders = {name.split("/")[0] for name in tracked() if "/" in name}
    assert {name for name in folders if not name.startswith(".")} <= TOP


def test_the_readme_lists_every_source_file():
    tree = (ROOT / "README.md").read_text().split("```\nminicompress/", 1)[1].split("```")[0]
    listed = sorted(line.split()[0] for line in tree.splitlines() if line.strip().split(" ")[0].endswith(".py"))
    assert listed == sorted(path.name for path in SOURCES if path.name != "__init__.py")


def pairs():
    """(path, function) of every function at the top of a layer's file whose name ends in _backward."""
    files = sorted((ROOT / "minicompress" / "layers").glob("*.py"))
    return [(path, name) for path in files for name in functions(path) if name.endswith("_backward")]


def functions(path):
    return [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path, name", pairs(), ids=lambda value: getattr(value, "stem", value))
def test_each_backward_stands_directly_below_its_forward(path, name):
    order = functions(path)
    assert order[order.index(name) - 1] == name.removesuffix("_backward")


def test_there_are_layers_to_look_at():
    assert {name for _, name in pairs()} >= {"linear_backward", "attention_backward", "layernorm_backward"}

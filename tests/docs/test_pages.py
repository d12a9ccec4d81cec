"""The pages as they stand: what they include equals the source, what they point at exists, their mathematics survives."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
NUMBERED = [page for page in PAGES if page.name[0].isdigit()]
SCRIPTS = sorted((DOCS / "figures").glob("[0-9]*.py"))


def load(path):
    """The module of a file that no package holds."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


include = load(DOCS / "include.py")


def name(path):
    return path.name


def text(page):
    return page.read_text(encoding="utf-8")


def anchors(page):
    """What a code host makes of the page's headings."""
    titles = re.findall(r"^#+ (.+)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_included_code_equals_the_source(page):
    assert text(page) == include.refreshed(text(page)), "run python docs/include.py"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_all_python_is_included(page):
    blocks = len(include.BLOCK.findall(text(page)))
    assert blocks == text(page).count("<!-- source:") == len(re.findall(r"^```python", text(page), re.MULTILINE))


def test_what_is_not_in_the_source_is_refused():
    with pytest.raises(LookupError):
        include.source("minicompress/layers/linear.py", "linear_forward")


def test_stale_code_is_refreshed():
    now = include.refreshed("a\n\n<!-- source: docs/include.py refreshed -->\n```python\nstale\n```\nb\n")
    assert now.startswith("a\n\n<!-- source") and now.endswith("```\nb\n")
    assert "def refreshed(page):" in now and "stale" not in now


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        where = (page.parent / file).resolve() if file else page
        assert where.exists() and where.is_relative_to(ROOT), f"{page.name} points at {target}"
        assert not anchor or anchor in anchors(where), f"{page.name} points at {target}"


@pytest.mark.parametrize("page", NUMBERED, ids=name)
def test_every_page_has_a_figure_an_exercise_and_its_script(page):
    figures = re.findall(r"!\[[^\]]+\]\((figures/[^)]+\.png)\)", text(page))
    assert figures and "## Exercise" in text(page)
    for figure in figures:
        script = figure.replace(".png", ".py")
        assert figure.startswith(f"figures/{page.name[:2]}-") and (DOCS / script).exists()
        assert f"]({script})" in text(page), f"{page.name} does not link to {script}"


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_every_figure_is_drawn_and_shown(script):
    assert script.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert any(f"figures/{script.stem}.png" in text(page) for page in NUMBERED)


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_every_figure_still_draws(script, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.syspath_prepend(script.parent)
    module, drawn = load(script), []
    monkeypatch.setattr(module, "save", lambda figure, path: drawn.append((figure, path)))
    module.main()
    pyplot.close("all")
    assert len(drawn) == 1 and Path(drawn[0][1]) == script


def test_the_index_names_every_page_in_order():
    named = re.findall(r"\]\((\d\d-[^)]+\.md)\)", text(DOCS / "README.md"))
    assert named == [page.name for page in NUMBERED]


@pytest.mark.parametrize("page", NUMBERED, ids=name)
def test_pages_lead_to_the_next(page):
    after = NUMBERED[NUMBERED.index(page) + 1 :]
    assert not after or "Next: [" in text(page) and f"({after[0].name})" in text(page).splitlines()[-1]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_mathematics_survives_markdown(page):
    """No backslash before punctuation, which Markdown takes as its own escape; no line end within a line's formula."""
    prose = re.sub(r"^```.*?^```$", "", text(page), flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"`[^`\n]*`", "", prose)
    assert prose.count("$") % 2 == 0
    for display, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$]+?)\$", prose, re.DOTALL):
        assert not re.search(r"\\[^A-Za-z]", display + inline), display + inline
        assert inline == inline.strip() and "\n" not in inline, inline

"""Lays out the pages of the site and builds it.

    python docs/pages.py _docs

Notebooks become pages under their own paths; each module gets a page made from its docstrings, and the claims of all papers the scoreboard.
The sidebar follows the rooms of the house and, in each, the catalogue.
"""

import importlib
import inspect
import json
import math
import os
import pkgutil
import re
import sys
import textwrap
from pathlib import Path

from sphinx.cmd.build import main as sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import holocron_nb  # noqa: E402
from holocron_nb import models, papers  # noqa: E402
from holocron_nb.papers.claims import COLUMNS, measure  # noqa: E402

ROOMS = ["papers", "nn", "ops", "optim", "transforms", "utils", "models", "trainer", "viz", "widgets"]


def notebooks() -> dict[str, Path]:
    """The notebooks by the name of their page."""
    paths = [(ROOT / "nbs", p) for p in (ROOT / "nbs").rglob("*.ipynb")]
    paths += [(ROOT, p) for p in (ROOT / "tutorials").rglob("*.ipynb")]
    return {str(p.relative_to(base).with_suffix("")): p for base, p in sorted(paths) if ".ipynb_checkpoints" not in p.parts}


def modules() -> list[str]:
    """The public modules of the package, packages before what is in them."""
    found = (m.name for m in pkgutil.walk_packages(holocron_nb.__path__, "holocron_nb."))
    return sorted(["holocron_nb", *(name for name in found if not re.search(r"\._", name))])


def children(page: str, pages: list[str], texts: dict[str, str]) -> list[str]:
    """The pages that stand below an index page in the sidebar: papers in the catalogue's order, then what the index links, in its order."""
    folder = page.removesuffix("index")
    below = [p for p in pages if p.startswith(folder) and p != page]
    indices = [p for p in below if p.endswith("/index")]
    inner = {p for index in indices for p in below if p.startswith(index.removesuffix("index")) and p != index}
    reading = {p.notebook: i for i, p in reversed(list(enumerate(papers.catalogue().values())))}
    links = [os.path.normpath(folder + link) for link in re.findall(r"\]\(([^):]+)\.ipynb\)", texts[page])]

    def rank(p):
        within = [i for notebook, i in reading.items() if notebook == p or (p in indices and notebook.startswith(p.removesuffix("index")))]
        return (min(within, default=math.inf), links.index(p) if p in links else len(links), p)

    return sorted((p for p in below if p not in inner), key=rank)


def _room(page: str) -> int:
    return [*ROOMS, page.split("/")[0]].index(page.split("/")[0])


def toctree(pages: list[str], caption: str = "", show: bool = False) -> str:
    """A list of pages for the sidebar."""
    options = [f":caption: {caption}"] * bool(caption) + [":hidden:"] * (not show) + [":titlesonly:", ":maxdepth: 2"] * show
    return "\n".join(["```{toctree}", *options, "", *(f"/{p}" if "<" not in p else p for p in pages), "```"])


def notebook_page(page: str, path: Path, sidebar: str) -> str:
    """A notebook with what its page adds: a link to its module's API page and its part of the sidebar."""
    notebook = json.loads(path.read_text())
    cells = notebook["cells"]
    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = re.sub(r"\]\((\.\.?/[^):]+\.ipynb)", lambda m: f"]({_moved(page, path, m[1])}", "".join(cell["source"]))
    module = next((m for cell in cells for m in re.findall(r"#\|\s*default_exp\s+(\S+)", "".join(cell["source"]))), None)
    if module and page != "index":
        name = f"holocron_nb.{module}".removesuffix(".__init__")
        cells[0]["source"] = "".join(cells[0]["source"]) + f"\n\nModule: {{doc}}`{name} </api/{name}>`"
    if sidebar:
        cells.append({"cell_type": "markdown", "id": "sidebar", "metadata": {}, "source": sidebar})
    notebook["metadata"]["page"] = page
    return json.dumps(notebook)


def _moved(page: str, path: Path, link: str) -> str:
    """A relative link of a notebook as a link between pages: the site has no folder nbs."""
    target = os.path.relpath(os.path.normpath(path.parent / link), ROOT).removeprefix("nbs/")
    return os.path.relpath(target, Path(page).parent)


def module_page(name: str, names: list[str], pages: dict[str, Path]) -> str:
    """The API page of a module: what it defines, what it hands on from others, which modules are in it."""
    module = importlib.import_module(name)
    notebook = name.removeprefix("holocron_nb").lstrip(".").replace(".", "/")
    notebook = notebook if notebook in pages else f"{notebook}/index".lstrip("/")
    inside = [n for n in names if n.rpartition(".")[0] == name]
    public = [n for n in getattr(module, "__all__", []) if f"{name}.{n}" not in names]
    values = {n: getattr(module, n) for n in public}
    own = [n for n, value in values.items() if getattr(value, "__module__", name) == name]
    documented = [n for n in own if callable(values[n])]
    constants = [n for n in own if n not in documented]
    handed_on = [f"{v.__module__}.{n}" for n, v in values.items() if n not in own and v.__module__.startswith("holocron_nb.")]
    lines = [f"# {name}", "```{eval-rst}", f".. automodule:: {name}", "```"]
    if notebook in pages:
        lines += [f"Explained in the notebook {{doc}}`/{notebook}`."]
    if inside:
        lines += ["## Modules", toctree([f"{n.rpartition('.')[2]} </api/{n}>" for n in _in_order(inside)], show=True)]
    if handed_on:
        lines += ["## Names", f"`{name}` hands on:", _summary(handed_on)]
    if own:
        lines += ["## Definitions", *([_summary([f"{name}.{n}" for n in documented])] if len(documented) > 1 else [])]
        lines += ["```{eval-rst}", *(_documented(name, n, values[n]) for n in documented + constants), "```"]
    return "\n\n".join(lines)


def _in_order(names: list[str]) -> list[str]:
    reading = [f"holocron_nb.{room}" for room in ROOMS] + [p.module for p in papers.catalogue().values()]
    return sorted(names, key=lambda n: (reading.index(n) if n in reading else len(reading), n))


def _summary(names: list[str]) -> str:
    head = ["```{eval-rst}", ".. py:currentmodule:: None", ".. autosummary::", "   :nosignatures:", ""]
    return "\n".join([*head, *(f"   ~{n}" for n in names), "```"])


def _documented(module: str, name: str, value) -> str:
    if inspect.isclass(value):
        bases = "" if value.__bases__ == (object,) else "   :show-inheritance:\n"
        return f".. autoclass:: {module}.{name}\n   :members:\n{bases}"
    if callable(value):
        return f".. autofunction:: {module}.{name}\n"
    shown = textwrap.shorten(repr(value), 200, placeholder=" ...")
    return f".. py:currentmodule:: {module}\n.. py:data:: {name}\n   :value: {shown}\n"


def scoreboard_page() -> str:
    """The claims of all papers, measured on the registered models or read from the notebooks that show them."""
    verdicts, constructors = papers.recorded(ROOT / "nbs"), models.constructors()
    table = papers.scoreboard(constructors, verdicts, link="{notebook}.html")
    lines = [
        "# Scoreboard",
        "> What the papers claim, and what this code measures.",
        "Figures are measured on the registered models while this page is built, and agree within the rounding of the print. "
        "Statements are decided by a cell of the paper's notebook. What isn't met keeps its row, with the reason.",
        _html(table),
    ]
    decided = {(v["paper"], v["name"]): v for v in verdicts}
    for paper in papers.catalogue().values():
        lines += [f"## {paper.title}", f"{paper.year}, {paper.venue}. Notebook: {{doc}}`/{paper.notebook}`."]
        if figures := [c.row() for c in measure(paper.key, constructors)]:
            lines.append(_html(papers.Table(COLUMNS, figures)))
        if paper.statements:
            rows = [[s.text, s.source, *_decision(s, decided.get((paper.key, s.name)))] for s in paper.statements]
            lines.append(_html(papers.Table(["statement", "where", "measured", "verdict"], rows)))
    return "\n\n".join(lines)


def _decision(statement, verdict) -> list[str]:
    if verdict is None:
        return ["", "not recorded"]
    return [verdict["measured"], "✓ holds" if verdict["holds"] else f"✗ {statement.reason}"]


def _html(table: papers.Table) -> str:
    return f'<div class="holocron-scroll">{table._repr_html_()}</div>'


def stage(folder: Path) -> None:
    """Writes the sources of all pages; those that did not change stay untouched, those that are no longer there go."""
    pages, names = notebooks(), modules()
    texts = {page: path.read_text() for page, path in pages.items()}
    tutorials = [p for p in pages if p.startswith("tutorials/")]
    rooms = sorted({*children("index", list(pages), texts)} - {*tutorials}, key=lambda p: (_room(p), p))
    tree = {p: [toctree(children(p, list(pages), texts))] for p in pages if p.endswith("/index")}
    tree["index"] = [
        toctree(tutorials, "Tutorials"),
        toctree(rooms, "Rooms"),
        toctree(["scoreboard", "API </api/holocron_nb>"], "Reference"),
    ]
    files = {f"{page}.ipynb": notebook_page(page, path, "\n\n".join(tree.get(page, []))) for page, path in pages.items()}
    files |= {f"api/{name}.md": module_page(name, names, pages) for name in names}
    files["scoreboard.md"] = scoreboard_page()
    for old in folder.rglob("*.*"):
        if old.is_file() and str(old.relative_to(folder)) not in files:
            old.unlink()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def build(folder: Path, *options: str) -> int:
    """Builds the site into a folder, warnings as errors; returns Sphinx's exit status."""
    stage(folder / ".pages")
    directories = ["-c", ROOT / "docs", "-d", folder / ".doctrees", folder / ".pages", folder]
    return sphinx(["-W", "--keep-going", "-b", "html", "-q", *options, *map(str, directories)])


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_docs").resolve()))

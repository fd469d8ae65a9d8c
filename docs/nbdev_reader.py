"""Reads a notebook of this project for the site: what nbdev's directives mean, numbered equations, verdicts, links in outputs."""

import html
import re

import nbformat
from sphinx.util import logging

DIRECTIVE = re.compile(r"\s*#\s*\|\s*([\w-]+)")
CLAIM = "application/vnd.holocron.claim+json"
CODE_OR_MATH = re.compile(r"(```.*?```|~~~.*?~~~|`[^`\n]*`|\$\$.*?\$\$|(?<!\\)\$[^$]*\$)", re.S)
logger = logging.getLogger(__name__)


def read(text: str) -> nbformat.NotebookNode:
    """The notebook as its page shows it.

    Cells under `#| hide` and `#| default_exp` are left out, directive lines are stripped (each leaves a tag, which the style sheet shows),
    exported source stays visible: the implementation is the lesson.
    """
    notebook = nbformat.reads(text, as_version=4)
    page = notebook.metadata.pop("page", "")
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "python"}
    notebook.cells = [cell for cell in map(_cell, notebook.cells) if cell is not None]
    if page == "index":  # the front page and the README show what its cells give, not the cells
        for cell in notebook.cells:
            cell.metadata.setdefault("tags", []).append("remove-input")
    _number_equations([cell for cell in notebook.cells if cell.cell_type == "markdown"], page)
    return notebook


def _cell(cell):
    if cell.cell_type != "code":
        return cell
    lines, directives = cell.source.splitlines(), []
    while lines and (match := DIRECTIVE.match(lines[0])):
        directives.append(match[1])
        lines.pop(0)
    cell.source = "\n".join(lines).strip("\n")
    if {"hide", "default_exp"} & set(directives) or not cell.source:
        return None
    cell.metadata["tags"] = [*cell.metadata.get("tags", []), *directives]
    cell.metadata["mystnb"] = {"image": {"alt": "The figure that the text above describes"}}
    for output in cell.outputs:
        _output(output.get("data", {}))
    return cell


def _output(data):
    """Links between notebooks become links between pages; the verdict on a claim becomes a paragraph."""
    if "text/html" in data:
        data["text/html"] = re.sub(r'(href="(?!\w+:)[^"#]+)\.ipynb', r"\1.html", data["text/html"])
    if verdict := data.pop(CLAIM, None):
        kind = "holds" if verdict["holds"] else "fails"
        data["text/html"] = f'<p class="holocron-verdict {kind}">{html.escape(data["text/plain"])}</p>'


def _number_equations(cells, page):
    r"""`\tag{3}` becomes the site's own number and anchor, and `(3)` in the text a link to it."""
    equations = [tag for cell in cells for tag in re.findall(r"\\tag\{(\w+)\}", cell.source)]
    numbers = [str(n + 1) for n in range(len(equations))]
    if equations != numbers:
        logger.warning("%s: equations are tagged %s, expected 1, 2, 3, ... in order", page, ", ".join(equations))
    slug = re.sub(r"\W+", "-", page)

    def label(math):
        tag = re.search(r"\\tag\{(\w+)\}", math)
        return f"{math.replace(tag[0], '').rstrip()} ({slug}-{tag[1]})" if tag else math

    def refer(text):
        return re.sub(r"(?<![\w\])}])\((\d+)\)", lambda m: f"{{eq}}`{slug}-{m[1]}`" if m[1] in numbers else m[0], text)

    for cell in cells:
        parts = CODE_OR_MATH.split(cell.source)
        cell.source = "".join(label(p) if p.startswith("$$") else p if i % 2 else refer(p) for i, p in enumerate(parts))

"""The site, built once with warnings as errors: a page for every notebook and module, links that resolve, nothing left over."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from notebooks import ROOT, directives, notebooks

from holocron_nb import papers


class Page(HTMLParser):
    """What a page links to and says: hrefs, ids, sources of pictures, scripts and styles, its text without code and math."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.files, self.classes, self.text, self._skip = [], set(), [], [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.ids |= {a[key] for key in ("id", "name") if a.get(key)}
        self.classes += [(tag, c) for c in (a.get("class") or "").split()]
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        if tag in ("img", "script", "iframe", "source") and a.get("src"):
            self.files.append(a["src"])
        if tag == "link" and a.get("rel") in ("stylesheet", "icon", "preload"):
            self.files.append(a["href"])
        if tag in ("script", "style", "pre", "code") or self._skip and tag == self._skip[-1]:
            self._skip.append(tag)

    def handle_endtag(self, tag):
        if self._skip and tag == self._skip[-1]:
            self._skip.pop()

    def handle_data(self, data):
        if not self._skip:
            self.text.append(data)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, ROOT / "docs" / "pages.py", folder], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="session")
def pages(site):
    """All pages by their paths."""
    return {p: Page(p) for p in sorted(site.rglob("*.html")) if "_static" not in p.parts}


def page_of(notebook):
    base = ROOT / "nbs" if notebook.is_relative_to(ROOT / "nbs") else ROOT
    return notebook.relative_to(base).with_suffix(".html")


def visible_cells(notebook):
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not {"hide", "default_exp"} & set(directives(source)):
            yield cell, source


def test_every_notebook_has_a_page_that_shows_its_exported_source(site):
    assert notebooks()
    for notebook in notebooks():
        if page_of(notebook) == Path("index.html"):
            continue
        text = re.sub(r"<[^>]+>", "", (site / page_of(notebook)).read_text())
        for _, source in visible_cells(notebook):
            for name in re.findall(r"^(?:class|def) (\w+)", source, re.M):
                assert re.search(rf"(class|def) {name}\b", text), f"{notebook.name}: {name} is not shown"


def test_every_module_has_an_api_page_linked_both_ways(site, pages):
    files = [p.relative_to(ROOT) for p in (ROOT / "holocron_nb").rglob("*.py") if p.name == "__init__.py" or not p.name.startswith("_")]
    assert files
    for file in files:
        name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
        api = site / "api" / f"{name}.html"
        assert f"module-{name}" in pages[api].ids, f"{name} has no page"
        source = (ROOT / file).read_text()
        for public in re.findall(r"^(?:class|def) ([A-Za-z]\w*)", source, re.M):
            if public in _exported(source):
                assert f"{name}.{public}" in pages[api].ids, f"{name}.{public} is not documented"
        notebook = re.search(r"File to edit: (?:\.\./)*nbs/(.*)\.ipynb", source)
        if notebook and notebook[1] != "index":
            assert f"../{notebook[1]}.html" in pages[api].links
            assert any(link.endswith(f"api/{name}.html") for link in pages[site / f"{notebook[1]}.html"].links)


def _exported(source):
    lists = re.findall(r"^__all__ = \[(.*?)\]", source, re.M | re.S)
    return set(re.findall(r"['\"](\w+)['\"]", " ".join(lists)))


def test_scoreboard_lists_every_claim_with_a_verdict(site, pages):
    html = (site / "scoreboard.html").read_text()
    text = " ".join("".join(pages[site / "scoreboard.html"].text).split())
    for paper in papers.catalogue().values():
        assert f"{paper.notebook}.html" in pages[site / "scoreboard.html"].links
        assert all(" ".join(claim.text.split()) in text for claim in paper.statements), f"{paper.key}: a statement is missing"
    rows = sum(len(p.figures) + len(p.statements) + 1 for p in papers.catalogue().values())
    headings = html.count("<thead>")
    assert html.count("<tr>") == rows + headings
    assert "not recorded" not in text and "OFF" not in text


def test_sidebar_follows_the_catalogue(site):
    nav = re.search(r'<nav class="bd-docs-nav.*?</nav>', (site / "index.html").read_text(), re.S)[0]
    links = list(dict.fromkeys(re.findall(r'href="([^"]+)\.html"', nav)))
    rooms = ["papers", "nn", "ops", "optim", "transforms", "utils", "models", "trainer", "viz", "widgets"]
    shown = [link.split("/")[0] for link in links if link.endswith("/index") and link.count("/") == 1]
    assert shown == [room for room in rooms if room in shown] and "papers" in shown
    for room in shown:
        order = [p.notebook for p in papers.catalogue().values() if p.notebook.startswith(f"{room}/")]
        by_folder = {}
        for notebook in dict.fromkeys(order):
            by_folder.setdefault(notebook.rpartition("/")[0], []).append(notebook)
        for expected in by_folder.values():
            assert [link for link in links if link in expected] == expected
    assert {str(page_of(n).with_suffix("")) for n in notebooks()} - {"index"} <= set(links)


def test_nothing_is_left_of_directives_and_markup(pages):
    for path, page in pages.items():
        text = "".join(page.text)
        assert not re.search(r"#\s?\|\s?(export|hide|default_exp|gpu|download|eval)", re.sub(r"<[^>]+>", "", path.read_text())), path
        assert "{eq}" not in text and "{doc}" not in text and "\\tag{" not in path.read_text(), path
        assert "**" not in re.sub(r"\*\*\w+", "", text), f"{path}: unrendered emphasis"


def test_equations_are_rendered_numbered_and_referred_to(site, pages):
    for notebook in notebooks():
        text = "".join("".join(c["source"]) for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "markdown")
        tags, page = re.findall(r"\\tag\{(\d+)\}", text), pages[site / page_of(notebook)]
        assert page.classes.count(("span", "eqno")) == len(tags), notebook
        if "$$" in text:
            assert ("div", "math") in page.classes, notebook
    references = [link for link in pages[site / "optim" / "adabelief.html"].links if link.startswith("#equation-")]
    assert len(set(references)) > 4
    assert (site / "_static" / "mathjax" / "tex-chtml.js").exists()


def test_solutions_are_folded(site, pages):
    for notebook in notebooks():
        folded = sum("hide-cell" in c.get("metadata", {}).get("tags", []) for c, _ in visible_cells(notebook))
        assert pages[site / page_of(notebook)].classes.count(("details", "hide")) == folded, notebook


def test_links_and_pictures_resolve_without_network(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.files:
            if re.match(r"(https?|mailto|data):", link):
                if link in page.files and not link.startswith("data:"):
                    broken.append(f"{path}: {link} comes from the network")
                continue
            target, _, anchor = unquote(link.split("?")[0]).partition("#")
            file = (path.parent / target).resolve() if target else path
            if not file.exists():
                broken.append(f"{path}: {link} leads nowhere")
            elif anchor and file in pages and anchor not in pages[file].ids:
                broken.append(f"{path}: {link} has no such anchor")
    assert not broken, "\n".join(sorted(set(broken))[:30])


def test_search_knows_the_pages(site):
    index = (site / "searchindex.js").read_text()
    assert all(f'"{page_of(n).with_suffix("")}"' in index for n in notebooks())
    assert "adabelief" in index

"""Every notebook runs from top to bottom in a process of its own, is exported, and reads as STYLE asks."""

import ast
import filecmp
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from notebooks import ROOT, directives, execute, notebooks, run

from holocron_nb import papers
from holocron_nb.papers.claims import CLAIM_MIME

NOTEBOOKS = notebooks()
IDS = [str(p.relative_to(ROOT)) for p in NOTEBOOKS]
SECONDS = 30  # of CPU for a notebook's unflagged cells: 20 on a core of its own, half as much again where another test shares it
PARTS = [
    "The idea in one picture",
    "Derivation",
    "Implementation",
    "Shape walk",
    "Checks",
    "Experiment",
    "Training demo",
    "Use it",
    "Exercises",
    "Notes",
]


def cells(path, kind=None):
    """The cells of a notebook as (type, source, cell)."""
    found = [(c["cell_type"], "".join(c["source"]), c) for c in json.loads(path.read_text())["cells"]]
    return [c for c in found if kind in (None, c[0])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_notebook_runs(path):
    seconds = run(path)
    limit = SECONDS if path.is_relative_to(ROOT / "nbs") else 180
    assert seconds < limit, f"the CPU cells took {seconds:.0f} s of CPU, the limit is {limit} s"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_cells_keep_to_the_limits(path):
    in_a_row, problems = 0, []
    for index, (kind, source, _) in enumerate(cells(path)):
        marks = directives(source)
        if kind == "markdown":
            words = len(re.sub(r"\$\$.*?\$\$|<[^>]+>", " ", source, flags=re.S).split())
            if words > 150 and not source.lstrip().startswith("|"):
                problems.append(f"cell {index}: {words} words, the limit is 150")
        elif "hide" not in marks and "default_exp" not in marks and "hide-cell" not in _tags(path, index):
            lines = code_lines(source)
            limit = 60 if re.search(r"^class ", source, re.M) else 25
            if lines > limit:
                problems.append(f"cell {index}: {lines} lines, the limit is {limit}")
        in_a_row = 0 if kind == "markdown" else in_a_row + ("exporti" not in marks and "hide" not in marks and "default_exp" not in marks)
        if in_a_row > 3:
            problems.append(f"cell {index}: {in_a_row} code cells without prose between")
    assert not problems, "\n".join(problems)


def code_lines(source):
    """Non-empty lines of a cell that are no docstring: docstrings are prose, and public ones must be whole."""
    prose = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            prose |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(bool(line.strip()) and number not in prose for number, line in enumerate(source.splitlines(), start=1))


def _tags(path, index):
    return cells(path)[index][2].get("metadata", {}).get("tags", [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_notebook_is_clean(path):
    text = path.read_text()
    assert len(text) < 500_000, f"{len(text) // 1000} kB, the limit is 500 kB"
    problems = []
    for index, (kind, source, cell) in enumerate(cells(path)):
        if kind != "code":
            continue
        outputs = json.dumps(cell.get("outputs", []))
        if cell.get("execution_count") is not None:
            problems.append(f"cell {index}: execution count stored")
        if re.search(r'widget-view|"name": "stderr"|"output_type": "error"', outputs):
            problems.append(f"cell {index}: a widget view, an error or stderr is stored")
        if re.search(r"(?<![\w/:.])/(root|home|work|tmp|Users|mnt)/", outputs):
            problems.append(f"cell {index}: an absolute path is stored")
        if "default_exp" in directives(source) and path.is_relative_to(ROOT / "nbs"):
            module = directives(source)["default_exp"].split()[0]
            expected = ".".join(path.relative_to(ROOT / "nbs").with_suffix("").parts).replace("index", "__init__")
            if module != expected:
                problems.append(f"cell {index}: exports to {module}, its path says {expected}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_outputs_are_stored(path):
    plain = [c for _, source, c in cells(path, "code") if source.strip() and not set(directives(source)) & {"default_exp", "export", "exporti", "hide"}]
    assert not plain or any(c.get("outputs") for c in plain), "committed without any output"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_title_becomes_the_docstring(path):
    kind, source, _ = cells(path)[0]
    assert kind == "markdown" and re.match(r"# \S.*\n\n?> \S[^\n]*$", source.strip()), "the first cell must be a title and one > sentence"


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.name == "index.ipynb"], ids=[i for i in IDS if i.endswith("index.ipynb")])
def test_tables_of_an_index_are_current(path):
    """They are made from the catalogue; a paper that was added since would be missing from the stored table."""
    now, _ = execute(path)
    stored = {i: c["outputs"] for i, (_, _, c) in enumerate(cells(path)) if i in now}

    def texts(outputs):
        return [o.get("data", {}).get("text/plain") for cell in outputs.values() for o in cell]

    assert texts(now) == texts(stored), f"run python tests/notebooks.py {path.relative_to(ROOT)}"


def test_cards_are_current(catalogue):
    """A card names what builds on its paper, so a new paper changes the cards of older ones."""
    stale = []
    for path in NOTEBOOKS:
        for _, source, cell in cells(path, "code"):
            for key in re.findall(r'papers\.card\("(\w+)"\)\s*$', source):
                texts = ["".join(o.get("data", {}).get("text/plain", "")) for o in cell.get("outputs", [])]
                stale += [str(path.relative_to(ROOT))] * (repr(papers.card(key)) not in texts)
    assert not stale, f"run python tests/notebooks.py {' '.join(stale)}"


def test_export_is_in_sync(tmp_path):
    """The committed package is what the notebooks export, and nothing else but papers.toml and the widgets' front ends."""
    ours = files_below(ROOT)
    by_hand = {p for p in ours if p.suffix in (".toml", ".js", ".css")}
    for name in ("nbs", "settings.ini", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for path in by_hand:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    subprocess.run([Path(sys.executable).with_name("nbdev_export")], cwd=tmp_path, check=True)
    assert ours == files_below(tmp_path), "files that no notebook exports, or exports that are not committed"
    stale = [str(p) for p in ours if not filecmp.cmp(ROOT / p, tmp_path / p, shallow=False)]
    assert not stale, f"run nbdev_export: {stale}"


def files_below(root):
    return {p.relative_to(root) for p in (root / "holocron_nb").rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def test_imports_run_one_way():
    """A room imports only rooms above it in the house, and nothing is imported inside a function to dodge a circle."""
    above = {
        "papers": set(),
        "nn": {"papers"},
        "ops": {"papers"},
        "optim": {"papers"},
        "transforms": {"papers"},
        "utils": {"papers"},
        "models": {"nn", "ops", "papers"},
        "trainer": {"models", "optim", "utils", "papers"},
        "viz": {"utils", "papers"},
        "widgets": {"trainer", "viz", "utils", "papers"},
    }
    problems = []
    for path in sorted((ROOT / "holocron_nb").rglob("*.py")):
        parts = path.relative_to(ROOT / "holocron_nb").parts
        if len(parts) == 1:
            continue
        allowed = above[parts[0]] | {parts[0]}
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names = _absolute(node, ("holocron_nb", *parts[:-1]))
                if names[:1] == ("holocron_nb",) and len(names) > 1 and names[1] not in allowed:
                    problems.append(f"{path.relative_to(ROOT)}: imports {'.'.join(names)}")
    assert not problems, "\n".join(problems)


def _absolute(node, package):
    base = package[: len(package) - node.level + 1] if node.level else ()
    return (*base, *(node.module or "").split(".")) if node.module else base


@pytest.fixture(scope="module")
def catalogue():
    return papers.catalogue()


def test_paper_notebooks_have_all_parts(catalogue):
    problems = []
    for notebook in sorted({p.notebook for p in catalogue.values()}):
        path = ROOT / "nbs" / f"{notebook}.ipynb"
        if not path.is_file():
            problems.append(f"{notebook}: there is no such notebook")
            continue
        texts = [source for kind, source, _ in cells(path) if kind == "markdown"]
        headings = [h for text in texts for h in re.findall(r"^## (.+)$", text, re.M)]
        positions = [headings.index(part) if part in headings else None for part in PARTS]
        if None in positions or positions != sorted(positions):
            problems.append(f"{notebook}: expected the parts {PARTS}, got {headings}")
        code = "\n".join(source for kind, source, _ in cells(path, "code"))
        for paper in (p for p in catalogue.values() if p.notebook == notebook):
            if f'card("{paper.key}")' not in code:
                problems.append(f"{notebook}: no card of {paper.key}")
            if paper.figures and f'check("{paper.key}"' not in code:
                problems.append(f"{notebook}: the figures of {paper.key} are not checked")
    assert not problems, "\n".join(problems)


def test_every_statement_is_recorded(catalogue):
    recorded = {}
    for path in NOTEBOOKS:
        for _, _, cell in cells(path, "code"):
            for output in cell.get("outputs", []):
                if CLAIM_MIME in output.get("data", {}):
                    claim = output["data"][CLAIM_MIME]
                    recorded[claim["paper"], claim["name"]] = str(path.relative_to(ROOT / "nbs").with_suffix(""))
    stated = {(p.key, s.name): p.notebook for p in catalogue.values() for s in p.statements}
    assert recorded == stated

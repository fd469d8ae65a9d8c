"""Runs notebooks without Jupyter, each in a process of its own, and stores their outputs.

    python tests/notebooks.py nbs/nn/losses/focal.ipynb              # run the CPU cells, store their outputs
    python tests/notebooks.py --flags gpu nbs/nn/losses/focal.ipynb  # the cells under `#| gpu` too
    python tests/notebooks.py --check nbs                            # run everything, store nothing

Cells that begin with a flag of settings.ini's `tst_flags` run only when asked for and keep their stored outputs otherwise. The runner
needs only torch and matplotlib, so it also works on a bare GPU machine.
"""

import argparse
import ast
import base64
import builtins
import configparser
import contextlib
import io
import json
import linecache
import multiprocessing
import os
import re
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRELOAD = ["torch", "torchvision", "matplotlib.pyplot", "PIL.Image", "numpy"]


def _settings(key):
    config = configparser.ConfigParser()
    config.read(ROOT / "settings.ini")
    return config["DEFAULT"][key].split()


def directives(source):
    """The directives on the first lines of a cell: `#| export` gives {"export": ""}."""
    found = {}
    for line in source.splitlines():
        match = re.match(r"\s*#\s*\|\s*([\w-]+):?\s*(.*)$", line)
        if not match:
            break
        found[match[1]] = match[2].strip()
    return found


def notebooks(*roots):
    """All notebooks below the folders (default: nbs and tutorials), in order."""
    paths = []
    for root in map(Path, roots or (ROOT / "nbs", ROOT / "tutorials")):
        paths += sorted(root.rglob("*.ipynb")) if root.is_dir() else [root]
    return [p for p in paths if ".ipynb_checkpoints" not in p.parts]


def _bundle(value):
    """A value as a notebook shows it: {mime type: content}."""
    if hasattr(value, "_repr_mimebundle_"):
        bundle = value._repr_mimebundle_()
        bundle = bundle[0] if isinstance(bundle, tuple) else bundle
        if bundle:
            return {k: v for k, v in bundle.items() if "widget-view" not in k}
    bundle = {"text/plain": repr(value)}
    for mime, method in {"text/html": "_repr_html_", "text/markdown": "_repr_markdown_", "image/png": "_repr_png_"}.items():
        content = getattr(value, method, lambda: None)()
        if content is not None:
            bundle[mime] = base64.b64encode(content).decode() if isinstance(content, bytes) else content
    return bundle


@dataclass
class _Capture(io.TextIOBase):
    """Collects what a cell prints and displays, in order."""

    outputs: list = field(default_factory=list)

    def writable(self):
        return True

    def write(self, text):
        if self.outputs and self.outputs[-1]["output_type"] == "stream":
            self.outputs[-1]["text"] += text
        elif text:
            self.outputs.append({"output_type": "stream", "name": "stdout", "text": text})
        return len(text)

    def display(self, *values):
        for value in values:
            self.outputs.append({"output_type": "display_data", "data": _bundle(value), "metadata": {}})

    def figures(self):
        import matplotlib.pyplot as plt

        for number in plt.get_fignums():
            figure = plt.figure(number)
            png = io.BytesIO()
            figure.savefig(png, format="png", bbox_inches="tight", metadata={"Software": None})
            width, height = figure.get_size_inches()
            data = {"image/png": base64.b64encode(png.getvalue()).decode() + "\n"}
            data["text/plain"] = f"<Figure size {width * figure.dpi:.0f}x{height * figure.dpi:.0f} with {len(figure.axes)} Axes>"
            self.outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
        plt.close("all")


def _run_cell(source, namespace, name):
    """Executes a cell's code; captures print, display, the value of a last expression and open figures."""
    capture = _Capture()
    builtins.display = capture.display
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # so that inspect.getsource works
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";") else None
    with contextlib.redirect_stdout(capture):
        exec(compile(tree, name, "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
            if value is not None:
                capture.outputs.append({"output_type": "execute_result", "data": _bundle(value), "metadata": {}, "execution_count": None})
    capture.figures()
    return capture.outputs


def _lines(text):
    return text.splitlines(keepends=True)


def _stored(output):
    """An output in the form that nbformat stores: texts as lists of lines."""
    if output["output_type"] == "stream":
        return {**output, "text": _lines(output["text"])}
    data = {k: _lines(v) if k.startswith("text/") and isinstance(v, str) else v for k, v in output["data"].items()}
    return {**output, "data": data}


def _execute(path, flags, connection):
    """In the child process: runs the notebook from top to bottom and sends (cells' outputs, CPU seconds, error text)."""
    os.chdir(path.parent)
    sys.path.insert(0, str(ROOT))
    import matplotlib
    import torch

    matplotlib.use("agg")
    torch.set_num_threads(1)
    skipped = set(_settings("tst_flags")) - set(flags)
    namespace = {"__name__": "__main__"}
    sys.modules["__main__"].__dict__.update(namespace)
    outputs, start, error = {}, time.process_time(), None
    for index, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(cell["source"])
        marks = directives(source)
        if cell["cell_type"] != "code" or not source.strip() or skipped & set(marks) or marks.get("eval") == "false":
            continue
        try:
            outputs[index] = [_stored(o) for o in _run_cell(source, namespace, f"<{path.stem} cell {index}>")]
        except BaseException:
            error = f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}, cell {index}:\n{source}\n\n{traceback.format_exc()}"
            break
    connection.send((outputs, time.process_time() - start, error))


class NotebookError(AssertionError):
    """A cell of a notebook raised."""


def execute(path, flags=()):
    """Runs a notebook in a fresh process.

    Returns the outputs by cell and the CPU seconds of the cells. Raises NotebookError with the cell and its traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_execute, args=(path, tuple(flags), sender))
    process.start()
    sender.close()
    try:
        outputs, seconds, error = receiver.recv()
    except EOFError:
        process.join()
        raise NotebookError(f"{path}: the process ended with exit code {process.exitcode}") from None
    process.join()
    if error:
        raise NotebookError(error)
    return outputs, seconds


def run(path, flags=(), store=False, show=False):
    """Runs a notebook, stores its outputs or prints their texts if asked to, and returns the CPU seconds of its cells."""
    path = Path(path).resolve()
    outputs, seconds = execute(path, flags)
    if store:
        _store(path, outputs)
    if show:
        for output in (o for cell in outputs.values() for o in cell):
            print("".join(output.get("text") or output["data"]["text/plain"]).rstrip(), flush=True)
    return seconds


def _store(path, outputs):
    notebook = json.loads(path.read_text())
    notebook["metadata"] = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            cell["execution_count"] = None
            cell["outputs"] = outputs.get(index, cell.get("outputs", []))
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    os.replace(beside, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="notebooks or folders (default: nbs and tutorials)")
    parser.add_argument("--flags", nargs="*", default=[], help="flagged cells to run too: gpu, download")
    parser.add_argument("--check", action="store_true", help="store nothing")
    parser.add_argument("--print", action="store_true", help="print what the cells print")
    args = parser.parse_args()
    failed = 0
    for path in notebooks(*args.paths):
        try:
            print(f"{path}: {run(path, args.flags, store=not args.check, show=args.print):.1f} s of CPU", flush=True)
        except NotebookError as error:
            failed += 1
            print(error, file=sys.stderr, flush=True)
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    main()

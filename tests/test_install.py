"""The commands of the README, from a clean clone in an environment of its own, and what `pip install .` gives."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
import zipfile
from email.parser import Parser

import pytest
from notebooks import ROOT

RUNTIME = {"torch", "torchvision", "accelerate", "matplotlib", "pillow", "tqdm", "ipywidgets", "anywidget"}


def run(*command, **kwargs):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, stdin=subprocess.DEVNULL, **kwargs)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The committed tree with the uncommitted changes of tracked files, as a clone of its own."""
    path = tmp_path_factory.mktemp("clone") / "holocron_nb"
    run("git", "clone", "--quiet", ROOT, path)
    changes = run("git", "-C", ROOT, "diff", "HEAD", "--binary")
    if changes:
        subprocess.run(["git", "-C", path, "apply", "-"], input=changes, text=True, check=True)
    yield path
    shutil.rmtree(path)  # its environment weighs gigabytes


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, clone)
    return next(folder.glob("*.whl"))


def test_users_get_only_the_runtime_dependencies(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = Parser().parsestr(archive.read(next(n for n in names if n.endswith(".dist-info/METADATA"))).decode())
    required = {re.match(r"[\w-]+", r)[0] for r in metadata.get_all("Requires-Dist") if "extra ==" not in r}
    assert required == RUNTIME
    tracked = {n for n in run("git", "-C", ROOT, "ls-files", "holocron_nb").split() if not n.endswith("_modidx.py")}
    assert tracked <= names, f"not in the wheel: {tracked - names}"


def test_the_wheel_works_by_itself(wheel, tmp_path):
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", wheel)
    code = "import holocron_nb, holocron_nb.papers as p; print(holocron_nb.__file__, len(p.catalogue()))"
    out = run(sys.executable, "-c", code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})
    assert str(tmp_path / "site") in out


def test_settings_and_metadata_agree():
    from notebooks import _settings

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == _settings("lib_name")[0]
    assert project["requires-python"] == f">={_settings('min_python')[0]}"
    assert project["dependencies"] == _settings("requirements")


def test_import_brings_neither_the_trainer_nor_matplotlib():
    code = "import sys, torch, torchvision, holocron_nb; print(sorted({'accelerate', 'matplotlib', 'anywidget'} & set(sys.modules)))"
    assert run(sys.executable, "-c", code, cwd=ROOT).strip() == "[]"


def test_readme_is_made_from_the_index():
    sys.path.insert(0, str(ROOT / "docs"))
    from readme import readme

    assert (ROOT / "README.md").read_text() == readme(), "run make export"


def test_the_two_commands_from_a_clean_clone(clone, tmp_path):
    """`make lab` opens the quick tour in JupyterLab and `make test` runs the checks, each setting up what it needs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "PYTEST", "PYTHONPATH", "MAKE"))}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = f"--no-browser --ServerApp.token= --ServerApp.ip=127.0.0.1 --port={port} --allow-root"
    log = tmp_path / "lab.log"  # a file: a pipe that nobody reads fills up and stops the server
    with log.open("w") as out:
        lab = subprocess.Popen(
            ["make", "lab", f"PYTHON={sys.executable}", f"LAB_ARGS={arguments}"], cwd=clone, env=environment,
            stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        tour = _wait_for(f"http://127.0.0.1:{port}/api/contents/tutorials/quicktour.ipynb", lab, log, seconds=900)
        assert tour["content"]["cells"], "the quick tour is empty"
    finally:
        os.killpg(lab.pid, 15)
        lab.wait()
    out = run("make", "test", f"PYTHON={sys.executable}", "PYTEST_ARGS=tests/test_notebooks.py -k sync", cwd=clone, env=environment)
    assert re.search(r"1 passed", out)


def _wait_for(url, process, log, seconds):
    """Asks for the address until it answers; fails with the process's output if that ends first."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer within {seconds} s\n{log.read_text()[-3000:]}")

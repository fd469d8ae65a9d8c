"""The notebooks, the tests and the scripts pass ruff with the rules of pyproject.toml; the package is made from the notebooks."""

import subprocess
import sys

from notebooks import ROOT


def test_ruff_finds_nothing():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr

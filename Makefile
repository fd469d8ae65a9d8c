# Each target sets up what it needs: an environment in .venv (or VENV=path of one that you have), and the package in it with all that its notebooks use.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.holocron_nb

.PHONY: lab tour test docs export clean

lab: $(STAMP)
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/tutorials/quicktour.ipynb $(LAB_ARGS)

tour: $(STAMP)
	$(BIN)/python tests/notebooks.py --check --print tutorials/quicktour.ipynb

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

docs: $(STAMP)
	$(BIN)/python docs/pages.py _docs
	@echo "Open _docs/index.html"

export: $(STAMP)
	$(BIN)/nbdev_export
	$(BIN)/python docs/readme.py

$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'holocron_nb needs Python 3.11 or later; call make PYTHON=python3.12, say')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

clean:
	rm -rf _docs build *.egg-info

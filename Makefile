# Each target sets up what it needs: an environment in .venv (or VENV=path of one that you have), the package in it, nothing else.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.holocron_nb

.PHONY: lab tour test docs export clean

lab: $(STAMP)-lab
	$(BIN)/jupyter lab tutorials/quicktour.ipynb

tour: $(STAMP)-dev
	$(BIN)/python tests/notebooks.py --check --print --flags download -- tutorials/quicktour.ipynb

test: $(STAMP)-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

docs: $(STAMP)-dev
	$(BIN)/python -m sphinx -W -b html docs _docs
	@echo "Open _docs/index.html"

export: $(STAMP)-dev
	$(BIN)/nbdev_export
	$(BIN)/python docs/readme.py

$(STAMP)-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'holocron_nb needs Python 3.11 or later; call make PYTHON=python3.12, say')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

clean:
	rm -rf _docs build *.egg-info

# make train | test | lint | docs | check: each installs what it needs into .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install train test test-slow test-gpu test-third-party lint docs check format clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

train: $(INSTALLED)
	$(BIN)/es-train --config humanoid.yaml

# Three processes, whatever the number of cores: many tests start processes of their own, and wait for them.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 3 --dist loadfile

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

# Other packages' environments, in a virtual environment of their own.
THIRD_PARTY := .venv-third-party

test-third-party: $(THIRD_PARTY)/.installed
	$(THIRD_PARTY)/bin/python -m pytest -m third_party tests/third_party

$(THIRD_PARTY)/.installed: pyproject.toml constraints.txt tests/third_party/requirements.txt
	$(PYTHON) -m venv $(THIRD_PARTY)
	$(THIRD_PARTY)/bin/python -m pip install --quiet -c constraints.txt -e . -r tests/third_party/requirements.txt
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: lint test docs

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(THIRD_PARTY) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# make demo | test | check | bench; the first run makes .venv from the lock and fetches the jars once
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench setup clean

demo: setup
	$(BIN)/headrace demo

# Two workers, because half of a test is waiting; a file stays on one, and they are begun in the order of tests/conftest.py.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 20

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_structure.py

bench: setup
	$(BIN)/python -m tests.bench

setup: .venv/installed
	@$(BIN)/headrace fetch > /dev/null

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf .venv build

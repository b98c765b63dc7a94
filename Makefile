# Every habit of the project. `make quickstart` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV ?= .venv
# Versions tested together; CONSTRAINTS=/dev/null takes what the index has.
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin

.PHONY: setup quickstart test lint types bench kill-test schema dataset clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[train,dev]'
	touch $@

setup: $(VENV)/.ready  ## a virtual environment with everything

quickstart: setup  ## the main job, from a dataset to a measured model
	$(BIN)/pillm run quickstart

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

test: lint  ## all checks and tests
	$(BIN)/python -m pytest

bench: setup  ## speed, as ratios in one run (docs/benchmarks.md)
	$(BIN)/python benchmarks/help_time.py
	$(BIN)/python benchmarks/packing.py

kill-test: setup  ## kill -9 at ten random moments of the quickstart
	$(BIN)/python benchmarks/kill_quickstart.py

schema: setup  ## the profile schema, from the options models
	$(BIN)/pillm profile schema > src/pillm/profiles/profile.schema.json

dataset: setup  ## the shipped dataset, from its hand-written material
	$(BIN)/python -m pillm.data.home_assistant

clean:
	rm -rf $(VENV) runs

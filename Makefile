# Every habit of the project. `make quickstart` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV ?= .venv
# Versions tested together; CONSTRAINTS=/dev/null takes what the index has.
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin

.PHONY: setup quickstart test lint data bench kill-test schema dataset clean

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

HOME_ASSISTANT := src/pillm/data/shipped/home-assistant
# smoke is a part of train, for quick trials.
SPLITS := train.jsonl development.jsonl heldout.jsonl

data: setup  ## the shipped dataset has no fault, and its card holds
	$(BIN)/pillm dataset validate $(addprefix $(HOME_ASSISTANT)/,$(SPLITS)) --strict
	$(BIN)/python -m pillm.data.dataset_card --validate $(HOME_ASSISTANT)

test: lint data  ## all checks and tests
	$(BIN)/python -m pytest

bench: setup  ## speed, as ratios in one run (docs/benchmarks.md)
	$(BIN)/python benchmarks/help_time.py
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/validate_speed.py
	$(BIN)/python benchmarks/card_speed.py
	$(BIN)/python benchmarks/predict_published.py

kill-test: setup  ## kill -9 at ten random moments of the quickstart
	$(BIN)/python benchmarks/kill_quickstart.py

schema: setup  ## the schemas of profiles, dataset cards and measurements, from their models
	$(BIN)/pillm profile schema > src/pillm/profiles/profile.schema.json
	$(BIN)/python -m pillm.data.card.source > src/pillm/data/card/card.schema.json
	$(BIN)/python -m pillm.bench.schema > src/pillm/bench/pi_bench.schema.json

dataset: setup  ## the shipped dataset, from its hand-written material
	$(BIN)/python -m pillm.data.home_assistant
	cd $(HOME_ASSISTANT) && $(abspath $(BIN))/pillm dataset card $(SPLITS) --out=.

clean:
	rm -rf $(VENV) runs

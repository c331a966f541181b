# Everything to do with this repository. A first call sets up .venv; later calls reuse it.
#   PYTHON       the Python that .venv is made with, 3.11 or newer
#   TORCH_INDEX  package index for torch alone, such as PyTorch's index of CPU wheels

PYTHON ?= python3
TORCH_INDEX ?=
RUN := .venv/bin/python
# each test computes on one thread; files stay whole, as what is costly to make is shared within one
SPREAD := --numprocesses logical --maxprocesses 8 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test torture check bench schema clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/installed  ## train the built-in model and show what it learnt; no network, no GPU
	$(RUN) -m finetooth demo

test: .venv/installed  ## run the tests, on all processors
	$(RUN) -m pytest $(SPREAD)

torture: .venv/installed  ## kill and damage runs for up to 40 minutes
	$(RUN) -m pytest -m torture $(SPREAD) tests/torture

check: .venv/installed  ## lint, format, types, layers and sizes
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright
	.venv/bin/lint-imports
	$(RUN) tools/size_report.py

bench: .venv/installed  ## measure whole training runs on this machine, beside TRL
	$(RUN) bench/whole_runs.py

schema: .venv/installed  ## write docs/run.schema.json from the settings
	$(RUN) -m finetooth.config.json_schema > docs/run.schema.json.new
	mv docs/run.schema.json.new docs/run.schema.json

clean:  ## remove .venv, caches and builds; runs/ stays
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is not a Python of version 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

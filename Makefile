# The only entry points. `make help` lists them.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check --quiet install --constraint constraints.txt
# Editable installs resolve their build requirements apart from ours; the same constraints hold there.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo up servers test check stress bench docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.run ## set up, start the platform, seed it, drive traffic, show what happens (DEMO_SECONDS=n ends it)
	@$(VENV)/bin/springtide demo $(if $(DEMO_PORT),--port $(DEMO_PORT))

up: $(VENV)/.run ## set up and start the platform of springtide.toml in the foreground
	@$(VENV)/bin/springtide up

servers: ## install the Debian packages that the tests use, without letting them start by themselves (root)
	@bash .ci/servers install

test: $(VENV)/.dev ## set up what the tests need and run them
	@bash .ci/servers ensure
	@bash .ci/tests $(VENV)/bin/python

check: $(VENV)/.dev ## lint, format, types, import boundaries
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check src apps tests bench
	@$(VENV)/bin/mypy
	@PYTHONPATH=apps $(VENV)/bin/lint-imports

stress: $(VENV)/.dev ## the long runs that break the world
	@bash .ci/servers ensure
	@$(VENV)/bin/python -m pytest -m stress --timeout=1800

bench: $(VENV)/.bench ## every benchmark, quickly; one alone: .venv/bin/python -m bench.NAME
	@for file in bench/[a-z]*.py; do \
	  name=$$(basename $$file .py); echo "== bench.$$name"; \
	  $(VENV)/bin/python -m bench.$$name --quick || exit 1; done

docs: $(VENV)/.dev ## run every example in README and docs
	@$(VENV)/bin/python -m pytest tests/*/test_*_docs.py

clean: ## remove what the targets above made, except data in .springtide/
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Springtide needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# Three sizes of the same environment: to run, to develop, to measure against peers.
$(VENV)/.run: $(VENV)/bin/pip pyproject.toml constraints.txt
	@echo "setting up $(VENV)"
	@$(PIP) --editable '.[advise,web,identity,embedded,market]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/pip pyproject.toml constraints.txt
	@echo "setting up $(VENV) for development"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.run

$(VENV)/.bench: $(VENV)/bin/pip pyproject.toml constraints.txt
	@echo "setting up $(VENV) with the peers that the benchmarks measure"
	@$(PIP) --editable '.[bench]'
	@touch $@ $(VENV)/.dev $(VENV)/.run

# Polyphony on one machine. `make demo` trains and reports, `make test` checks everything; both set up .venv first.
# A cluster is described in cluster.yaml and takes jobs with `ray job submit`.

PYTHON ?= python3
RECIPE ?= jobs/recipes/tiny_cpu.yaml
RUN ?= runs/demo

BIN := .venv/bin
# Requirements of pyproject.toml whose names match a pattern, so that versions are written once.
REQUIREMENTS = $(BIN)/python -c 'import re, sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*(each for each in project["dependencies"] if re.match(sys.argv[1], each)), sep="\n")'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lint format clean

help: ## Show the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.installed ## Create .venv and install Polyphony with its demo and development extras.

# torch comes first and build isolation is off, because DeepSpeed's build reads the installed torch.
.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; version = sys.version_info[:2]; sys.exit(0 if (3, 11) <= version < (3, 13) else \
	"Polyphony needs Python 3.11 or 3.12, not %d.%d: set PYTHON, as in `make $(or $(MAKECMDGOALS),install) PYTHON=python3.12`" % version)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel ninja
	$(REQUIREMENTS) 'torch' > .venv/torch.txt
	$(REQUIREMENTS) 'deepspeed' > .venv/deepspeed.txt
	$(BIN)/pip install --quiet --requirement .venv/torch.txt
	$(BIN)/pip install --quiet --requirement .venv/deepspeed.txt --no-build-isolation
	$(BIN)/pip install --quiet --editable '.[demo,dev]' --no-build-isolation
	@touch $@

demo: .venv/.installed ## Train the tiny omni model on a local Ray, from data to report.
	$(BIN)/python -m jobs.local -- python -m jobs.quickstart --config $(abspath $(RECIPE)) run.directory=$(abspath $(RUN))
	@echo "The report: $(abspath $(RUN))/report.html"

test: lint ## Run the linters, the type checker, the import contracts and the tests.
	$(BIN)/pytest

lint: .venv/.installed ## Run the linters, the type checker and the import contracts.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/.installed ## Format the code and mend what the linter can mend.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove .venv and caches; runs/ stays.
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache

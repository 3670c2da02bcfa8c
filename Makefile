# Polyphony on one machine. `make demo` trains and reports, `make test` checks everything; both set up .venv first.
# A cluster is described in cluster.yaml and takes jobs with `ray job submit`.

RECIPE ?= jobs/recipes/tiny_cpu.yaml
RUN ?= runs/demo
# What makes .venv; without it, the first of PYTHONS that will do.
PYTHON ?=

# Ray starts nothing from a path with a blank, or with signs that shells read (`polyphony (1)`): a checkout that has such
# in its path is reached by a link that has none. In octal: " # $ ' \ and `.
PLAIN := tr ' ()&;<>|*?[]{}\042\043\044\047\134\140' _
plain := $(shell pwd -P | $(PLAIN))
HERE := $(if $(shell [ "$$(pwd -P)" = "$(plain)" ] || echo odd),$(HOME)/.local/share/polyphony$(plain),.)
BIN := $(HERE)/.venv/bin
VERSIONS := 3.13 3.12 3.11 3.14
PYTHONS = $(BIN)/python python3 $(VERSIONS:%=python%) $(VERSIONS:%="$$pyenv"/versions/%.*/bin/python)
# Each is tried and not only looked for: pyenv's `python3.13` on PATH answers only where pyenv has selected a 3.13, and
# Debian's python3 has no ensurepip, without which there is no pip in .venv.
WILL_DO = import ensurepip, sys, venv; sys.exit("%d.%d" % sys.version_info[:2] not in sys.argv)
# Requirements of pyproject.toml whose names match a pattern, so that versions are written once.
REQUIREMENTS = $(BIN)/python -c 'import re, sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*(each for each in project["dependencies"] if re.match(sys.argv[1], each)), sep="\n")'
# Unlike make's abspath it takes blanks.
absolute = $$(realpath -ms "$(1)")

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo people test lint style format clean

help: ## Show the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.installed ## Create .venv and install Polyphony with its demo and development extras.

# torch comes first and build isolation is off, because DeepSpeed's build reads the installed torch.
.venv/.installed: pyproject.toml
	@[ "$(HERE)" = "$$(echo "$(HERE)" | $(PLAIN))" ] || { echo "Ray starts nothing from a path like this one, and HOME is \
	no place for a link to it either. Move the checkout to a path without blanks and brackets." >&2; exit 1; }
	@[ "$(HERE)" = . ] || { mkdir -p "$$(dirname "$(HERE)")" && ln -sfn "$$(pwd -P)" "$(HERE)"; }
	@pyenv=$$(pyenv root 2>/dev/null || echo "$$HOME/.pyenv"); \
	for python in $(if $(PYTHON),"$(PYTHON)",$(PYTHONS)); do \
		"$$python" -c '$(WILL_DO)' $(VERSIONS) 2>/dev/null && exec "$$python" -m venv "$(HERE)"/.venv; \
	done; \
	exec >&2; \
	echo "Polyphony needs Python $(sort $(VERSIONS)) with venv, and $(if $(PYTHON),$(PYTHON) is not one,found none)."; \
	echo "On Debian and Ubuntu: sudo apt install python3-venv, or python3.12-venv where python3 is another version."; \
	echo "One that is elsewhere: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python"; \
	exit 1
	@echo "Installing PyTorch, DeepSpeed, Ray and the rest into .venv: some minutes, 8 GB"
	@$(BIN)/pip install --quiet --upgrade pip setuptools wheel ninja
	@$(REQUIREMENTS) 'torch' > .venv/torch.txt
	@$(REQUIREMENTS) 'deepspeed' > .venv/deepspeed.txt
	@$(BIN)/pip install --quiet --requirement .venv/torch.txt
	@$(BIN)/pip install --quiet --requirement .venv/deepspeed.txt --no-build-isolation
	@$(BIN)/pip install --quiet --editable '.[demo,dev]' --no-build-isolation
	@touch $@

demo: .venv/.installed ## Train the tiny omni model on a local Ray, from data to report.
	$(BIN)/python -m jobs.local -- python -m jobs.quickstart --config "$(call absolute,$(RECIPE))" \
		"run.directory=$(call absolute,$(RUN))"
	@echo "The report: $(call absolute,$(RUN))/report.html"

people: RECIPE := jobs/recipes/people.yaml
people: RUN := runs/people
people: demo ## Steer the tiny omni model yourself: the same, with a page on which you judge its answers meanwhile.

test: style ## Run the linters, the import contracts, and the type checker beside the tests.
	@$(BIN)/pyright & types=$$!; $(BIN)/pytest --numprocesses=2 --dist=loadscope; tests=$$?; wait $$types && exit $$tests

lint: style ## Run the linters, the import contracts and the type checker.
	$(BIN)/pyright

style: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

format: .venv/.installed ## Format the code and mend what the linter can mend.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove .venv and caches; runs/ stays.
	[ "$(HERE)" = . ] || rm -rf "$(HERE)"
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache

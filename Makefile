# Every command installs what it needs first. Root gets the service environment (/opt/mep), other accounts one
# in the checkout. PREFIX=DIR chooses another place; PREFIX-build and PREFIX-tests stand beside it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

UID := $(shell id -u)
PREFIX ?= $(if $(filter 0,$(UID)),/opt/mep,$(CURDIR)/.venv)
BIN := $(PREFIX)/bin
TOOLS := $(PREFIX)-tests/bin
INSTALL := python3 -I packaging/install.py --prefix "$(PREFIX)" $(addprefix --with ,$(WITH))

# The suite waits more than it computes: a few files of tests run side by side. JOBS=0 runs one test at a time.
JOBS ?= 4

# Nothing may import the checkout in place of what is installed.
unexport PYTHONPATH PYTHONHOME
export PYTHONSAFEPATH := 1
# Pinned wheels; nothing asks a question.
export PIP_NO_INPUT := 1

.PHONY: help install tools packages test check lint types unit simulate faults soak demo bench docs site seccomp lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */make \1\t/' | expand -t 16

install: ## install into PREFIX (the other commands do it themselves); WITH=kubernetes adds that provider
	@$(INSTALL)

tools: ## install, and put what tests, lint and types need into PREFIX-tests
	@$(INSTALL) --tools

test: ## lint, types and every test
	@$(INSTALL) --tests
	@$(MAKE) lint types
	@"$(TOOLS)/pytest" --cache-clear -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not alone" || \
		"$(TOOLS)/python" tests/second_run.py "$(TOOLS)/pytest" -m "not alone"
	@"$(TOOLS)/pytest" -m alone || [ $$? -eq 5 ]  # 5: none is left for an account that is not root

check: tools ## the quick part of the tests: lint, types, unit
	@$(MAKE) lint types unit

lint: tools
	@"$(TOOLS)/ruff" check --quiet .
	@"$(TOOLS)/ruff" format --quiet --check .
	@"$(BIN)/python" docs/prose_lint.py

types: tools
	@"$(TOOLS)/mypy" --no-error-summary

unit: tools
	@"$(TOOLS)/pytest" -q -n $(JOBS) --dist loadfile tests/unit

SEED ?= 1
STEPS ?= 1000000
simulate: tools ## the delivery rules in simulated time, faults drawn from a seed (SEED=, STEPS=, SIMULATE_ARGS=)
	@PYTHONPATH="$(CURDIR)/tests" PYTHONHASHSEED=0 "$(TOOLS)/python" -m simulation --seed $(SEED) --steps $(STEPS) $(SIMULATE_ARGS)

FAULTS_S ?= 300
CAMPAIGN := PYTHONPATH="$(CURDIR)/demo" "$(BIN)/python" tests/campaign/__main__.py
faults: ## faults on a real relay and endpoint, as root (SEED=, FAULTS_S=, FAULTS_ARGS="--only relay --json")
	@$(INSTALL) --tests
	@$(CAMPAIGN) --seed $(SEED) --seconds $(FAULTS_S) $(FAULTS_ARGS)

SOAK_S ?= 600
soak: tools ## a long load: memory, descriptors, WAL and rates every 10 s, and their slopes (SOAK_S=)
	@$(CAMPAIGN) --soak $(SOAK_S) $(FAULTS_ARGS)

demo: install ## the main job: two people's functions run as their own accounts
	@PYTHONPATH="$(CURDIR)/demo" "$(BIN)/python" demo/demo.py

bench: tools ## measure, beside bare Parsl and ssh (BENCH_ARGS="--json" and others)
	@PYTHONPATH="$(CURDIR)/demo:$(CURDIR)/benchmarks" "$(BIN)/python" benchmarks/run.py $(BENCH_ARGS)

docs: install ## write the generated pages of docs/ and the examples of etc/ anew
	@"$(BIN)/python" docs/generate.py
	@"$(BIN)/python" -m mep.config.example etc/mep/example
	@"$(BIN)/python" -m relay.example etc/mep-relay.toml

site: tools ## the pages as a site in build/site; a warning is an error
	@"$(TOOLS)/sphinx-build" -q -W --keep-going -j auto -c docs -d build/doctrees . build/site
	@echo build/site/index.html

packages: tools ## .deb, .rpm, wheels and sdist in dist/, reproducible (PYTHON=3.13, PYTHON=all); only the wheelhouse needs a network
	@"$(PREFIX)-build/bin/python" packaging/packages.py --build "$(PREFIX)-build" --python $(PYTHON) $(PACKAGES_ARGS)

lock: ## write packaging/lock/ from packaging/constraints.txt and pyproject.toml
	@python3 -I packaging/lock.py

seccomp: tools ## write the helpers' lists of system calls anew, from a traced run (root)
	@"$(TOOLS)/python" packaging/trace_syscalls.py

clean: ## remove what building and testing left in the checkout
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .work .venv .venv-build .venv-tests
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# Every target sets up what it needs; if that exists already, this takes about a second.
#
#   PYTHON=python3.12        the interpreter that the virtual environment is made from
#   VENV=.venv               where that is created
#   CLUSTERS="registry"      which real services `make test` uses (default: all of them)
#   EXCLUDE="docker"         which ones this machine cannot run; the summary lists them
#   PYTEST_ARGS="-k name"    passed on to pytest
#
# make cluster-NAME          starts a real cluster and prints how to use it (also -logs, -down);
#                            NAME: registry docker apptainer s3 k8s slurm ssh

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
CLUSTERS ?=
EXCLUDE ?=
# Each worker starts clusters of its own.
WORKERS ?= auto --maxprocesses=4
PYTEST_ARGS ?=

# Always `python -m`: the scripts of a virtual environment break in paths with a space.
RUN := "$(VENV)/bin/python" -m
PYTEST := $(RUN) pytest -n $(WORKERS) --dist worksteal

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@awk 'NR > 1 && /^#/ { sub(/^# */, "    "); print; next } NR > 1 { exit }' Makefile

.PHONY: demo
demo: setup-demo ## a parameter sweep with scikit-learn, each fit in a container (needs only PyPI)
	@"$(VENV)/bin/python" examples/digits.py

.PHONY: test
test: check-root setup-system static ## everything: static checks, then all tests, including those on real services
	@$(PYTEST) --clusters "$(CLUSTERS)" --exclude "$(EXCLUDE)" $(PYTEST_ARGS)

.PHONY: check-root
check-root:
	@[ "$$(id -u)" = 0 ] || echo "make test: not root: machines, kubernetes, slurm, ssh and docker cannot be" \
	  "started; exclude them by name: EXCLUDE=\"machines kubernetes slurm ssh docker\"" >&2

.PHONY: test-all
test-all: ## `make test` plus every variant, every kill point and the largest results
	@$(MAKE) test PYTEST_ARGS='--all $(PYTEST_ARGS)'

# `make cluster-slurm` starts one and prints how to use it; `make cluster-slurm-down` stops it.
cluster-%-down: setup
	@$(RUN) tests.clusters.$(patsubst k8s,kubernetes,$*) down

cluster-%-logs: setup
	@$(RUN) tests.clusters.$(patsubst k8s,kubernetes,$*) logs

cluster-%: setup
	@scripts/setup-system.sh "$(patsubst k8s,kubernetes,$*)" ""
	@$(RUN) tests.clusters.$(patsubst k8s,kubernetes,$*) up

.PHONY: check
check: static ## format, lint, types, import layers, shell, unit tests; needs no services and no root
	@$(PYTEST) tests/unit $(PYTEST_ARGS)

.PHONY: static
static: setup
	@$(RUN) ruff format --check . || { echo "format: run 'make format'" >&2; exit 1; }
	@$(RUN) ruff check --quiet .
	@$(RUN) mypy
	@"$(VENV)/bin/python" -c 'from importlinter.cli import lint_imports_command as main; main()' --no-logo
	@if command -v shellcheck > /dev/null; then \
	  find .ci scripts images tests clustrix_containers -type f \( -name '*.sh' -o -path .ci/run \) -exec shellcheck {} +; \
	  else echo "shellcheck is not installed: shell files are not checked (make setup-system)" >&2; fi

.PHONY: format
format: setup ## format the sources, and fix what ruff can fix
	@$(RUN) ruff format --quiet .
	@$(RUN) ruff check --fix --quiet .

.PHONY: setup
setup: ## create the virtual environment with everything for development
	@scripts/setup.sh dev "$(VENV)" "$(PYTHON)"

.PHONY: setup-demo
setup-demo:
	@scripts/setup.sh demo "$(VENV)" "$(PYTHON)"

.PHONY: setup-system
setup-system: ## install the Debian packages that `make test` needs (as root; only missing ones)
	@scripts/setup-system.sh "$(CLUSTERS)" "$(EXCLUDE)"

.PHONY: bench
bench: setup ## measure this package and its peers; rewrites benchmarks/RESULTS.md
	@$(RUN) benchmarks.run

.PHONY: image-slim
image-slim: ## build the slim base image as an OCI layout, build/images/slim
	@images/build.sh slim

.PHONY: image-cuda
image-cuda: ## build the base image for NVIDIA GPUs as an OCI layout, build/images/cuda
	@images/build.sh cuda

.PHONY: clean
clean: ## remove what these targets created here, including the virtual environment
	@rm -rf -- "$(VENV)" build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf -- {} +

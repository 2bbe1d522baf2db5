# Two commands matter: `make run` starts everything, `make test` checks everything.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
  --no-emit-find-links --custom-compile-command "make lock" pyproject.toml
ARGS ?=

.PHONY: run year test check lint types unit integration e2e survival chaos bench load jaeger victoriametrics lock clean help
.NOTPARALLEL:
.DELETE_ON_ERROR:

run: .venv/.run ## start everything: make run ARGS="--port 9000"
	$(BIN)/pricing up $(ARGS)

year: .venv/.year ## install the data of a grocer's real year, to import and replay

test: lint types unit integration e2e survival ## everything that CI runs

check: test ## the same, by the name that CI calls

lint: .venv/.dev ## style and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/.dev ## mypy --strict
	$(BIN)/mypy

unit: .venv/.dev ## no process but pytest's
	$(BIN)/pytest tests/unit $(ARGS)

integration: .venv/.dev ## with a real PostgreSQL and Valkey
	$(BIN)/pytest tests/integration $(ARGS)

e2e: .venv/.dev ## the running system, from outside
	$(BIN)/pytest tests/e2e $(ARGS)

survival: .venv/.dev ## two minutes of faults, and many events in disorder
	$(BIN)/pytest tests/chaos $(ARGS)

chaos: .venv/.dev ## ten minutes of faults: make chaos ARGS="--seed 7 --minutes 30"
	$(BIN)/python -m tests.chaos $(ARGS)

bench: .venv/.dev ## how fast prices are read, changed and recalculated: make bench ARGS=--quick
	$(BIN)/python -m loadtests.bench $(ARGS)

load: .venv/.dev ## two minutes of load on what `make run` runs: make load ARGS="--scenario storm"
	$(BIN)/python -m loadtests $(ARGS)

jaeger: ## get Jaeger and start it: `make run` in another terminal sends its traces there
	@sh deploy/jaeger/run.sh

victoriametrics: ## get VictoriaMetrics and start it: `make run` in another terminal sends records of requests there
	@sh deploy/victoriametrics/run.sh

lock: .venv/.tools ## pin every dependency anew, with hashes
	$(LOCK) --all-extras --group dev --group tools --output-file requirements/dev.txt
	$(LOCK) --constraint requirements/dev.txt --output-file requirements/run.txt
	$(LOCK) --extra completejourney --constraint requirements/dev.txt --output-file requirements/year.txt
	$(LOCK:pyproject.toml=) --constraint requirements/dev.txt --group tools --output-file requirements/tools.txt

clean: ## forget the environment and caches (not the data in .pricing)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

help:
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

# Stamps: a lock that has not changed is not installed again. Hashes are checked either way;
# pip is the fallback because uv does not read pip's own configuration (a company's mirror).
.venv/.tools: requirements/tools.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or name it with PYTHON=…"; exit 1; }
	$(PYTHON) -m venv .venv || { echo "Python's venv module is needed (Debian: apt install python3-venv)"; exit 1; }
	$(BIN)/pip install --require-hashes --disable-pip-version-check -r requirements/tools.txt
	@touch $@

.venv/.run .venv/.dev .venv/.year: .venv/.%: requirements/%.txt .venv/.tools pyproject.toml
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes -r $< || \
	  $(BIN)/pip install --require-hashes --disable-pip-version-check -r $<
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@touch $@

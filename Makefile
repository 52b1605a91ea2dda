# Every target works on a fresh clone: it makes .venv, installs mu with its developer tools, then does its work.
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check bench docs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## erase a concept from the embedded model, put it back, write a report
	$(BIN)/mu demo --overwrite

test: $(INSTALLED) ## run the tests: offline, on the CPU; WORKERS=8 on a larger machine
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

check: $(INSTALLED) ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED) ## measure every method on the embedded model and on its siblings (a day)
	@set -e; for world in 5 7 8 9; do \
	  echo "$(BIN)/mu canvas train --world $$world"; \
	  $(BIN)/mu canvas train --world $$world --steps unet=6500 --out outputs/world-$$world; \
	done
	@set -e; for plan in $(wildcard benchmarks/plans/*.yaml); do \
	  echo "$(BIN)/mu grid run $$plan"; $(BIN)/mu grid run "$$plan"; \
	done
	@set -e; for script in benchmarks/[!_]*.py; do \
	  test -f "$$script" || { echo "benchmarks/ holds no script" >&2; exit 2; }; \
	  echo "$(BIN)/python $$script"; $(BIN)/python "$$script"; \
	done

docs: $(INSTALLED) ## generate the pages that are made from the code
	$(BIN)/python docs/generate.py

# The stamp is newer than both files as long as what they ask for is installed. A half-made .venv has no pip: made again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("mu needs Python 3.10 or newer, $(PYTHON) is %d.%d: make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

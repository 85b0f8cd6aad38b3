# The two commands are `make book` and `make test`; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# Empty files that record what .venv holds: what the book needs, and also what the tests need.
BOOK := .venv/.book
TEST := .venv/.test

.PHONY: help book pdf claims picture test setup browser smoke train study data serve bench lint format lowest clean lock

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1\t\2/' | expand -t 12

book: $(BOOK) ## Execute the notebooks at full scale and build the book: _build/html/index.html
	$(BIN)/python book/build.py

test: $(TEST) browser ## Run all tests, also those of the notebooks at smoke scale and of the built pages
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

setup: $(TEST) ## Set up .venv with all that book and tests need

browser: $(TEST) ## Find a browser for the tests and the PDF, or install one
	@$(BIN)/python book/browser.py

pdf: book browser ## Print the whole book into one file: _build/book.pdf
	$(BIN)/python book/pdf.py

claims: $(BOOK) ## Accept the verdicts of the last full-scale build: book/claims.json and the summary in README.md
	$(BIN)/python book/claims.py

smoke: $(BOOK) ## Train a tiny model, run the notebooks in seconds and build _build/smoke/html
	$(BIN)/python -m vaerobust train --folder _build/smoke/models --only mnist_beta1_tau0.5 --epochs 2 --images 2048
	$(BIN)/python book/build.py --parameters tests/smoke.yml --out _build/smoke

train: $(BOOK) ## Train all 15 models from scratch into _build/models (an hour or two; resumes)
	$(BIN)/python -m vaerobust train

study: $(BOOK) ## Train the further seeds and measure the summaries that are missing (hours; resumes)
	$(BIN)/python -m vaerobust study

picture: $(BOOK) ## Draw the picture of the README anew
	$(BIN)/python book/picture.py

data: $(BOOK) ## Fetch MNIST and fashion-MNIST into the cache
	$(BIN)/python -m vaerobust data

serve: ## Show the built book at http://127.0.0.1:8000
	$(PYTHON) -m http.server 8000 --bind 127.0.0.1 --directory _build/html

bench: $(BOOK) ## Time our functions against alternatives and print the ratios
	$(BIN)/python tests/bench.py

lint: $(TEST) ## Check style, types, the direction of imports and spelling, in notebooks too
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python book/notebook_code.py --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

format: $(TEST) ## Format all code
	$(BIN)/ruff check --quiet --fix-only .
	$(BIN)/ruff format .
	$(BIN)/python book/notebook_code.py

lowest: ## Run the core's tests with the oldest versions that pyproject.toml allows (some minutes, 6 GB in _build)
	$(PYTHON) tests/lowest.py

clean: ## Remove what was built; keep .venv and the data cache
	rm -rf _build

# pip chooses versions for the oldest supported Python. Later Pythons can use the same versions. Nothing is installed.
define WRITE_LOCK
import json, re, pathlib
lock = pathlib.Path("requirements.lock")
found = [item["metadata"] for item in json.loads(pathlib.Path("_build/lock.json").read_text())["install"]]
pins = [f"{p['name']}=={p['version']}" for p in found if not re.match("nvidia-|cuda-|triton$$|vaerobust$$", p["name"])]
header = [line for line in lock.read_text().splitlines() if line.startswith("#")]
lock.write_text("\n".join(header + sorted(pins, key=lambda pin: pin.lower().split("=="))) + "\n")
endef
export WRITE_LOCK

lock: ## Make requirements.lock anew from the ranges in pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@mkdir -p _build
	$(BIN)/pip install --quiet --dry-run --ignore-installed --only-binary=:all: --python-version 3.11.0 \
	  --target _build/nothing --report _build/lock.json '.[book,test]'
	@$(BIN)/python -c "$$WRITE_LOCK"

comma := ,

# Set up .venv: $(1) has the package's extras to install, $(2) is the line to print. The lock file gives the versions.
# An interrupted set-up may leave half a package behind, so the next set-up starts with an empty .venv.
define SET_UP
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed; name it with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@if test -e .venv/.unfinished || { test -e .venv && ! $(BIN)/python -c "import pip" 2> /dev/null; }; then \
	  echo "The .venv that is here is unfinished or broken: starting anew"; rm -rf .venv; fi
	@echo "$(2)"
	@mkdir -p .venv && touch .venv/.unfinished
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv \
	  || { echo "Python's venv module is needed (on Debian: apt-get install python3-venv)"; exit 1; }
	@$(BIN)/pip install --disable-pip-version-check --quiet --constraint requirements.lock setuptools
	@$(BIN)/pip install --disable-pip-version-check --quiet --constraint requirements.lock \
	  --no-build-isolation --editable '.[$(1)]'
	@rm .venv/.unfinished
endef

$(BOOK): requirements.lock pyproject.toml
	$(call SET_UP,book,Setting up .venv for the book: a few minutes and 6 GB the first time)
	@touch $(BOOK)

$(TEST): requirements.lock pyproject.toml $(BOOK)
	$(call SET_UP,book$(comma)test,Adding to .venv what the tests need)
	@touch $(BOOK) $(TEST)

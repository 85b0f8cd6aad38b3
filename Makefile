# The two commands are `make book` and `make test`; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help book pdf claims picture test smoke train study data serve bench lint clean lock

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1\t\2/' | expand -t 12

book: $(READY) ## Execute the notebooks at full scale and build the book: _build/html/index.html
	$(BIN)/python book/build.py

pdf: book ## Print the whole book into one file: _build/book.pdf (needs Chromium or Chrome)
	$(BIN)/python book/pdf.py

claims: $(READY) ## Accept the verdicts of the last full-scale build: book/claims.json and the summary in README.md
	$(BIN)/python book/claims.py

test: $(READY) ## Run all tests, the notebooks at smoke scale among them
	$(BIN)/python -m pytest

smoke: $(READY) ## Train a tiny model, run the notebooks in seconds and build _build/smoke/html
	$(BIN)/python -m vaerobust train --folder _build/smoke/models --only mnist_beta1_tau0.5 --epochs 2 --images 2048
	$(BIN)/python book/build.py --parameters tests/smoke.yml --out _build/smoke

train: $(READY) ## Train all 15 models from scratch into _build/models (an hour or two; resumes)
	$(BIN)/python -m vaerobust train

study: $(READY) ## Train the further seeds and measure the summaries that are missing (hours; resumes)
	$(BIN)/python -m vaerobust study

picture: $(READY) ## Draw the picture of the README anew
	$(BIN)/python book/picture.py

data: $(READY) ## Fetch MNIST and fashion-MNIST into the cache
	$(BIN)/python -m vaerobust data

serve: ## Show the built book at http://127.0.0.1:8000
	$(PYTHON) -m http.server 8000 --bind 127.0.0.1 --directory _build/html

bench: $(READY) ## Time named alternatives against each other and print the ratios
	$(BIN)/python tests/bench.py

lint: $(READY) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## Remove what was built; keep .venv and the data cache
	rm -rf _build

# Solved for the oldest Python, whose versions every later one takes too; nothing is installed.
define WRITE_LOCK
import json, re, pathlib
lock = pathlib.Path("requirements.lock")
found = [item["metadata"] for item in json.loads(pathlib.Path("_build/lock.json").read_text())["install"]]
pins = [f"{p['name']}=={p['version']}" for p in found if not re.match("nvidia-|cuda-|triton$$|vaerobust$$", p["name"])]
header = [line for line in lock.read_text().splitlines() if line.startswith("#")]
lock.write_text("\n".join(header + sorted(pins, key=lambda pin: pin.lower().split("=="))) + "\n")
endef
export WRITE_LOCK

lock: $(READY) ## Make requirements.lock anew from the ranges in pyproject.toml
	mkdir -p _build
	$(BIN)/pip install --quiet --dry-run --ignore-installed --only-binary=:all: --python-version 3.11.0 \
	  --target _build/nothing --report _build/lock.json '.[book,test]'
	@$(BIN)/python -c "$$WRITE_LOCK"

# The stamp comes last. A set-up that was cut off may have left half a package, so it starts anew.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed; name it with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@if test -e .venv/.installing; then echo "The last set-up was cut off: starting anew"; rm -rf .venv; fi
	@echo "Setting up .venv from requirements.lock: some minutes, 6 GB"
	@$(PYTHON) -m venv .venv || { echo "Python's venv module is needed (on Debian: apt-get install python3-venv)"; exit 1; }
	@touch .venv/.installing
	$(BIN)/pip install --disable-pip-version-check --progress-bar on -r requirements.lock
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@rm .venv/.installing && touch $@

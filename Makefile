# `make demo` and `make test` do all their own set-up on a fresh machine with Python 3.11 to 3.13 and git.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of torch; where this index is out of reach, pip goes on with the others.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq --retries 1 --timeout 15
LOCK := constraints/py311-cpu.txt
# The package as it is installed (training, gadgets, deploy and benchmarks inside kstream), for tools that read folders.
LAYOUT := build/layout

.PHONY: demo test slow lint docs bench clean

demo: $(VENV)/.ready-core
	$(BIN)/kstream demo --output demo-run

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.ready-dev
	$(BIN)/python -m pytest --benchmark

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(LAYOUT) && mkdir -p $(LAYOUT)/kstream
	ln -s $(addprefix $(CURDIR)/,$(filter-out %__pycache__,$(wildcard kstream/*)) training gadgets deploy benchmarks) $(LAYOUT)/kstream/
	cd $(LAYOUT) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p kstream
	cd $(LAYOUT) && $(CURDIR)/$(BIN)/lint-imports --config $(CURDIR)/.importlinter

# The site, in build/docs: its examples run, its reference is made from the code, a warning is an error, nothing is fetched.
docs: $(VENV)/.ready-dev
	$(BIN)/python -m sphinx -W -n --keep-going -q -d build/docs-doctrees -b html docs build/docs
	@echo "build/docs/index.html"

$(VENV)/.ready-torch: $(LOCK)
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and what kstream needs; this takes a few minutes once"
	$(PIP) install --retries 0 --extra-index-url $(TORCH_INDEX) --constraint $(LOCK) torch
	@touch $@

$(VENV)/.ready-core: $(VENV)/.ready-torch pyproject.toml
	$(PIP) install --constraint $(LOCK) --editable .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready-torch pyproject.toml
	$(PIP) install --constraint $(LOCK) --editable .[dev]
	@touch $@ $(VENV)/.ready-core

clean:
	rm -rf $(VENV) demo-run* build dist *.egg-info

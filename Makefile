# Two commands for a fresh machine with Python >= 3.11:  make demo  and  make test.
# Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := ir passes backends frontend runtime bench tilewright tests examples .ci

.PHONY: help demo test lint format docs gpu-site clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    a real transformer through PyTorch and through Tilewright, side by side;"
	@echo "             then three adapters of one mixture of experts, in one batch"
	@echo "make test    the whole test suite"
	@echo "make lint    ruff, format check, mypy"
	@echo "make format  rewrite the sources in the project's format"
	@echo "make docs    the documentation site, in build/site"
	@echo "make gpu-site  build/gpu_site: what bench/gpu_session.sh carries to a lent GPU's machine"
	@echo "make clean   remove the environment and the caches of the checkout"

demo: $(VENV)/.demo
	$(BIN)/python -m tilewright.bench.demo
	$(BIN)/python -m tilewright.bench.adapters_demo
	$(BIN)/tilewright run examples/attention.tw

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 --dist worksteal tests

lint: $(VENV)/.dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# Pure Python packages that a lent GPU's machine lacks (it has torch, triton, cupy, numpy).
GPU_SITE := lark typer click rich markdown_it mdurl shellingham pytest _pytest pluggy iniconfig
gpu-site: $(VENV)/.dev
	rm -rf build/gpu_site && mkdir -p build/gpu_site
	site="$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" && \
	  for name in $(GPU_SITE); do cp -r "$$site/$$name" build/gpu_site/; done
	find build/gpu_site -name __pycache__ -prune -exec rm -rf {} +

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamps are written last, so that an interrupted set-up is done again.
$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "No '$(PYTHON)' here. Install Python 3.11 or newer, or name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Tilewright needs Python >= 3.11, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." >&2; \
	  echo "Name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# $(VENV)/.demo and $(VENV)/.dev: the package itself, editable, with that extra.
$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@

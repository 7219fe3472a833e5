# make sweep     makes .venv, installs, trains the default sweep into runs/
# make test      the same environment, runs all checks: lint, types, tests
# make test-interop   exports loaded by SAELens, dictionary_learning and sparsify themselves
# make docs      the documentation as a site, into build/site
# make bench     throughput, scaling, data path, other libraries, metrics: into benchmarks/results/

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# Tests start hundreds of processes: these keep their bytecode, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install sweep test test-interop docs lint typecheck format bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

sweep: install
	$(BIN)/python -m ensemble_sae.big_sweep

test: lint typecheck
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Makes an environment for each package under build/peers: gigabytes, once.
test-interop: install
	$(BIN)/python tests/interop/with_real_packages.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: install
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: install
	$(BIN)/python benchmarks/throughput.py --docs
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/data_path.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/metrics.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache

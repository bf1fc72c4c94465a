# Two commands set everything up: `make quickstart` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help install quickstart test test-slow versions package examples bench docs quality style clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /: /'

$(VENV)/.package: setup.cfg pyproject.toml
	@echo "Installing into $(VENV): minutes, a few GB with PyTorch"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed: $(VENV)/.package
	@echo "Installing what tests, documentation and demo need"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

install: $(VENV)/.installed  ## create the environment and install the package with all that development needs

quickstart: $(VENV)/.package  ## segment pictures on this machine and write the results to quickstart/
	@$(BIN)/python examples/quickstart.py

test: install  ## run the tests (minutes, CPU)
	$(BIN)/python tests/fetch_transformers_tests.py
	$(BIN)/python -m pytest -n auto --dist loadfile --quiet

test-slow: install  ## run the slow and real-size tests as well
	$(BIN)/python tests/fetch_transformers_tests.py
	$(BIN)/python -m pytest -m "slow or not slow" --timeout=1800

versions: install  ## run the smoke tests with the oldest and a middle Transformers (minutes)
	bash .ci/versions

package: install  ## build wheel and source archive and use both in a bare environment (minutes)
	bash .ci/package

examples: install  ## run every workflow of examples/ on the shipped model and check what it prints (minutes, CPU)
	$(BIN)/python examples/run_all.py

bench: install  ## print the ratios of benchmarks/ and what got slower than the kept ones (minutes, CPU; KEEP=--keep)
	for size in tiny middle; do \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/shared_image.py --size $$size $(KEEP) || exit 1; \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/training_step.py --size $$size $(KEEP) || exit 1; \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/loading.py --size $$size $(KEEP) || exit 1; \
	done
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/post_processing.py $(KEEP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/training_data.py $(KEEP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/cpu.py --size tiny --rounds 5 $(KEEP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/compiled.py $(KEEP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/startup.py $(KEEP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/waits.py $(KEEP)

quality: install  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types && ln -sfn ../.. build/types/sam3i  # the root is the package: mypy wants a folder of its name
	MYPYPATH=build/types $(BIN)/mypy -p sam3i.modeling_sam3i -p sam3i.processing -p sam3i.trainer -p sam3i.hub \
		-m sam3i.cli -m sam3i.compat

style: install  ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## build the documentation into build/docs
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open build/docs/index.html"

clean:  ## remove what the commands made
	rm -rf $(VENV) .transformers-tests quickstart runs build *.egg-info

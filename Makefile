# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# What tests and benchmarks need besides; the demo is quicker without.
TOOLS  := $(VENV)/.installed-tools
# What the site needs in addition.
SITE   := $(VENV)/.installed-site
# The number of files of tests at a time: one more than the cores of a small machine, as some tests wait for processes.
WORKERS ?= 3
# Byte code is kept, whatever the environment says: each worker and each process of a test compiles all of it otherwise.
# In the order of their names: the backends' files, which take longest, come first, so that no worker is left with one.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all test-software-gpu fuzz lint bench figures docs clean

demo: $(STAMP)
	$(BIN)/python examples/embed_sentences.py

test: lint
	$(PYTEST) -m "not slow and not gpu"

test-all: lint $(SITE)
	$(PYTEST)

# The code for GPUs, with torch's CUDA build on a software GPU (docs/software_gpu.md); in an environment of its own.
test-software-gpu:
	$(PYTHON) -m tests.software_gpu --venv .venv-cuda

# Random programs against eager mode; the first seed is another to try others: make fuzz SEED=100000
GRAPHS ?= 5000
SEED   ?= 0
fuzz: $(TOOLS)
	$(BIN)/python -m tests.fuzz --graphs $(GRAPHS) --seed $(SEED) --workers $(WORKERS) --scripts build/fuzz

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=tests $(BIN)/mypy -p software_gpu

bench: $(TOOLS)
	$(BIN)/python benchmarks/footprint.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/fit.py
	$(BIN)/python benchmarks/fused.py
	$(BIN)/python benchmarks/planner_scale.py
	$(BIN)/python benchmarks/planner_scale.py --verb search
	$(BIN)/python benchmarks/order_quality.py
	$(BIN)/python benchmarks/planner_depth.py
	$(BIN)/python benchmarks/hop.py
	$(BIN)/python benchmarks/runtime.py
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/distributed.py
	$(BIN)/python benchmarks/compile_time.py
	$(BIN)/python benchmarks/wrap.py
	$(BIN)/python benchmarks/edgetpu.py
	$(BIN)/python benchmarks/cost_model.py
	$(BIN)/python benchmarks/probe_repeat.py
	$(BIN)/python benchmarks/gpu.py

# The figures of the docs, a line a script; drawn again they are the same files.
figures: $(TOOLS)
	$(BIN)/python examples/paper_h100.py --figure docs/figures
	$(BIN)/python examples/scale_on_paper.py --figure docs/figures
	$(BIN)/python benchmarks/edgetpu.py --figure docs/figures/edge_tpu.svg

# The pages and the API reference as a site in build/docs; a broken link is an error.
docs: $(SITE)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The pinned torch first and alone: an unpinned one, asked for by another package, is gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[examples]"
	touch $@

$(TOOLS): $(STAMP)
	$(BIN)/pip install -q -c constraints.txt -e ".[dev,examples]"
	touch $@

$(SITE): $(STAMP)
	$(BIN)/pip install -q -c constraints.txt -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) .venv-cuda build *.egg-info .mypy_cache .pytest_cache .ruff_cache

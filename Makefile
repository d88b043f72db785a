# Two commands for a fresh machine: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.demo
TORCH_READY := $(VENV)/.torch
# Where there is a torch without CUDA, for a machine without an NVIDIA GPU. Empty: take PyPI's.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
N ?= 200
SEED ?= 0
JOBS ?= 2
WORKERS ?= 3
# A test waits more than it computes, so three side by side keep two cores busy; one thread each, or they get in each other's way.
# Bytecode is kept, whatever the machine says: tests start hundreds of processes, and each would compile the package anew.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist loadgroup --durations 30

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-random gpu lint bench chaos docs images up javascript clean

help: ## show these lines
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(TORCH_READY): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv is needed; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@if [ "$$(uname -s)" != Linux ]; then echo "==> torch (about 0.1 GB)"; \
	elif nvidia-smi -L >/dev/null 2>&1; then echo "==> torch with CUDA, for the GPU here (about 2.5 GB to download, 5 GB on disk)"; \
	elif [ -n "$(TORCH_INDEX)" ]; then \
	  echo "==> torch without CUDA: no NVIDIA GPU is here (about 0.2 GB to download, 0.8 GB on disk)"; \
	  $(INSTALL) --timeout 15 --retries 1 --no-deps --index-url $(TORCH_INDEX) torch || \
	    echo "==> $(TORCH_INDEX) has none; PyPI's is taken, which has CUDA in it (about 2.5 GB to download, 5 GB on disk)"; \
	else echo "==> torch from PyPI, which has CUDA in it (about 2.5 GB to download, 5 GB on disk)"; fi
	$(INSTALL) torch
	@touch $@

$(DEMO_READY): pyproject.toml $(TORCH_READY)
	@echo "==> what the demo needs beside torch (about 0.1 GB to download, 0.4 GB on disk)"
	$(INSTALL) -e '.[demo]'
	@touch $@

$(READY): pyproject.toml $(TORCH_READY)
	@echo "==> what the tests need beside torch (about 0.4 GB to download, 1 GB on disk)"
	$(INSTALL) -e '.[dev]'
	@touch $@

demo: $(DEMO_READY) ## train one model with eight clients, here and now; writes report.html
	$(BIN)/llmos-stream demo $(ARGS)

test: lint ## lint, types and tests: every behaviour on the in-process broker, and once on a real Kafka
	$(PYTEST) -m "not full" $(ARGS)

test-all: test ## and what takes longer: more on Kafka, long outages, benchmarks, containers (where .ci/run allows them)
	$(PYTEST) -m full $(ARGS)

test-random: $(READY) ## all tests in random order; ARGS=--randomly-seed=N for the order of an earlier run
	$(PYTEST) -p randomly $(ARGS)

gpu: $(READY) ## what needs a CUDA GPU, in a minute or two
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "torch sees no CUDA GPU here"; exit 1; }
	$(BIN)/pytest -m gpu --durations 10 $(ARGS)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## measure everything beside a reference (about 40 minutes); ONLY=codec, fold, pipe, recovery, index, accuracy, loop, serve, big, memory, flower, resnet, simulate or llm for one
	$(BIN)/python -m tests.bench $(ONLY)

chaos: $(READY) ## kill and cut everything at random, N=200 times from SEED=0 on, JOBS=2 at a time, and count the updates; MODEL=whole, fragments or lora for one kind
	@$(BIN)/python -m tests.faults --runs $(N) --seed $(SEED) --jobs $(JOBS) $(if $(MODEL),--model $(MODEL))

images: ## build the image of all services (docker)
	docker compose -f docker/compose.yaml build aggregator-1

up: images ## bring up a whole federation in containers, and wait until it is healthy
	docker compose -f docker/compose.yaml up --detach --wait

docs: $(READY) ## write the tables and test vectors of the documentation anew, and build it as a site: build/docs
	$(BIN)/python -m tests.docs
	$(BIN)/python -m tests.vectors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

javascript: ## install what the client in JavaScript needs, for its tests (npm)
	mkdir -p build/javascript
	cp llmos_stream/docs/javascript/package.json build/javascript
	cd build/javascript && npm install --silent --no-audit --no-fund

clean: ## delete everything that was made here
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis report.html

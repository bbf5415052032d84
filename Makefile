# Every target does its own set-up in .venv; `make` alone lists them.

MODEL ?=
# Where torch comes from. A machine without a GPU gets the CPU build, which the default index does not have; where
# pip is configured with indexes of its own, these decide.
TORCH_INDEX ?= $(shell test -e /dev/nvidiactl || python3 -m pip config list | grep -E 'index-url|find-links' >/dev/null \
	|| echo https://download.pytorch.org/whl/cpu)

PYTHON := .venv/bin/python
# The root has a folder named `kernels`, and transformers looks for a package of that name: the root must not be
# on the module path.
export PYTHONSAFEPATH := 1
# All versions are pinned there, for the isolated build of the package too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help run test test-slow test-clients test-page test-deploy test-triton test-gpu lint types protos native format bench bench-peers bench-gpu bench-chaos test-chaos soak docs clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: setup ## Serve the bundled model, or MODEL=path-or-hub-id
	@exec .venv/bin/quire serve $(MODEL)

test: setup .venv/promtool ## Unit and end-to-end tests
	$(PYTHON) -m pytest tests -m 'not slow and not page and (not chaos or chaos_sample)'

test-slow: setup .venv/promtool ## Tests that take long: emulated instruction sets, beam search on more models, slow readers
	$(PYTHON) -m pytest tests -m 'slow and not page and not chaos'

test-chaos: setup ## Kills, floods and bombs against whole servers (a quarter of an hour)
	$(PYTHON) -m pytest tests/chaos

test-page: setup tests/page/node_modules ## The live page in a real browser without a window
	@tools/install_chromium.sh
	$(PYTHON) -m pytest tests/page

# In two processes: what the interpreter runs cannot be compiled.
test-triton: setup .venv-triton/installed ## The Triton kernels on the CPU: interpreted, and compiled to machine code
	PYTHONPATH=.venv-triton TRITON_INTERPRET=1 $(PYTHON) -m pytest tests/triton_kernels
	PYTHONPATH=.venv-triton $(PYTHON) -m pytest tests/triton_compile

test-gpu: setup ## The Triton kernels and whole servers on a GPU; skipped without one
	$(PYTHON) -m pytest tests/triton_kernels tests/gpu

test-deploy: export TORCH_INDEX := $(TORCH_INDEX)
test-deploy: setup ## The wheel in an empty environment, the container's contents, manifests, the systemd unit
	@tools/install_deploy_tools.sh
	$(PYTHON) -m pytest tests/deploy

MINUTES ?= 60
soak: setup ## Mixed work with cancels for MINUTES=60: memory must stay flat
	QUIRE_SOAK_MINUTES=$(MINUTES) $(PYTHON) -m pytest tests/chaos/test_soak.py -s

# Two environments, since some clients still ask for openai 2. Both run the tests of the official client.
test-clients: setup .venv-clients/openai3/installed .venv-clients/openai2/installed .venv-clients/node ## Real clients against a live server
	.venv-clients/openai3/bin/python -m pytest tests/clients --ignore=tests/clients/openai2
	.venv-clients/openai2/bin/python -m pytest tests/clients/openai2 tests/clients/openai_python

lint: setup ## Style and the rules of who imports whom
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

types: setup ## Static types
	.venv/bin/mypy

protos: .venv/installed ## Generate the protobuf stubs
	@$(PYTHON) tools/generate_protos.py

native: .venv/installed ## Compile the native kernels (if they changed)
	@$(PYTHON) tools/build_native.py

format: setup ## Format the code
	.venv/bin/ruff check --fix-only -q .
	.venv/bin/ruff format .

bench: setup ## Benchmarks, a few minutes
	$(PYTHON) benchmarks/kv_utilization.py
	$(PYTHON) benchmarks/beam_search.py
	$(PYTHON) benchmarks/linear.py
	$(PYTHON) benchmarks/attention.py
	$(PYTHON) benchmarks/sampling.py
	$(PYTHON) benchmarks/perplexity.py
	$(PYTHON) benchmarks/step_transport.py
	$(PYTHON) benchmarks/scheduler.py
	$(PYTHON) benchmarks/gateway.py
	$(PYTHON) benchmarks/start_up.py
	$(PYTHON) benchmarks/fairness.py
	$(PYTHON) benchmarks/swap.py

# The peers are installed once; QUIRE_PEERS_DIR moves them, and their checkpoints, out of the working tree.
# The folder benchmarks/ is on the path, and not the root: see above.
bench-peers: export TORCH_INDEX := $(TORCH_INDEX)
bench-peers: setup ## The same work by vLLM, llama.cpp, OpenVINO GenAI and us (hours; ARGS='--quick --cases=bf16')
	@PYTHONPATH=benchmarks $(PYTHON) -m peers $(ARGS)

bench-gpu: setup ## Decode and prefill on a GPU against its limits and Hugging Face (ARGS='--help')
	@PYTHONPATH=benchmarks $(PYTHON) -m gpu_bench $(ARGS)

bench-chaos: setup ## What recovery takes, measured by the chaos tests, into docs/reliability.md
	$(PYTHON) benchmarks/chaos.py

docs: setup ## The documents as one site, in build/docs/index.html
	@PYTHONPATH=tools $(PYTHON) -m docs_site

clean: ## Remove everything that was built or installed
	rm -rf .venv .venv-clients .venv-triton tests/clients/node/node_modules tests/page/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	rm -rf src/quire/v1 src/quire/internal kernels/build kernels/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/promtool: .venv/installed tools/install_promtool.sh
	@tools/install_promtool.sh .venv/bin
	@touch $@

.PHONY: setup
setup: .venv/installed .venv/protos native

.venv/protos: .venv/installed tools/generate_protos.py $(shell find protos -name '*.proto')
	@$(PYTHON) tools/generate_protos.py
	@touch $@

# torch first and alone, so that nothing else chooses its build.
.venv/installed: pyproject.toml constraints.txt
	@echo 'Installing into .venv, which takes a few minutes the first time …'
	python3 -m venv .venv
	.venv/bin/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	.venv/bin/pip install --quiet --editable '.[bench,otel,docs,dev]'
	@touch $@

# What the clients need is listed whole and pinned, so pip has nothing to resolve (which would take minutes).
.venv-clients/%/installed: tests/clients/requirements-%.txt
	@echo 'Installing clients into .venv-clients/$* …'
	python3 -m venv .venv-clients/$*
	env -u PIP_CONSTRAINT .venv-clients/$*/bin/pip install --quiet --no-deps -r $<
	@touch $@

.venv-clients/node: tests/clients/node/package.json tests/clients/node/package-lock.json tools/install_node.sh
	@tools/install_node.sh
	cd tests/clients/node && npm ci --no-audit --no-fund
	@touch $@

# 1 GB, beside .venv: the CPU build of torch must not find it.
.venv-triton/installed: tests/triton_kernels/requirements.txt .venv/installed
	@echo 'Installing Triton into .venv-triton …'
	@rm -rf .venv-triton
	.venv/bin/pip install --quiet --no-deps --target .venv-triton -r $<
	@touch $@

# What checks the live page's accessibility, in the browser.
tests/page/node_modules: tests/page/package.json tests/page/package-lock.json tools/install_node.sh
	@tools/install_node.sh
	cd tests/page && npm ci --no-audit --no-fund
	@touch $@

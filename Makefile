# graphrt needs python3 >= 3.11 and make; every target makes what it needs in .venv by itself.
#
#   make demo        installs graphrt and lets a small DeepSeek-style model write Shakespeare
#   make test        every check that needs no GPU: ruff, mypy, the tests (layers, wheel and documentation among them)
#   make bench       speed of whole models beside the machine's limits; ARGS=--quick takes minutes
#   make test-peers  logits, tokens and speed beside llama.cpp's (compiles llama-cpp-python: ten minutes the first time)
#   make test-gpu    the tests that need an NVIDIA GPU, and its benchmarks (docs/benchmarks/cuda.md)

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test bench test-peers test-gpu gpu-tests gpu-memcheck gpu-racecheck gpu-bench clean

help:
	@sed -n '/^#   /s/^#   //p' Makefile

demo: $(VENV)/run.stamp
	@echo "The first run compiles the CPU kernels, which takes a minute; they are kept in ~/.cache/graphrt."
	$(BIN)/graphrt generate tiny-deepseek2 --prompt "ROMEO:" --max-tokens 250 --seed 7

test: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

bench: $(VENV)/bench.stamp
	$(BIN)/python -m docs.benchmarks.cpu $(ARGS)

test-peers: $(VENV)/peers.stamp
	$(BIN)/python -m pytest tests/peers -m peers
	$(BIN)/python -m tests.peers.bench_llama_cpp
	$(BIN)/python -m tests.peers.bench_mla

# Where there is no internet, a Python that has CuPy and the rest already does: it is used as it is.
GPU_NEEDS := import cupy, gguf, hypothesis, numba, pytest, tokenizers, typer, xdist
GPU_PYTHON = $(shell $(PYTHON) -c '$(GPU_NEEDS)' 2>/dev/null && echo $(PYTHON) || echo $(BIN)/python)
ON_GPU = PYTHONPATH=".$${PYTHONPATH:+:$$PYTHONPATH}"
SANITIZED_OPS := mul_mat or attention or rms_norm or soft_max or top_k
SANITIZED := test_kernels_agree_with_the_reference and not perf and ($(SANITIZED_OPS)) or prompts and not cublas and (q4_0 or q6_k) or latents and not bf16 and f16
# The driver may be older than CuPy, and lack functions that it asks for: no mistake of a kernel. Imports take a while.
SANITIZER := compute-sanitizer --error-exitcode 1 --report-api-errors no --launch-timeout 0
# Every part ends, even where a kernel hangs, and the benchmark runs whatever failed before.
within = timeout --kill-after=5 $(1) $(2) || { status=$$?; \
	[ $$status -ne 124 ] || echo "$@ did not end within $(1) s, and was stopped." >&2; exit $$status; }

test-gpu:
	@nvidia-smi -L 2>/dev/null || { echo "test-gpu: nvidia-smi finds no NVIDIA GPU here, so nothing was tested." >&2; exit 1; }
	@$(PYTHON) -c '$(GPU_NEEDS)' 2>/dev/null || $(MAKE) $(VENV)/gpu.stamp
	@status=0; \
	$(MAKE) --no-print-directory --jobs 3 --keep-going --output-sync=target gpu-tests gpu-memcheck gpu-racecheck || status=1; \
	$(MAKE) --no-print-directory gpu-bench || status=1; \
	exit $$status

gpu-tests:
	@$(ON_GPU) $(call within,240,$(GPU_PYTHON) -m pytest tests/backends/cuda -m gpu --numprocesses 4)

gpu-memcheck gpu-racecheck: gpu-%:
	@command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not on the path: there was no $*."; exit 0; }; \
	echo "compute-sanitizer --tool $*, over some of the ops:"; \
	export GRAPHRT_EXAMPLES=20; \
	$(ON_GPU) $(call within,240,$(SANITIZER) --tool $* $(GPU_PYTHON) -m pytest tests/backends/cuda -m gpu -k "$(SANITIZED)")

gpu-bench:
	@$(ON_GPU) $(call within,300,$(GPU_PYTHON) -m docs.benchmarks.cuda)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One virtual environment; a stamp a group of dependencies, remade when pyproject.toml changes.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "graphrt needs python3 >= 3.11; found: $$(python3 --version 2>&1). Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no virtual environment: install the system's venv package (Debian: python3-venv)" >&2; exit 1; }

$(VENV)/run.stamp: $(BIN)/python pyproject.toml
	@echo "Installing graphrt into $(VENV) (a minute) ..."
	$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/test.stamp: $(BIN)/python pyproject.toml
	@echo "Installing graphrt and its test tools into $(VENV) (a minute) ..."
	$(PIP) install --quiet --editable '.[test]'
	@touch $@

$(VENV)/bench.stamp: $(VENV)/run.stamp
	$(PIP) install --quiet --editable '.[bench]'
	@touch $@

$(VENV)/peers.stamp: $(VENV)/test.stamp $(VENV)/bench.stamp
	@echo "Compiling llama-cpp-python into $(VENV) (ten minutes on two cores; needs a C++ compiler and cmake) ..."
	$(PIP) install --quiet --editable '.[peers]'
	@touch $@

# CuPy for the CUDA version that the driver tells.
$(VENV)/gpu.stamp: $(VENV)/test.stamp
	$(PIP) install --quiet --editable ".[cuda$$(nvidia-smi | sed -n 's/.*CUDA Version: \([0-9]*\).*/\1/p')]"
	@touch $@

# The commands of the project. `make help` lists them. `make setup` skips completed steps.

PY := .venv/bin/python
DEMO ?=
GALLERY ?=
BENCH ?=
ABLATE ?= configs/ablations/recipes.yaml
DRILL ?=
GPU ?=
.PHONY: help setup test lint types pytest bench cuda-report cuda-emulation sanitize compute-sanitizer demo \
        gpu-check toy-train toy-pretrain ablate drill gallery family env-report clean clean-all
.DEFAULT_GOAL := help

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup:  ## create .venv, install everything, build the native extension
	@bash scripts/build/setup_env.sh

test: lint types pytest  ## set up if needed; ruff, codespell, mypy, all tests

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check --quiet .
	$(PY) -m codespell_lib

types: setup
	$(PY) -m mypy

pytest: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile

bench: setup  ## all benchmarks of the native operations (BENCH="--device cuda" on a GPU)
	@set -e; for file in benchmarks/bench_*.py; do \
	  if grep -q benchmarks.common $$file; then \
	    $(PY) $$file $(BENCH); fi; done

cuda-report: setup  ## compile the CUDA sources (no GPU needed); registers and spills per kernel
	$(PY) scripts/compile_cuda.py

cuda-emulation: setup  ## run the GPU tests with CUDA kernels emulated on the CPU
	$(PY) scripts/emulate_cuda.py

sanitize: setup  ## run the operations' tests with address and undefined-behaviour checks
	$(PY) scripts/sanitize.py

gpu-check:  ## first check on a GPU, with only torch: build, compare, time, one table
	@if [ -x $(PY) ]; then $(PY) -m scripts.gpu_check $(GPU); else python3 -m scripts.gpu_check $(GPU); fi

compute-sanitizer: setup  ## run the CUDA kernels' tests under NVIDIA's checks (needs a GPU)
	bash scripts/build/compute_sanitizer.sh

demo: setup  ## toy data, scores and pictures of the shipped model, fine-tuning
	$(PY) scripts/demo.py $(DEMO)

toy-train: setup  ## the longer training on the toy data (under an hour on two cores)
	$(PY) scripts/demo.py --long $(DEMO)

toy-pretrain: setup  ## pretrain the nano model, pretrain/opusv2-nano_toy.pth (hours on two cores; resumes)
	$(PY) scripts/toy_pretrain.py

ablate: setup  ## compare overrides of a config over seeds (ABLATE=configs/ablations/recipes.yaml; resumes)
	$(PY) scripts/ablate.py $(ABLATE)

family: setup  ## train and compare all models on the toy data (one to two hours on two cores)
	$(PY) scripts/family.py

drill: setup  ## kill, signal, damage and resume trainings (DRILL="--kills 100")
	$(PY) scripts/drill.py $(DRILL)

gallery: setup  ## draw the pictures of docs/gallery.md, from the toy data and a model trained on it
	$(PY) scripts/make_gallery.py $(GALLERY)

.PHONY: docs
docs: setup  ## build the documentation site in outputs/site; broken links and anchors are errors
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "open outputs/site/index.html"

env-report: setup  ## report versions, built extensions, missing parts
	$(PY) scripts/env_report.py

clean:  ## remove caches, build products and results (not .venv, data, the mmcv wheel)
	rm -rf build outputs work_dirs .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	rm -f models/ops/*.so
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

clean-all: clean  ## also remove .venv and the toy data
	rm -rf .venv data/toy_nuscenes

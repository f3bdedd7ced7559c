# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` do all of the set-up themselves, in .venv/.
#
#   PYTHON=python3.12     use this Python for the virtual environment (3.11 or newer)
#   PIP_ARGS="..."        passed to pip; "--extra-index-url https://download.pytorch.org/whl/cpu"
#                         takes the CPU build of torch and saves gigabytes of CUDA libraries
#   PYTEST_ARGS="..."     passed to pytest; "-n 0" runs all tests in one process, one after the other

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := demo
PIP_ARGS ?=
PYTEST_ARGS ?=
PYTHON ?=

# mypy sees gsbids as it is installed: links to the folders that setup.cfg puts into the package.
CHECK_TYPES = rm -rf build/types && mkdir -p build/types/gsbids && \
	for part in gsbids/[!_]* gsbids/__init__.py gsbids/__main__.py kernels workflows; do \
	    ln -s ../../../$$part build/types/gsbids/; \
	done && cd build/types && ../../$(BIN)/mypy --config-file ../../setup.cfg

# Nothing asks the network for newer versions.
export NO_ET := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME

.PHONY: help install demo check test slurm-test container-test fault-test lint types bench-install docs docs-options docs-figures clean distclean
.DELETE_ON_ERROR:

help:
	@echo 'make demo          simulate a small BIDS data set and reconstruct it'
	@echo 'make check         lint, check types, and run the fast tests'
	@echo 'make test          lint, check types, and run the whole test suite'
	@echo 'make slurm-test    reconstruct on a Slurm of one machine (needs slurm-wlm and munge)'
	@echo 'make lint          ruff alone'
	@echo 'make types         mypy alone'
	@echo 'make fault-test    kill runs, fill disks, corrupt input: the whole campaign, as root (half an hour)'
	@echo 'make container-test  build the container image, and try it as clusters run it (root; half an hour)'
	@echo 'make bench-install install what benchmarks/ needs as well'
	@echo 'make docs          build the site of the documentation in docs/_build/html'
	@echo 'make docs-options  write docs/options.md from the parsers'
	@echo 'make docs-figures  make the pictures of the documentation from the demo'
	@echo 'make clean         remove the demo and what tests leave behind'
	@echo 'make distclean     remove the virtual environment too'

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@set -e; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    found=; \
	    for python in $(PYTHON) python3.11 python3 python3.12 python3.13; do \
	        if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo 'gsbids: Python 3.11 or newer was not found; install it (Debian: apt install python3 python3-venv) or give make PYTHON=...' >&2; exit 1; \
	    fi; \
	    if ! $$found -c 'import venv, ensurepip' 2>/dev/null; then \
	        echo "gsbids: $$found cannot make virtual environments; install the venv package (Debian: apt install python3-venv)" >&2; exit 1; \
	    fi; \
	    echo "Making $(VENV) with $$($$found --version)"; \
	    $$found -m venv --clear $(VENV); \
	fi; \
	echo 'Installing gsbids and what it needs (minutes the first time)'; \
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[test]'
	@touch $@

$(DEMO)/bids/dataset_description.json: | $(STAMP)
	rm -rf $(DEMO)/bids
	$(BIN)/python -m gsbids.simulate $(DEMO)/bids --seed 1

demo: $(STAMP) $(DEMO)/bids/dataset_description.json
	$(BIN)/gsbids $(DEMO)/bids $(DEMO)/out participant -d masks=$(DEMO)/bids/derivatives/masks -w $(DEMO)/work
	@echo
	@$(BIN)/python -m gsbids.simulate $(DEMO)/bids \
	    --score $(DEMO)/out/sub-01/anat/sub-01_rec-gsvr_res-0p8_desc-preproc_T2w.nii.gz
	@echo
	@echo "Volume: $(CURDIR)/$(DEMO)/out/sub-01/anat/sub-01_rec-gsvr_res-0p8_desc-preproc_T2w.nii.gz"
	@echo "Report: $(CURDIR)/$(DEMO)/out/sub-01.html"

# Both always run; the closing line of pytest comes last.
check: WHICH := -m 'not slow'
check test: $(STAMP)
	@status=0; \
	$(BIN)/ruff check . || status=1; \
	($(CHECK_TYPES)) || status=1; \
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(WHICH) $(PYTEST_ARGS) || status=1; \
	exit $$status

# Sets up its own Slurm under a temporary folder where none answers.
slurm-test: $(STAMP)
	GSBIDS_SLURM_TEST=1 $(BIN)/python -m pytest -v $(PYTEST_ARGS) tests/slurm/check_slurm.py tests/test_slurm.py

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(CHECK_TYPES)

# As root: it mounts small disks and read-only folders; what cannot be mounted is noted as not tried.
fault-test: $(STAMP)
	cd tests && ../$(BIN)/python -m faults ../docs/results/faults.json

container-test:
	tests/container/run.sh

bench-install: $(STAMP)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[test,bench]'

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[test,docs]'
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

docs-options: $(STAMP)
	$(BIN)/python docs/make_options.py

docs-figures: demo
	$(BIN)/python benchmarks/demo_figure.py $(DEMO) docs/images/demo.png

clean:
	rm -rf $(DEMO) build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) gsbids.egg-info

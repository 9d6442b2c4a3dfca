# make demo        base -> SFT -> RL phase I -> RL phase II -> table, on a laptop CPU
# make test        the tests;  make test-full  also the slow ones
# make assets      trains the tiny models of assets/ anew
#
# Each target first makes .venv (torch first, so that no other package pulls in a CUDA build);
# a second call reinstalls nothing. PYTHON=... uses an environment of your own instead.

VENV := .venv
ifdef PYTHON
READY :=
else
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.installed
endif

# test files, two at a time
TWO := -n 2 --dist loadfile

.PHONY: demo test test-full assets plots
demo: $(READY)
	PYTHON=$(PYTHON) bash recipes/demo.sh

test: $(READY)
	$(PYTHON) -m pytest $(TWO)

test-full: $(READY)
	$(PYTHON) -m pytest $(TWO) -m "full or not full"

assets: $(READY)
	PYTHON=$(PYTHON) bash recipes/assets.sh

$(VENV)/.installed: pyproject.toml
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 10) and "make needs a python3 of version 3.10 or newer")'
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VENV)/bin/pip install --quiet --disable-pip-version-check ".[dev,plots]"
	touch $@

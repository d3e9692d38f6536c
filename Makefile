# Everything a newcomer types. Each target sets up what it needs: a virtual environment in .venv, with the exact versions
# of requirements/*.lock, and this package in it, editable. Needs Python 3.11 or newer with venv, and nothing else.
#
#   make demo    see a frozen T5 adapt to unseen tasks: training live, a table, a plot (demo/)
#   make test    the whole test suite; pick some with  make test PYTEST_ARGS="tests/adapters -k lora"
#   make test-interop   hyperflax beside torch, transformers and PEFT, in an environment of its own (.venv-interop)
#   make peers   hyperflax timed beside transformers, PEFT and T5X (docs/peers.md), in the same environment
#   make lint    style, format, types and shell scripts, changing nothing;  make format  repairs what can be repaired
#   make lock    resolve requirements/*.lock anew (needs uv);  make wheel  dist/*.whl;  make clean  remove what was made

VENV ?= .venv
VENV_INTEROP ?= .venv-interop
PYTEST_ARGS ?=
PEERS_ARGS ?=
DEMO_ARGS ?=
UV ?= uv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install -qq --progress-bar off
LINTED := hyperflax tasks gin_configs tests benchmarks setup.py
SCRIPTS := run_tpu.sh launch/*.sh benchmarks/*.sh .ci/run tests/launch/bin/*

.DEFAULT_GOAL := help
.PHONY: help demo test test-interop goldens-interop peers lint format lock wheel clean setup setup-test
.DELETE_ON_ERROR:

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.core
	$(BIN)/hyperflax demo $(DEMO_ARGS)

# In the order of the files: xdist would leave files of a few long tests to the end, and one process alone with them.
test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --max-worker-restart 0 --dist loadscope --no-loadscope-reorder \
	  $(PYTEST_ARGS)

# The same targets make the second environment, under its own name.
test-interop:
	$(MAKE) VENV=$(VENV_INTEROP) $(VENV_INTEROP)/.interop
	$(VENV_INTEROP)/bin/python -m pytest $(PYTEST_ARGS) tests/interop/with_torch.py

# Writes tests/interop/goldens anew, from the versions of requirements/interop.lock.
goldens-interop:
	$(MAKE) VENV=$(VENV_INTEROP) $(VENV_INTEROP)/.interop
	HF_HUB_OFFLINE=1 $(VENV_INTEROP)/bin/python -m tests.interop.make_goldens

# Nothing else should run meanwhile.
peers:
	$(MAKE) VENV=$(VENV_INTEROP) $(VENV_INTEROP)/.interop
	$(VENV_INTEROP)/bin/python -m benchmarks.peers $(PEERS_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python
	# The tests are not typed; what they import must be there, in 20 seconds and not after half an hour of tests.
	$(BIN)/pyrefly check --only missing-module-attribute --python-interpreter-path $(BIN)/python 'tests/**/*.py'
	$(BIN)/shellcheck -x $(SCRIPTS)

format: $(VENV)/.test
	$(BIN)/ruff check --fix $(LINTED)
	$(BIN)/ruff format $(LINTED)

wheel: $(VENV)/.core
	rm -rf build
	$(PIP) wheel -q --no-deps --no-build-isolation -w dist .

setup: $(VENV)/.core

setup-test: $(VENV)/.test

# The environment is made in place, in the first Python that is new enough and has venv; PYTHON=... chooses another. One
# that is there already and works is kept.
$(VENV)/.made:
	@set -e; \
	if $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then touch $@; exit 0; fi; \
	for python in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Setting up $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv --clear "$(VENV)"; \
	    touch $@; \
	    exit 0; \
	  fi; \
	done; \
	echo "hyperflax needs Python 3.11 or newer with its venv module, and found none." >&2; \
	echo "Install one (on Debian or Ubuntu: apt-get install python3 python3-venv), or name it:" >&2; \
	echo "  make PYTHON=/path/to/python3.11" >&2; \
	exit 1

$(VENV)/.core: requirements/core.lock setup.py pyproject.toml | $(VENV)/.made
	@echo "Installing the pinned packages of requirements/core.lock (once; a minute or two)"
	@$(INSTALL) -r requirements/core.lock
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

# The TPU compiler stands beside the environment's packages, where only tests that ask for it find it: jax would load it
# in every process. There is none for macOS.
$(VENV)/.test: requirements/test.lock requirements/tpu.lock $(VENV)/.core
	@echo "Installing the pinned packages of requirements/test.lock, TensorFlow among them (once; a few minutes)"
	@$(INSTALL) -r requirements/test.lock
	@if [ "$$(uname -s)" = Linux ]; then \
	  $(INSTALL) --no-deps --upgrade --target $(VENV)/tpu_compiler -r requirements/tpu.lock; \
	fi
	@touch $@

$(VENV)/.interop: requirements/interop.lock $(VENV)/.core
	@echo "Installing the pinned packages of requirements/interop.lock, torch among them (once; a few minutes)"
	@$(INSTALL) -r requirements/interop.lock
	@touch $@

# Pins only: no addresses, no hashes. One file holds for all supported Pythons and both Linux and macOS; core.lock is a
# part of test.lock, so that the second install never changes what the first one brought.
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --no-annotate --upgrade \
	--custom-compile-command "make lock"

lock:
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: pip install uv, or make lock UV=/path/to/uv" >&2; exit 1; }
	$(COMPILE) --extra seqio --extra serve --extra tuner --extra tuner-baselines --extra ray --extra test -o requirements/test.lock setup.py requirements/build.in
	$(COMPILE) -c requirements/test.lock -o requirements/core.lock setup.py requirements/build.in
	$(COMPILE) --extra tpu -c requirements/test.lock setup.py requirements/build.in | grep '^libtpu==' > requirements/tpu.lock
	$(COMPILE) --extra interop -c requirements/test.lock -o requirements/interop.lock setup.py requirements/build.in

clean:
	rm -rf $(VENV) $(VENV_INTEROP) build dist demo *.egg-info .pytest_cache .ruff_cache .hypothesis \
	  "$${TMPDIR:-/tmp}/hyperflax-tests-$$(id -u)"
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two commands do everything: `make demo` and `make test`. Each makes .venv if it is missing and installs what
# it needs; a stamp in .venv keeps that from being repeated. `make help` lists the rest. The documentation and the
# tools of developers have environments of their own, so that each extra is known to suffice.
#
#   PYTHON=python3.12 make test        another interpreter (only used to create .venv)
#   make test PYTEST_ARGS="-k kepler"  arguments passed on to pytest
#   make test JOBS=8                   parallel test processes (default 2)
#   make faults FAULTS="masking"       some of the injected faults
#   make bench TASKS="newton cg"       some of the benchmarks; BENCH_ARGS=--quick for a look at each

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PYTHONS ?= python3.12 python3.13
PYTEST_ARGS ?=
PORT ?= 8000
FAULTS ?=
TASKS ?=
BENCH_ARGS ?=

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-clients test-core test-nightly test-oldest test-newest test-pythons faults
.PHONY: bench bench-env bench-docs
.PHONY: lint format docs docs-test docs-serve wheel-test clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# ---- Environments ------------------------------------------------------------------------------------------

EXTRA_ENVS = .venv-docs .venv-dev .venv-clients
BENCH_ENVS = $(addprefix .venv-bench/,peers tfp qpth cvxpylayers)

# pip is what venv writes last, so that an interrupted creation is repeated.
$(VENV)/bin/pip $(EXTRA_ENVS:%=%/bin/pip) .venv-oldest/bin/pip .venv-newest/bin/pip $(BENCH_ENVS:%=%/bin/pip): %/bin/pip:
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "error: '$(PYTHON)' not found; name a Python >= 3.11: PYTHON=python3.11 make ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: implicit-solvers needs Python >= 3.11, '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1);" \
			"name another: PYTHON=python3.11 make ..." >&2; exit 1; }
	"$(PYTHON)" -m venv $*

# .venv/.installed-EXTRA: the package, editable, with that extra.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/pip
	$(PIP) install --quiet -e '.[$*]'
	@touch $@

# .venv-EXTRA: the same, and nothing else.
$(EXTRA_ENVS:%=%/.installed): .venv-%/.installed: pyproject.toml | .venv-%/bin/pip
	.venv-$*/bin/python -m pip --disable-pip-version-check install --quiet -e '.[$*]'
	@touch $@

.venv-oldest/.installed: pyproject.toml | .venv-oldest/bin/pip
	.venv-oldest/bin/python -m pip --disable-pip-version-check install --quiet -e '.[test]' 'torch==2.8.*'
	@touch $@

# The libraries that benchmarks compare with. One that does not install is left out; the next run tries again.
.venv-bench/peers/.installed: PEERS = "jax>=0.4.30" "optimistix>=0.0.9" "lineax>=0.0.7" "jaxopt>=0.8" \
	"torchdeq>=0.1" "torchopt>=0.7" "xitorch>=0.5"
.venv-bench/tfp/.installed: PEERS = "tensorflow-probability>=0.24 jax>=0.4.30,<0.5"
.venv-bench/qpth/.installed: PEERS = "qpth>=0.0.15"
.venv-bench/cvxpylayers/.installed: PEERS = "cvxpylayers>=0.1.6"

$(BENCH_ENVS:%=%/.installed): %/.installed: pyproject.toml | %/bin/pip
	@set -e; pip="$*/bin/python -m pip --disable-pip-version-check install --quiet"; missing=; \
	case $* in */tfp) ;; *) $$pip 'torch>=2.8' 'scipy>=1.12' 'rich>=13.0'; $$pip --no-deps -e . ;; esac; \
	for peer in $(PEERS); do \
		echo "$*: $$peer"; \
		$$pip $$peer || { missing="$$missing $${peer%%[>= ]*}"; }; \
	done; \
	if [ "$$missing" ]; then \
		echo "warning: not installed, and left out of the benchmarks:$$missing (the error is above)" >&2; \
	else touch $@; fi

# ---- For users ---------------------------------------------------------------------------------------------

demo: $(VENV)/.installed-problems ## set up, then run the demonstration
	$(BIN)/implicit-solvers demo --overwrite

# ---- Tests -------------------------------------------------------------------------------------------------

# One thread per process: two torch processes with default threads are 20 to 80 times slower.
test test-clients test-core test-nightly test-oldest test-newest test-pythons docs: export OMP_NUM_THREADS = 1

test: $(VENV)/.installed-test ## set up, then run the tests
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

test-core: $(VENV)/.installed-test ## what a change of the solvers' loop must run first (a minute)
	$(BIN)/python -m pytest -n $(JOBS) -m "core and not nightly" $(PYTEST_ARGS)

test-clients: .venv-clients/.installed ## our distributions in Pyro and GPyTorch
	.venv-clients/bin/python -m pytest tests/problems/reparameterization/test_clients.py $(PYTEST_ARGS)

test-nightly: export HYPOTHESIS_PROFILE = nightly
test-nightly: $(VENV)/.installed-test ## everything: the tests marked nightly too, and many more drawn problems
	$(BIN)/python -m pytest -n $(JOBS) -m "nightly or not nightly" $(PYTEST_ARGS)

test-oldest: .venv-oldest/.installed ## the tests on the oldest supported torch
	.venv-oldest/bin/python -c 'import torch; print("torch", torch.__version__)'
	.venv-oldest/bin/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

test-newest: .venv-newest/bin/pip ## the tests on the newest torch (upgraded at every run)
	.venv-newest/bin/python -m pip --disable-pip-version-check install --quiet -e '.[test]'
	.venv-newest/bin/python -m pip --disable-pip-version-check install --quiet --upgrade torch
	.venv-newest/bin/python -c 'import torch; print("torch", torch.__version__)'
	.venv-newest/bin/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

# INSTALL=1 makes an environment for each, and may have to download a torch for every device (gigabytes).
test-pythons: ## the core tier on other Pythons that are here: those that have torch, or with INSTALL=1 each
	@set -e; for python in $(PYTHONS); do \
		if ! $$python -c "" 2>/dev/null; then echo "$$python: left out, it is not here"; \
		elif [ "$(INSTALL)" ]; then $(MAKE) test-core VENV=.venv-$$python PYTHON=$$python; \
		elif ! $$python -c "import torch, cvxpy, hypothesis, mpmath, pytest, xdist" 2>/dev/null; then \
			echo "$$python: left out, it has no torch or lacks packages of the tests (INSTALL=1 installs them)"; \
		else $$python -m pytest -n $(JOBS) -m "core and not nightly" $(PYTEST_ARGS); fi; \
	done

faults: $(VENV)/.installed-test ## put faults into the core, one by one: a test must fail for each
	$(BIN)/python tests/fault_injection.py --jobs $(JOBS) $(if $(FAULTS),--only "$(FAULTS)")

# ---- Benchmarks --------------------------------------------------------------------------------------------

bench-env: $(BENCH_ENVS:%=%/.installed) ## the libraries that are compared with, in .venv-bench

bench: $(VENV)/.installed-test ## time against the libraries of bench-env; tables and numbers to runs/bench
	$(BIN)/python tests/benchmarks/run.py $(if $(TASKS),--tasks $(TASKS)) $(BENCH_ARGS)

bench-docs: $(VENV)/.installed-test ## write the tables and charts of docs/benchmarks.md from runs/bench
	$(BIN)/python tests/benchmarks/report.py

# ---- For developers ----------------------------------------------------------------------------------------

lint: .venv-dev/.installed ## ruff and mypy
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .
	.venv-dev/bin/mypy

format: .venv-dev/.installed ## ruff: fix and format
	.venv-dev/bin/ruff check --fix .
	.venv-dev/bin/ruff format .

# -E: an incremental build would not repeat the warnings of the pages that it does not read again.
docs: .venv-docs/.installed ## the documentation, to docs/_build/html; a warning is an error
	.venv-docs/bin/python -m sphinx -E -W --keep-going -b html docs docs/_build/html
	@! grep -rnoE '<(script|link|img|iframe)[^>]* (src|href)="(https?:)?//[^"]*"' docs/_build/html --include='*.html' \
		|| { echo "error: the pages above load something from the network" >&2; exit 1; }

docs-test: docs ## then open every page in a browser (Chromium), wide and narrow
	.venv-docs/bin/python -m pytest -q -m site tests/test_site.py

docs-serve: docs ## the documentation, on http://127.0.0.1:8000 (PORT=...)
	.venv-docs/bin/python -m http.server --bind 127.0.0.1 --directory docs/_build/html $(PORT)

wheel-test: .venv-dev/.installed ## build the archive of sources and the wheel, and try them in clean environments
	.ci/wheel-test .venv-dev/bin/python

clean: ## remove what was built and cached (environments and runs/ stay)
	rm -rf build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find implicit_solvers problems tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environments too
	rm -rf .venv $(EXTRA_ENVS) $(PYTHONS:%=.venv-%) .venv-oldest .venv-newest .venv-bench *.egg-info

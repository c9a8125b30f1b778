# A fresh clone needs Python 3.10 or newer and two commands: `make demo` and `make test`.

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
DEMO    ?= demo.png
ARGS    ?=

TEST  = $(VENV)/bin/python
DEMOS = $(VENV)-demo/bin/python
BENCH = $(VENV)-bench/bin/python

.DEFAULT_GOAL = help
.PHONY: help demo test lint bench figures clean
.NOTPARALLEL:

help: ## say what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "PYTHON=... VENV=...  another interpreter, and where its virtual environment goes ($(VENV))"
	@echo "WORKERS=...          test processes ($(WORKERS))"
	@echo "ARGS=...             passed on to the demo, pytest or the benchmark, e.g. make test ARGS='-k offset'"

demo: $(VENV)-demo/.ready ## warp a photograph and recover it; the figure goes to DEMO=demo.png; your own picture: ARGS=photo.jpg
	$(DEMOS) -m cupy_dcn demo $(ARGS) -o $(DEMO)
	@echo "The picture is in $(abspath $(DEMO))"

test: lint ## lint, then run the tests
	$(TEST) -m pytest -n $(WORKERS) $(ARGS)

lint: $(VENV)/.ready ## check style, formatting and types
	$(TEST) -m ruff check .
	$(TEST) -m ruff format --check .
	@if $(TEST) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then echo mypy; $(TEST) -m mypy; \
	else echo "mypy not run: the type stubs of NumPy for Python 3.10 are too old"; fi

bench: $(VENV)-bench/.ready ## time the CPU path beside its peers (installs PyTorch: several GB)
	$(BENCH) benchmarks/cpu_peers.py $(ARGS)

figures: $(VENV)-demo/.ready ## draw the pictures of the documentation again
	$(DEMOS) docs/figures.py
	$(DEMOS) -m cupy_dcn demo -o docs/demo.jpg

clean: ## remove the virtual environments, the caches and the demo's picture
	rm -rf $(VENV) $(VENV)-demo $(VENV)-bench build dist $(DEMO)
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One virtual environment per job, each with one extra. The stamp goes first and comes last, so an
# environment whose making was cut short is made again from nothing.
$(VENV)/.ready:       EXTRA = test
$(VENV)-demo/.ready:  EXTRA = demo
$(VENV)-bench/.ready: EXTRA = bench

$(VENV)/.ready $(VENV)-demo/.ready $(VENV)-bench/.ready: pyproject.toml
	@test -e $@ || { $(check_python) && echo "making $(@D)" && $(PYTHON) -m venv --clear $(@D); }
	@rm -f $@
	$(@D)/bin/python -m pip install --quiet --editable '.[$(EXTRA)]'
	@touch $@

define check_python
{ $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null \
    || { echo "$(PYTHON) is not Python 3.10 or newer: name one with PYTHON=..." >&2; false; }; } \
&& { $(PYTHON) -c 'import ensurepip, venv' 2> /dev/null \
    || { echo "$(PYTHON) cannot make a virtual environment: install its venv and ensurepip modules (Debian and Ubuntu: python3-venv)" >&2; false; }; }
endef

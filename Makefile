# A fresh clone needs Python 3.10 or newer and two commands: `make demo` and `make test`.
# Which CuPy the tests get is decided by the driver's CUDA version; CUDA=12, 13 or none overrides it.

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
DEMO    ?= demo.png
ARGS    ?=
REPORT  ?= gpu-report.md
RESULTS ?= docs
PEERS   ?= yes

ifeq ($(origin CUDA), command line)
ifeq ($(filter 12 13 none,$(CUDA)),)
$(error CUDA=$(CUDA): expected 12, 13 or none)
endif
else
CUDA := $(shell nvidia-smi 2> /dev/null | sed -n 's/.*CUDA[A-Za-z ]* Version: *\([0-9][0-9]*\).*/\1/p' | head -n 1)
endif
# No GPU, or a driver too old for CuPy 14: the kernels are compiled, and run in an emulator.
CUPY = $(if $(CUDA),$(or $(CUPY_$(CUDA)),cuda13x-ctk),emulator)
CUPY_none = no-cupy
CUPY_10 = emulator
CUPY_11 = emulator
CUPY_12 = cuda12x-ctk

TEST  = $(VENV)/bin/python
DEMOS = $(VENV)-demo/bin/python
BENCH = $(VENV)-bench/bin/python
# The peers are beside CuPy where a GPU can time both. Elsewhere they are in an environment of their
# own, for PyTorch holds NVRTC at a version that makes a few percent more instructions of the kernels.
PEERED = $(filter-out no,$(PEERS))
BESIDE = $(if $(filter %-ctk,$(CUPY)),$(PEERED))
APART  = $(if $(BESIDE),,$(PEERED))
COUNTED = $(VENV)-bench/.ready-$(CUPY)$(if $(BESIDE),-peers)
TIMED   = $(if $(APART),$(VENV)-peers/.ready,$(COUNTED))

# The lowest versions of what is required and of the tests' own; beside CuPy NumPy has to be newer. What
# is required by these in turn is the newest, for which a library may be too old: it says so by warnings.
KERNELS = $(if $(filter no-cupy,$(CUPY)),,yes)
LOWEST = $(VENV)-lowest/.ready $(if $(KERNELS),$(VENV)-lowest-cupy/.ready)
OLD = -W ignore::DeprecationWarning
# Left out beside an old NVRTC: the registers of kernels, which are held to what the newest takes; beside
# an old NumPy: bfloat16, of which CuPy has no arrays there.

.DEFAULT_GOAL = help
.PHONY: help demo test test-frameworks test-lowest faults fuzz test-memory mutants sanitize accuracy lint kernels gpu-report bench docs docs-check gallery figures clean
.NOTPARALLEL:

help: ## say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "PYTHON=... VENV=...  another interpreter, and where its virtual environment goes ($(VENV))"
	@echo "CUDA=12, 13, none    the CuPy to test with, instead of what the driver is for (now: $(CUPY))"
	@echo "WORKERS=...          test processes ($(WORKERS))"
	@echo "PEERS=no             benchmark without PyTorch and onnxruntime (several GB)"
	@echo "RESULTS=...          where the benchmark's tables and plots go ($(RESULTS))"
	@echo "ARGS=...             passed on to the demo, pytest or the CPU's benchmark, e.g. make test ARGS='-k offset'"

demo: $(VENV)-demo/.ready ## warp a photograph and recover it; the figure goes to DEMO=demo.png; your own picture: ARGS=photo.jpg
	$(DEMOS) -m cupy_dcn demo $(ARGS) -o $(DEMO)
	@echo "The picture is in $(abspath $(DEMO))"

test: lint ## lint, then run the tests; on a GPU too, if there is one
	$(TEST) -m pytest -n $(WORKERS) $(ARGS)

faults: $(VENV)/.ready-$(CUPY) ## plant every fault in the kernels and see it caught; make test plants each tenth
	$(TEST) -m pytest -n $(WORKERS) tests/test_gpu.py -k planted --every-fault $(ARGS)

test-memory: $(VENV)/.ready-$(CUPY) ## measure memory at every size; make test does at a few
	$(TEST) -m pytest -n $(WORKERS) tests/test_memory.py tests/test_memory_gpu.py tests/test_dask_files.py -m memory $(ARGS)

test-frameworks: $(VENV)-frameworks/.ready ## run the tests with torch, Paddle and JAX, which it installs (several GB)
	$(VENV)-frameworks/bin/python -m pytest tests/test_frameworks.py tests/test_documentation.py -k 'not docstring' $(ARGS)

test-lowest: $(LOWEST) ## run the tests with the lowest versions that pyproject.toml allows; PYTHON=python3.10 has the oldest
	$(VENV)-lowest/bin/python -m pytest $(OLD) -n $(WORKERS) $(ARGS)
	$(if $(KERNELS),$(VENV)-lowest-cupy/bin/python -m pytest $(OLD) -n $(WORKERS) -k '(emulated or cupy or gpu or kernel or counter) and not planted and not compile_and_fit and not bfloat16' $(ARGS))

mutants: $(VENV)/.ready-$(CUPY) ## plant faults in the CPU path and see them caught; ARGS='matmul' those of a file
	$(TEST) tests/mutants.py -j $(WORKERS) $(ARGS)

fuzz: $(VENV)/.ready-$(CUPY) ## make calls that nobody should make for ten minutes; ARGS='--minutes 60' longer
	$(TEST) tests/hostile.py $(ARGS)

sanitize: $(VENV)/.ready-$(CUPY) ## on a machine with a GPU: its tests under compute-sanitizer; elsewhere the emulator's checks
	$(TEST) tests/sanitize.py $(ARGS)

accuracy: $(VENV)-peers/.ready ## measure the errors of every dtype by the picture's width, beside torchvision's, for the documentation
	$(VENV)-peers/bin/python benchmarks/accuracy.py $(ARGS)

lint: $(VENV)/.ready-$(CUPY) ## check style, formatting and types
	$(TEST) -m ruff check .
	$(TEST) -m ruff format --check .
	@if $(TEST) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then echo mypy; $(TEST) -m mypy; \
	else echo "mypy not run: the type stubs of NumPy for Python 3.10 are too old"; fi

kernels: $(VENV)/.ready-$(CUPY) ## compile the CUDA kernels for every architecture and print their registers
	$(TEST) benchmarks/kernels.py $(ARGS)

gpu-report: $(VENV)/.ready-$(CUPY) ## on a machine with a GPU: write what only it can show to REPORT=gpu-report.md
	$(TEST) benchmarks/gpu_report.py -o $(REPORT) $(ARGS)

bench: $(sort $(if $(filter no-cupy,$(CUPY)),,$(COUNTED)) $(TIMED)) ## count the GPU path, and time it if there is a GPU; time the CPU path; both beside their peers
	$(if $(filter no-cupy,$(CUPY)),@echo "The GPU path is left out: no CuPy",$(BENCH) benchmarks/gpu.py --results $(RESULTS))
	$(dir $(TIMED))bin/python benchmarks/cpu_peers.py $(ARGS)
	CUPY_DCN_NUMBA=0 $(dir $(TIMED))bin/python benchmarks/small_call.py

docs: $(VENV)-docs/.ready ## build the documentation site into site/; site/index.html opens from disk
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/python -m mkdocs build --strict --quiet
	@echo "The site is in $(abspath site/index.html)"

docs-check: docs ## look over the site: links, and in a Chromium, if there is one, widths and pictures (build/site)
	$(VENV)-docs/bin/python docs/check_site.py site --pictures build/site

gallery: $(VENV)-demo/.ready ## make the pictures of docs/gallery.md: a lens, turbulence, an MRI slice, sampling grids
	$(DEMOS) docs/gallery

figures: $(VENV)-demo/.ready ## draw the pictures of the documentation again
	$(DEMOS) docs/figures.py
	$(DEMOS) -m cupy_dcn demo -o docs/demo.jpg --animation docs/recovery.gif

clean: ## remove the virtual environments, the caches and the demo's picture
	rm -rf $(VENV) $(VENV)-demo $(VENV)-docs $(VENV)-bench $(VENV)-peers $(VENV)-frameworks $(VENV)-lowest $(VENV)-lowest-cupy build dist site $(DEMO)
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One virtual environment per job, each with one extra. The stamp goes first and comes last, so an
# environment whose making was cut short is made again from nothing.
$(VENV)/.ready-$(CUPY): EXTRA = test$(if $(filter no-cupy,$(CUPY)),,$(comma)$(CUPY))
$(VENV)-demo/.ready:    EXTRA = demo
$(VENV)-docs/.ready:    EXTRA = docs
$(COUNTED):             EXTRA = bench$(if $(BESIDE),$(comma)peers)$(if $(filter no-cupy,$(CUPY)),,$(comma)$(CUPY))
$(VENV)-peers/.ready:   EXTRA = bench,peers
$(VENV)-frameworks/.ready: EXTRA = frameworks,test
comma = ,

$(VENV)/.ready-$(CUPY) $(VENV)-demo/.ready $(VENV)-docs/.ready $(COUNTED) $(VENV)-peers/.ready $(VENV)-frameworks/.ready: pyproject.toml
	@test -e $@ || { $(check_python) && echo "making $(@D) ($(EXTRA))" && $(PYTHON) -m venv --clear $(@D); }
	@rm -f $@
	@$(@D)/bin/python -m pip install --quiet --editable '.[$(EXTRA)]' || { $(explain); false; }
	@touch $@

$(VENV)-lowest/.ready:      EXTRA = test
$(VENV)-lowest-cupy/.ready: EXTRA = test,$(CUPY)

$(VENV)-lowest/.ready $(VENV)-lowest-cupy/.ready: pyproject.toml
	@$(check_python) && echo "making $(@D) ($(EXTRA), lowest versions)" && $(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet 'uv>=0.9'
	@$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --resolution lowest-direct \
	    --only-binary :all: --no-binary cupy_dcn --editable '.[$(EXTRA)]'
	@touch $@

# Pip has said what is missing before.
define explain
case '$(EXTRA)' in test,*) echo "The tests of the CUDA path need CuPy and NVRTC, which come for Linux and Windows (x86-64, arm64; no musl) and Python 3.10 to 3.14. If it is these that could not be installed: make test CUDA=none leaves them out." >&2;; esac
endef

define check_python
{ $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null \
    || { echo "$(PYTHON) is not Python 3.10 or newer: name one with PYTHON=..." >&2; false; }; } \
&& { $(PYTHON) -c 'import ensurepip, venv' 2> /dev/null \
    || { echo "$(PYTHON) cannot make a virtual environment: install its venv and ensurepip modules (Debian and Ubuntu: python3-venv)" >&2; false; }; }
endef

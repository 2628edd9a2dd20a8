# `make help` lists the targets.  They use .venv if `make setup` made one, else the python that is active.

PYTHON = $(shell [ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)
CLANG_FORMAT = $(shell [ -x .venv/bin/clang-format ] && echo .venv/bin/clang-format || command -v clang-format)
FUZZ_SECONDS ?= 120

.PHONY: help setup check test bench fuzz docs golden

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-8s %s\n", $$1, $$2 }'

setup:  ## make .venv with the package, editable, and all tools
	python3 -m venv .venv
	.venv/bin/pip install --upgrade pip
	.venv/bin/pip install "scikit-build-core>=0.10" "nanobind>=2.4" cmake ninja ruff mypy clang-format
	.venv/bin/pip install --no-build-isolation -e '.[test,demo]'

check:  ## what CI runs: linters, types, tests
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	@if [ -n "$(CLANG_FORMAT)" ]; then $(CLANG_FORMAT) --dry-run -Werror aesz_codec/native/*.hpp aesz_codec/native/*.cpp; \
	else echo "no clang-format: the native core is not checked"; fi
	$(PYTHON) -m pytest

test:  ## the tests alone
	$(PYTHON) -m pytest

bench:  ## bytes, speed and memory against all peers (benchmarks/README.md); AESZ_DATA names the folder of the suite
	$(PYTHON) -m pip install --quiet -e '.[benchmark]'
	$(PYTHON) -m benchmarks --workers 2 --output benchmarks/results/float32
	$(PYTHON) -m benchmarks.ablation --workers 2 --output benchmarks/results/float32
	$(PYTHON) -m benchmarks --peers aesz,sz3 --dtype float64 --workers 2 --measure rates --output benchmarks/results/float64

# The core under AddressSanitizer and UndefinedBehaviorSanitizer, in a folder of its own.  -S keeps the editable install
# out of the way, -P the uncompiled package in this folder.
SANITIZED = build/sanitize
SITES = $(shell $(PYTHON) -c "import sysconfig as s; print(s.get_path('purelib') + ':' + s.get_path('platlib'))")
UNDER_SANITIZERS = LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0,allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
  PYTHONPATH=$(SANITIZED)/site:$(SITES):$(CURDIR) $(PYTHON) -S -P

fuzz:  ## tests and a fuzzer for FUZZ_SECONDS (120), with the native core under sanitizers; Linux and gcc
	CXX=g++ $(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --upgrade --target $(SANITIZED)/site \
	  -C build-dir=$(SANITIZED)/cmake -C cmake.build-type=RelWithDebInfo -C cmake.define.AESZ_SANITIZE=ON .
	$(UNDER_SANITIZERS) -m pytest -q --capture=sys -p no:cacheprovider \
	  tests/robustness tests/properties tests/test_reference.py tests/test_golden.py tests/test_threads.py
	$(UNDER_SANITIZERS) -m tests.robustness.fuzz --seconds $(FUZZ_SECONDS) --last $(SANITIZED)/last-case
	AESZ_SIMD=0 $(UNDER_SANITIZERS) -m tests.robustness.fuzz --seconds 20 --last $(SANITIZED)/last-case

docs:  ## run the examples in the docstrings
	$(PYTHON) -m pytest -q --doctest-modules --pyargs aesz_codec

golden:  ## write golden streams for new features of the format; existing ones are never changed
	$(PYTHON) tests/golden/make_golden.py

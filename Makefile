PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
SITE := site

WHEELS := gpu-wheels
# what a machine with PyTorch 2.11, transformers and the like has not, for CPython 3.12 on Linux
GPU_PACKAGES := av cffi dask dask-jobqueue distributed locket partd plotly pycparser soundfile tblib \
    tornado zict
PLATFORMS := $(patsubst %,--platform %_x86_64,manylinux_2_28 manylinux_2_27 manylinux_2_17 \
    manylinux2014 manylinux1)

.PHONY: demo test test-lowest quick soak lint docs gpu-wheels clean

demo: $(VENV)/installed
	$(VENV)/bin/avarnet demo

test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -n 3

# with the lowest versions that pyproject.toml admits; TESTS="tests/train -m 'not slow'" runs a part
test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest -n 3 $(TESTS)

quick: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -n 4 -m "not slow and not soak"

# the same as some of the tests, many times over: no limit of time for one of them
soak: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -n 2 -m soak --timeout 0

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# pages of all public functions and classes, from their docstrings
docs: $(VENV)/installed-test
	$(VENV)/bin/python -m pdoc --docformat google -o $(SITE) avarnet extract features manifests train

# what benchmarks/gpu.py needs on a machine without a network: benchmarks/README.md
gpu-wheels: $(VENV)/installed
	rm -rf $(WHEELS)
	$(VENV)/bin/pip download --no-deps --only-binary=:all: --python-version 3.12 \
	    --implementation cp $(PLATFORMS) -d $(WHEELS) $(GPU_PACKAGES)
	$(VENV)/bin/pip wheel --no-deps -w $(WHEELS) .
	du -sh $(WHEELS)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/pip install -e '.[extract]'
	touch $@

$(VENV)/installed-test: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/pip install -e '.[test]'
	touch $@

$(LOWEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install uv
	$(LOWEST)/bin/uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(SITE) avarnet-demo

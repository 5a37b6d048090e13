PYTHON ?= python3
VENV := .venv

.PHONY: demo test lint clean

demo: $(VENV)/installed
	$(VENV)/bin/avarnet demo

test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -n 3

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/pip install -e '.[extract]'
	touch $@

$(VENV)/installed-test: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/pip install -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) avarnet-demo

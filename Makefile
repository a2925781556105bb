PYTHON ?= python3
VENV := .venv/bin/python

.PHONY: setup lint test docs demo

setup:
	$(PYTHON) tools/setup_env.py

lint: setup
	$(VENV) -m ruff check .
	$(VENV) -m mypy

test: setup
	$(VENV) -m pytest -n 2 --dist loadfile tests

docs: setup
	$(VENV) -m sphinx -q -W --keep-going -c docs . build/site

demo: setup
	$(VENV) tools/demo.py

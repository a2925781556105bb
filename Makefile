PYTHON ?= python3
VENV := .venv/bin/python

.PHONY: setup test demo

setup:
	$(PYTHON) tools/setup_env.py

test: setup
	$(VENV) -m ruff check .
	$(VENV) -m pytest -n 2 --dist loadfile tests

demo: setup
	$(VENV) tools/demo.py

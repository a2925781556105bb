PYTHON ?= python3
VENV := .venv/bin/python

.PHONY: setup lint test fuzz mutation docs demo forks pythons gpu

setup:
	$(PYTHON) tools/setup_env.py

lint: setup
	$(VENV) -m ruff check .
	$(VENV) -m mypy

test: setup
	$(VENV) -m pytest -n 2 --dist loadfile tests

# Hours; every test run has a short one.
fuzz: setup
	$(VENV) -W ignore tests/fuzz/fuzz_files.py --json docs/results/fuzz_files.json
	$(VENV) -W ignore tests/fuzz/fuzz_large_files.py --json docs/results/fuzz_large_files.json
	$(VENV) -W ignore tests/fuzz/fuzz_pickles.py --json docs/results/fuzz_pickles.json
	$(VENV) -W ignore tests/fuzz/fuzz_kills.py --json docs/results/fuzz_kills.json

# A tenth of the mutants, drawn. All of them: --share 1.
mutation: setup
	$(VENV) -W ignore tests/mutation/mutate.py --share 0.1 --json docs/results/mutation.json

docs: setup
	$(VENV) -m sphinx -q -W --keep-going -c docs . build/site

demo: setup
	$(VENV) tools/demo.py

# The same suite with the maintained forks of the mm packages.
forks:
	$(PYTHON) tools/setup_env.py --venv .venv-forks \
		--pins requirements/forks.txt
	.venv-forks/bin/python -m pytest -n 2 --dist loadfile tests

# The tests of the core in every Python that is claimed and installed.
pythons:
	$(PYTHON) tools/pythons.py

# In the Python that has torch for the GPU; .venv is not used.
gpu:
	$(PYTHON) tools/gpu.py

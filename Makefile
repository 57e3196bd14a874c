# `make run` and `make test` install what they need into .venv first. PYTHON: 3.10 to 3.13.
PYTHON ?= python3
BIN := .venv/bin
OUTPUTS := outputs

.PHONY: run test lint clean

run: .venv/installed
	$(BIN)/python -m local_workspace samples
	$(BIN)/python -m local_workspace score deployment-by-file.yml --data data --output $(OUTPUTS)/by-file --overwrite
	$(BIN)/python -m local_workspace show $(OUTPUTS)/by-file --data data
	$(BIN)/python -m local_workspace score deployment-by-batch.yml --data data --output $(OUTPUTS)/by-batch --overwrite
	$(BIN)/python -m local_workspace show $(OUTPUTS)/by-batch --data data

test: .venv/installed-test
	$(BIN)/python -m pytest

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z '*.sh' .ci/run | xargs -0 $(BIN)/shellcheck

clean:
	rm -rf .venv .local_workspace outputs .pytest_cache .ruff_cache .hypothesis

.venv/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $$("$(PYTHON)" --version 2>&1) at $(PYTHON), expected Python 3.10 to 3.13"; \
	    echo; echo "hint: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; } >&2
	"$(PYTHON)" -m venv .venv
	@touch $@

.venv/installed: pyproject.toml .venv/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-test: pyproject.toml .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

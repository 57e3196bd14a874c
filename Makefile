# `make run` and `make test` install what they need into .venv first. PYTHON: 3.10 to 3.13.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run score test bench lint clean

# The article's whole flow, in a local workspace: no Azure.
run: .venv/installed
	$(BIN)/python -m local_workspace run -- ./deploy-and-run.sh
	$(BIN)/python -m local_workspace show named-outputs --data data --model model --no-table
	$(BIN)/python -m local_workspace show outputs/high-throughput/named-outputs --data data --model model --no-table

# All three deployments through the batch executor alone: no workspace, no az.
score: .venv/installed
	$(BIN)/python -m local_workspace samples
	$(BIN)/python -m local_workspace score deployment-by-file.yml --data data --output outputs/by-file --overwrite
	$(BIN)/python -m local_workspace show outputs/by-file --data data
	$(BIN)/python -m local_workspace score deployment-by-batch.yml --data data --output outputs/by-batch --overwrite
	$(BIN)/python -m local_workspace show outputs/by-batch --data data
	$(BIN)/python code/score-with-mlflow/save_model.py model mlflow-model
	$(BIN)/python -m local_workspace score deployment-mlflow.yml --data data --output outputs/mlflow --overwrite
	$(BIN)/python -m local_workspace show outputs/mlflow --data data

test: .venv/installed-test
	$(BIN)/python tests/measured.py --numprocesses 2 --dist loadfile

# Speed against what one would use instead: about half an hour. OPTIONS="--rounds 1 --only by-file", say.
bench: .venv/installed-bench
	$(BIN)/python -m benchmarks $(OPTIONS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml local_workspace code
	git ls-files -z '*.sh' .ci/run local_workspace/bin/az | xargs -0 $(BIN)/shellcheck

# Model, photos and results too, but for what was not made here (local_workspace/clean.py).
clean:
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m local_workspace.clean; else "$(PYTHON)" -m local_workspace.clean; fi
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .coverage

.venv/python:
	@found=$$("$(PYTHON)" -c 'import sys; print("Python %d.%d" % sys.version_info[:2])' 2>/dev/null); \
	  case $$found in "Python 3.1"[0-3]) exit ;; esac; \
	  { echo "error: PYTHON=$(PYTHON) is $${found:-no Python}, expected Python 3.10 to 3.13"; \
	    echo; echo "hint: make $(or $(MAKECMDGOALS),run) PYTHON=python3.11"; exit 2; } >&2
	"$(PYTHON)" -m venv .venv
	@touch $@

.venv/installed: pyproject.toml .venv/python
	@echo "installing TensorFlow and the rest into .venv: a minute or two"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-test: pyproject.toml .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

.venv/installed-bench: pyproject.toml .venv/installed
	@echo "installing ONNX Runtime, OpenVINO and Ray into .venv: a minute or two"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

# Needs python3 >= 3.9 with venv, and a pip index. Everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench bench-quick clean

demo: .venv/testbed.stamp  ## three Rucio instances that share open data, start to end
	$(BIN)/nsync demo

test: .venv/dev.stamp  ## the whole suite, real Rucio servers included
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: .venv/dev.stamp  ## the gates that every commit passes
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-quick: .venv/bench.stamp  ## every measurement at 100 000 entries, in some ten minutes
	$(BIN)/python -m benchmarks --quick

bench: .venv/bench.stamp  ## every measurement at ten million entries, and the table in docs/BENCHMARKS.md
	$(BIN)/python -m benchmarks

clean:  ## what the other targets made; testbeds stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# A stamp is renewed when pyproject.toml changes; the package is installed editable, so a change of a source needs nothing.
.venv/%.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip  # the one of Python 3.9.0 cannot install editable
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

.venv/testbed.stamp: EXTRAS = testbed
.venv/dev.stamp: EXTRAS = testbed,dev
.venv/bench.stamp: EXTRAS = testbed,dev,bench

# Everything a newcomer needs: `make demo` and `make test`, from a clone, with Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
# `make install PIP="uv pip"` takes less than half of the time where uv is there.
PIP = $(BIN)/python -m pip

.PHONY: demo test test-processors check format install clean

install: .venv/installed

# The versions in constraints.txt are those the tests last passed with.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	VIRTUAL_ENV='$(CURDIR)/.venv' $(PIP) install --quiet --upgrade pip
	VIRTUAL_ENV='$(CURDIR)/.venv' $(PIP) install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@

demo: install
	$(BIN)/combo demo --out demo

# One thread a process: two that want all cores slow each other down. There is one process more than
# cores, since one mostly waits. The order is another each time and its seed is printed;
# `make test SEED=123` takes that one again.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal --durations 40 \
	$(if $(SEED),-p randomly --randomly-seed=$(SEED))

test: install
	$(TESTS)

# As on older processors, one and two threads: an hour or two. SHORT=1: what CI runs.
test-processors: install
	$(BIN)/python tests/processors.py $(if $(SHORT),--short)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(TESTS)

clean:
	rm -rf .venv build dist *.egg-info

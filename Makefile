# Two commands: `make demo` runs the main job, `make test` passes every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test fuzz mutations lint typecheck clean

demo: $(READY)
	$(BIN)/parnl train

test: $(READY) lint typecheck
	$(BIN)/pytest -n auto --durations 15

# Random cells through every kernel; PARNL_FUZZ sets how many, PARNL_FUZZ_SEED which. What the C
# compiler makes of them is of no use afterwards.
fuzz: $(READY)
	PARNL_CACHE=$$(mktemp -d) && export PARNL_CACHE && trap 'rm -rf "$$PARNL_CACHE"' EXIT && \
	PARNL_FUZZ=$${PARNL_FUZZ:-10000} $(BIN)/pytest -n auto tests/test_fuzz.py

# Faults planted in a copy of parnl: parnl.testing must catch each of them.
mutations: $(READY)
	$(BIN)/python tests/mutations.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Type checkers do not follow the package-dir mapping of an editable install: check a plain copy.
typecheck: $(READY)
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p parnl

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info

# Two commands: `make demo` runs the main job, `make test` passes every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test fuzz lint typecheck clean

demo: $(READY)
	$(BIN)/parnl train

test: $(READY) lint typecheck
	$(BIN)/pytest -n auto --durations 15

# Random cells through every kernel; PARNL_FUZZ sets how many.
fuzz: $(READY)
	PARNL_FUZZ=$${PARNL_FUZZ:-10000} $(BIN)/pytest tests/test_fuzz.py

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

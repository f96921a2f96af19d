# Two commands: `make demo` runs the main job, `make test` tests every part in some minutes. The other
# targets test more of each part. `.ci/run` calls all that must pass before a change is taken.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := $(VENV)/.ready

# Tests start many processes: what one has compiled of Python, the next need not.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-long docs test-docs dist test-optimised test-newest test-oldest test-clients fuzz mutations lint typecheck clean

demo: $(READY)
	$(BIN)/parnl train --overwrite

test: $(READY) lint
	$(BIN)/pytest -n auto --dist worksteal -m "not long" --durations 15

# Tests that take seconds each: several processes and devices, whole commands, exports, interpreters.
test-long: $(READY) typecheck
	$(BIN)/pytest -n auto --dist worksteal -m long --durations 15

# The documentation as a web site that needs no server: build/site/index.html
docs: $(READY)
	$(BIN)/pip install --quiet --no-deps --target build/docs --upgrade .
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Tutorials train models, so their code runs here and not in `make test`.
test-docs: docs
	PARNL_DOCS=1 $(BIN)/pytest -n auto tests/test_docs.py

# What is published: built, checked, and tried in fresh environments, with no extra and with each.
dist: $(READY)
	rm -rf dist
	.ci/dist $(BIN)/python

# The tests of the C kernels, compiled as users compile them: `make test` optimises less, to save time.
test-optimised: $(READY)
	PARNL_OPTIMISED=1 $(BIN)/pytest -n auto --dist worksteal \
	  tests/backends/c/test_kernels.py tests/backends/c/test_robust.py tests/cells/test_cells.py

# JAX, NumPy and the compiled kernels with the newest release of everything, on a newer Python.
test-newest:
	.ci/newest

# The same suite with the oldest releases that pyproject.toml declares.
test-oldest:
	.ci/oldest

# Programs that use parnl's modules: Lightning, skorch, accelerate. They are many packages.
test-clients: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[clients]'
	$(BIN)/pytest tests/test_clients.py

# What `make test` has a part of: random cells through every kernel, random tasks through the solver,
# and tables of tests (marked `turns`) with every case, compiled as users do. PARNL_FUZZ sets how many
# random cells, PARNL_FUZZ_SEED which. What compilers make of them is of no use afterwards.
fuzz: export PARNL_FUZZ ?= 10000
fuzz: export PARNL_EVERY = 1
fuzz: export PARNL_OPTIMISED = 1
fuzz: $(READY)
	PARNL_CACHE=$$(mktemp -d) && export PARNL_CACHE && trap 'rm -rf "$$PARNL_CACHE"' EXIT && \
	export JAX_COMPILATION_CACHE_DIR="$$PARNL_CACHE/jax" && \
	$(BIN)/pytest -n auto tests/test_fuzz.py tests/solver/test_any_task.py \
	  tests/backends/jax/test_strict_modes.py tests/backends/jax/test_triton.py && \
	$(BIN)/pytest -n auto -m turns

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
	# a user's program, as strictly as there is
	MYPYPATH=build/typecheck $(BIN)/mypy --strict --follow-imports=silent tests/typed_program.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
ifeq ($(shell uname -s),Linux)
	# what JAX lowers for a GPU is tested without one: the part of its CUDA plugin that does so
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps jax-cuda13-plugin
endif
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info

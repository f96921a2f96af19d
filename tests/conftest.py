"""Set-up shared by all tests: double precision, CPU, one thread a worker, repeatable examples."""

import os
import sys
from importlib.machinery import PathFinder
from importlib.metadata import distributions
from pathlib import Path

# Read by JAX when it is first imported, so these come before any test module is.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_ENABLE_X64"] = "1"
# Tests spend most of their time in compilers, so C and XLA's programs are optimised little here.
# PARNL_OPTIMISED compiles as users do: in `make test-optimised`, `fuzz`, a part of `test-newest`.
OPTIMISED = "PARNL_OPTIMISED" in os.environ
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0" if OPTIMISED else "1"
# Fused loops compile three times faster by XLA's older way. Later releases refuse the flag.
_older = [d.version[:4] for d in distributions(name="jaxlib")] in (["0.9."], ["0.10"])
_older_way = "--xla_cpu_use_fusion_emitters=false" if _older and not OPTIMISED else ""
os.environ.setdefault("XLA_FLAGS", _older_way)
# What XLA has compiled, workers share, and the next run too.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# PARNL_WITHOUT=torch,jax pytest ...: as if these were not installed
WITHOUT = set(os.environ.get("PARNL_WITHOUT", "").split(",")) - {""}
if WITHOUT:
    assert not WITHOUT & sys.modules.keys(), "already imported"
    _find = PathFinder.find_spec

    def _find_others(name, *arguments):
        return None if name.partition(".")[0] in WITHOUT else _find(name, *arguments)

    PathFinder.find_spec = staticmethod(_find_others)

sys.path.insert(0, str(Path(__file__).parent))  # `import oracles` under --import-mode=importlib

hypothesis.settings.register_profile(
    "parnl", deadline=None, derandomize=True, max_examples=40, print_blob=True
)
hypothesis.settings.register_profile("search", parent=None, deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "parnl"))


from parnl import registry  # noqa: E402
from parnl.backends.c import build  # noqa: E402
from parnl.testing import installed  # noqa: E402

if not OPTIMISED:
    build.FLAGS = tuple("-Og" if flag == "-O2" else flag for flag in build.FLAGS)

FRAMEWORKS = {"torch", "jax"}
MISSING = FRAMEWORKS - set(installed())
# What whole files and folders need; other tests ask `optional` for what they use.
NEEDED = {
    "backends/c": {"torch", "jax"},
    "backends/test_arrays.py": {"torch"},
    "backends/test_refused_arrays.py": {"torch"},
    "backends/jax": {"jax"},
    "backends/torch": {"torch"},
    "backends/triton": {"torch"},
    "benchmarks": {"torch"},
    "export": {"torch"},
    "cells/test_library.py": {"torch"},
    "interop": {"torch"},
    "learn/test_class_weights.py": {"torch", "jax"},
    "learn/test_commands.py": {"torch", "jax"},
    "learn/test_continued.py": {"torch", "jax"},
    "learn/test_later_commands.py": {"torch", "jax"},
    "learn/test_events.py": {"torch", "jax"},
    "learn/test_jax_models.py": {"jax"},
    "learn/test_models.py": {"torch", "jax"},
    "learn/test_report.py": {"torch", "jax"},
    "learn/test_report_files.py": {"torch"},
    "learn/test_options.py": {"torch", "jax"},
    "learn/test_precision.py": {"torch", "jax"},
    "learn/test_seeds.py": {"torch"},
    "learn/test_tasks.py": {"torch", "jax"},
    "learn/test_train_files.py": {"torch"},
    "learn/test_trained.py": {"torch", "jax"},
    "learn/test_training.py": {"torch", "jax"},
    "learn/test_whole_way.py": {"torch", "jax"},
    "learn/test_checkpoints.py": {"torch", "jax"},
    "test_clients.py": {"torch"},
    "test_fuzz.py": {"torch", "jax"},
    "test_jax_modules.py": {"jax"},
    "test_torch_layers.py": {"torch"},
    "test_torch_module.py": {"torch"},
}


def pytest_ignore_collect(collection_path):
    """Leave out what stands where a framework is needed that is not installed."""
    here = collection_path.relative_to(Path(__file__).parent).as_posix()
    return True if NEEDED.get(here, set()) & MISSING else None


def missing(item):
    """Return the names of frameworks that a test has as parameters and that are not installed."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return MISSING & {p for p in parameters if isinstance(p, str)}


def pytest_configure(config):
    config.addinivalue_line("markers", f"turns(*names): {in_turns.__doc__.splitlines()[0]}")
    config.addinivalue_line("markers", "long: takes seconds: in make test-long")


def in_turns(items, names):
    """Of one test's cases, run each combination of these parameters once, the others in turn.

    So `make test` does not repeat evidence. `make fuzz` sets PARNL_EVERY and runs every case.
    """
    groups = {}
    for item in items:
        groups.setdefault(tuple(str(item.callspec.params[n]) for n in names), []).append(item)
    for i, cases in enumerate(groups.values()):
        # fewer groups than cases: spread over all of them
        yield cases[max(i, i * len(cases) // len(groups)) % len(cases)]


def pytest_collection_modifyitems(config, items):
    """Leave out what `turns` does, unless a test is asked for by its name."""
    if "PARNL_EVERY" in os.environ or any("::" in a for a in config.args):
        return
    marked = {}
    for item in items:
        mark = item.get_closest_marker("turns")
        if mark and not missing(item):  # what is skipped takes nobody's turn
            marked.setdefault((item.path, item.originalname, mark.args), []).append(item)
    out = {i for (*_, names), group in marked.items() for i in {*group} - {*in_turns(group, names)}}
    if out:
        config.hook.pytest_deselected(items=[i for i in items if i in out])
        items[:] = [i for i in items if i not in out]


def pytest_runtest_setup(item):
    """Skip a test whose parameter is a framework that is not installed."""
    for name in missing(item):
        pytest.skip(f"{name} is not installed")


@pytest.fixture
def own_cells(monkeypatch):
    """Forget the cells that a test registers, for others ask for all that there are."""
    known = {name: registry.get_class(name) for name in registry.list_cells()}
    monkeypatch.setattr(registry, "_cells", known)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Keep xdist workers from fighting over the cores."""
    if "torch" not in MISSING:
        import torch

        torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    """Say how many random cells tests/test_fuzz.py has drawn, by the path that was tested."""
    drawn: dict[str, int] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in report.user_properties:
                if name == "cells":
                    way, count = value.split()
                    drawn[way] = drawn.get(way, 0) + int(count)
    if drawn:
        counts = ", ".join(f"{way} {count}" for way, count in drawn.items())
        terminalreporter.write_line(f"random cells drawn: {counts}")

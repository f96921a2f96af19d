"""Exported models, compiled as strictly as compilers can, compute what parnl computes."""

import functools

import c_models as models
import c_programs as programs
import numpy as np
import pytest

import parnl

MODELS = models.models()
FEW = ("gru", "lrc_dt", "s6", "pendulum", "layered", "mixed", "delays", "classifier")
EMULATED = {
    "aarch64": ("aarch64-linux-gnu-gcc", "qemu-aarch64"),
    "arm": ("arm-linux-gnueabihf-gcc", "qemu-arm"),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, model in MODELS.items():
        parnl.to_c(*model.arguments, folder=folder, name=name, **model.keywords)
    return folder


@pytest.fixture(scope="session")
def program(folder):
    """Build all models by a compiler, once."""
    return functools.cache(
        lambda compiler, *flags: programs.build(folder, MODELS, compiler, *flags)
    )


@functools.cache
def task(name):
    """Return (inputs, resets, dt) and what is to come of them, (outputs, states)."""
    rng = np.random.default_rng(7)
    inputs = rng.normal(size=(models.STEPS, models.INPUTS)).astype(np.float32).astype(np.float64)
    resets = np.arange(models.STEPS) == models.RESET
    dt = rng.uniform(0.01, 0.2, models.STEPS).astype(np.float32).astype(np.float64)
    return (inputs, resets, dt), MODELS[name].reference(inputs, resets, dt)


def error(name, program, *before, steps=models.STEPS):
    """Return the largest error relative to the largest value, of outputs and states."""
    arguments, expected = task(name)
    found = programs.run(program, name, *(a[:steps] for a in arguments), *before)
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        assert np.isfinite(other).all()
        assert np.abs(other).max() > 1e-3
        worst = max(worst, np.abs(one - other[:steps]).max() / np.abs(other[:steps]).max())
    return worst


def needs(*commands):
    if gone := programs.missing(*commands):
        pytest.skip(f"{gone} is not installed")


@pytest.mark.parametrize("compiler", ["gcc", pytest.param("clang", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", MODELS)
def test_a_program_computes_what_parnl_does(program, name, compiler):
    needs(compiler)
    assert error(name, program(compiler)) < 1e-5


@pytest.mark.parametrize("machine", EMULATED)
def test_other_processors_compute_the_same(program, machine):
    compiler, emulator = EMULATED[machine]
    needs(compiler, emulator)
    built = program(compiler, "-static")
    for name in MODELS:
        assert error(name, built, emulator) < 1e-5, name


@pytest.mark.long
def test_valgrind_finds_no_fault(program):
    needs("valgrind", "gcc")
    for name in FEW:
        assert (
            error(name, program("gcc"), "valgrind", "--error-exitcode=9", "--quiet", steps=30)
            < 1e-5
        )

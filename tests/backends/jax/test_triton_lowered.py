"""The Triton kernels in JAX, lowered for a GPU that is not there.

What is lowered is looked at from both ends: the launch that jaxlib's handler will make, decoded
from its protobuf, and the kernel that it launches, as Triton has named and typed its parameters.
"""

import re

import jax
import numpy as np
import pytest
from launches import BUILT_IN, EVERY, calls_of, lowered, needs_plugin

import parnl
from parnl.backends.jax import triton as jax_triton
from parnl.backends.triton import build, launch
from parnl.backends.triton.build import Pointer
from parnl.backends.triton.launch import dense_strides
from parnl.solver.newton import Plan

triton = pytest.importorskip("triton", minversion="3.6")


@pytest.fixture
def compiled(fresh):
    """What Triton is asked to compile, and what it makes of it, in turn."""
    found, compiled = [], triton.compile

    def spied(source, **how):
        found.append((source, compiled(source, **how)))
        return found[-1][1]

    fresh.setattr(triton, "compile", spied)
    return found


def any_assembler_makes_the_same_of(call):
    """XLA's is not told to fuse nothing. It leaves alone what says how it rounds."""
    operations = re.findall(r"\s((?:add|sub|mul|fma|mad)\.[\w.]*f(?:32|64))\s", call.ptx)
    assert len(operations) > 20
    assert all(".rn" in o for o in operations)
    assert f".maxnreg {min(255, 65536 // call.warps // 32)}" in call.ptx
    assert ".version 8.0" in call.ptx


def expected_strides(shape):
    strides = np.empty(shape, np.int8).strides
    return [0 if n == 1 else s for n, s in zip(shape, strides, strict=True)]


# cell, batch, steps, hidden, chunks, dtype
LOWERED = [
    ("gru", 2, 23, 4, 3, "float32"),
    ("gru", 2, 64, 64, 4, "float32"),
    ("lstm", 1, 16, 1, 1, "float64"),
    ("lru", 3, 17, 33, 5, "float64"),
    ("test-everything", 2, 23, 5, 3, "float32"),
]


@pytest.mark.long
@needs_plugin
@pytest.mark.parametrize(("name", "batch", "steps", "hidden", "chunks", "dtype"), LOWERED)
def test_what_is_launched_is_what_was_compiled(compiled, name, batch, steps, hidden, chunks, dtype):
    """Of each parameter: its place, its type and its value, by the names that Triton gives it."""
    cell = parnl.get_cell(name, 2, hidden)
    calls = calls_of(lowered(cell, (batch, steps), chunks, dtype))
    assert [c.name for c in calls] == ["solve", "gradients"]
    real, k = {"float32": "f32", "float64": "f64"}[dtype], len(cell.states)
    for call, (_, made) in zip(calls, compiled, strict=True):
        any_assembler_makes_the_same_of(call)
        assert (call.ptx, call.warps) == (made.asm["ptx"], made.metadata.num_warps)
        assert (call.shared, call.capability) == (made.metadata.shared, 80)
        # the types, by the PTX; two addresses that jaxlib adds come last
        declared = re.search(r"\.entry \w+\((.*?)\)", call.ptx, re.DOTALL)[1]
        types = re.findall(r"\.param (\.\w+(?: \.ptr)?)", declared)
        assert types == [t for t, _ in call.parameters] + [".u64 .ptr"] * 2
        # the names, by the text that PTX is made from
        head = re.search(r"tt\.func public @\w+\((.*?)\) attributes", made.asm["ttir"], re.DOTALL)
        named = re.findall(r"%([\w.]+): (!tt\.ptr<\w+>|\w+)", head[1])
        assert len(named) == len(call.parameters)
        values = dict(zip((n for n, _ in named), (v for _, v in call.parameters), strict=True))
        pointers = [n for n, t in named if t.startswith("!")]
        # buffers: as many, in this order, and each of the type that the kernel has it
        groups = "moving fixed starts states" + (
            " stats shared" if call.name == "solve" else " grads of_starts of_moving of_fixed"
        )
        order = [n.partition(".")[0] for n in pointers]
        assert list(dict.fromkeys(order)) == [g for g in groups.split() if g in order]
        inside = dict.fromkeys(pointers, real) | {
            "stats.0": "i32", "stats.3": "i1", "stats.4": "i32", "shared": "i64"
        }  # fmt: skip
        assert [t for _, t in named if t.startswith("!")] == [
            f"!tt.ptr<{inside[n]}>" for n in pointers
        ]
        buffers = {n: re.match(r"tensor<(?:(.*)x)?(\w+)>", b).groups()
                   for n, b in zip(pointers, call.buffers, strict=True)}  # fmt: skip
        shapes = {n: tuple(map(int, s.split("x"))) if s else () for n, (s, _) in buffers.items()}
        whole, rows = (batch, steps, hidden), (batch, hidden)
        for n in pointers:
            zeroed, alignment = values.pop(n)
            assert alignment == 16
            assert zeroed == (40 if n == "shared" else 0)
            if n == "shared":
                assert buffers[n] == ("10", "i32")
                continue
            assert buffers[n][1] == inside[n]
            match n.partition(".")[0]:
                case "moving":
                    assert shapes[n][1] == steps
                case "fixed":
                    assert shapes[n][1] == 1
                case "stats":
                    assert shapes[n] == ()
                case "starts" | "of_starts":
                    assert shapes[n] == rows
                case "of_fixed":
                    assert shapes[n] == (batch, chunks, hidden)
                case _:
                    assert shapes[n] == whole
        assert sum(n.startswith(("starts.", "states.")) for n in pointers) == 2 * k
        assert ("shared" in pointers) == (call.name == "solve" and chunks > 1)
        # and the numbers
        backward = call.name == "gradients"
        sizes = {"T": steps, "L": -(-steps // chunks), "C": chunks, "D": hidden,
                 "reverse": int(backward), "gives_up": 1}  # fmt: skip
        eps = float(np.finfo(dtype).eps)
        for n, value in values.items():
            group, *path = n.split(".")
            if group == "moving_strides":
                assert value == expected_strides(shapes[f"moving.{path[0]}"])[int(path[1])]
            elif group == "fixed_strides":
                assert value == expected_strides(shapes[f"fixed.{path[0]}"])[::2][int(path[1])]
            elif group == "grads_strides":
                assert value == expected_strides(whole)[int(path[1])]
            elif group == "tolerance":
                assert value == np.float32(8.0 * eps * np.sqrt(sizes["L"]))
            elif group == "max_iterations":
                assert 1 <= value <= chunks
            else:
                assert value == sizes[n], n
        for n in {*sizes, "tolerance", "max_iterations"} - {*values}:
            assert (n, hidden) == ("D", 1)  # part of the code
        block = made.metadata.num_warps * 32
        assert call.grid[1:] == [1, 1]
        assert call.grid[0] == batch * -(-hidden // min(32, 1 << (hidden - 1).bit_length()))
        assert block <= 512


@pytest.mark.parametrize(("hidden", "steps"), [(64, 32), (1, 7), (5, 48)])
@pytest.mark.parametrize("kind", ["solve", "gradients"])
def test_code_is_that_of_tensors(fresh, kind, hidden, steps):
    """Types, constants and what is known of numbers, as Triton's own launcher finds them."""
    torch = pytest.importorskip("torch")
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.nvidia.compiler import CUDABackend

    asked, given, arguments = [], [], launch.arguments

    def spied(*args):
        given.append(arguments(*args))
        return given[-1]

    def compiled(source, **how):
        asked.append(source)
        raise InterruptedError

    fresh.setattr(launch, "arguments", spied)
    fresh.setattr(triton, "compile", compiled)
    program = parnl.get_cell("lstm", 2, hidden).program
    shapes = {"parameter": (1, 1, hidden), "feature": (2, steps, hidden), "dt": (1, 1, 1)}
    operands = [jax.ShapeDtypeStruct(shapes[o.kind], "f4") for o in program.operands]
    plan, like = Plan.make(steps, 3, 1e-7), jax.ShapeDtypeStruct((2, hidden), "f4")
    wanted = tuple(range(len(operands))) if kind == "gradients" else ()
    task = jax_triton._launch(kind, program, plan, operands, like, wanted)
    read = [operands[i].shape for i in task.order] + [(2, hidden)] * 2
    with pytest.raises(InterruptedError):
        task.compiled(read + [(2, steps, hidden)] * (4 if wanted else 0), 90)

    def tensors(argument):
        if isinstance(argument, Pointer):
            return torch.empty(64, dtype=getattr(torch, argument.dtype))
        return tuple(map(tensors, argument)) if isinstance(argument, tuple) else argument

    def flat(path, types, keys):
        if isinstance(types, tuple):
            for i, (t, key) in enumerate(zip(types, keys, strict=True)):
                yield from flat((*path, i), t, key)
        else:
            yield path, keys

    (source,), (found,) = asked, given
    for i, argument in enumerate(map(tensors, found)):
        parameter = source.fn.params[i]
        specialised = not parameter.do_not_specialize
        types, keys = native_specialize_impl(CUDABackend, argument, False, specialised, True)
        assert source.signature[parameter.name] == types, parameter.name
        for path, key in flat((i,), types, keys):
            known = source.attrs.get(path, [])
            assert known == ([["tt.divisibility", 16]] if key == "D" else []), path


@needs_plugin
@pytest.mark.parametrize("name", BUILT_IN if EVERY else ["lrc", "rglru"])
def test_a_cell_is_lowered(fresh, name):
    (call,) = calls_of(lowered(parnl.get_cell(name, 2, 8), (1, 32), 2, gradient=False))
    assert call.name == "solve"


@needs_plugin
def test_the_arch_may_be_named(fresh):
    fresh.setenv("TRITON_OVERRIDE_ARCH", "sm90")
    (call,) = calls_of(lowered(parnl.get_cell("gru", 2, 4), (1, 32), 2, gradient=False))
    assert call.capability == 90
    assert ".target sm_90a" in call.ptx


@needs_plugin
def test_the_device_that_is_there_is_compiled_for(fresh):
    class Gpu:
        compute_capability = "9.0"

    fresh.setattr(jax, "local_devices", lambda backend: [Gpu()])
    (call,) = calls_of(lowered(parnl.get_cell("gru", 2, 4), (1, 32), 2, gradient=False))
    assert call.capability == 90


def test_places_beyond_32_bits():
    """A stride of 2^31 is a 64-bit argument, and its kernel counts in 64 bits."""
    assert dense_strides((3, 1 << 20, 1 << 12)) == (1 << 32, 1 << 12, 1)
    assert build._type(1 << 32, True) == ("i64", True)
    assert build._type((1 << 31) - 1, True) == ("i32", False)
    assert build._type(1, False) == ("i32", False)
    program, like = parnl.get_cell("gru", 2, 3).program, jax.ShapeDtypeStruct((1, 1 << 12), "f4")
    plan = Plan.make(1 << 20, 2, 1e-7)
    operands = [jax.ShapeDtypeStruct((1, 1, 1), "f4")] * len(program.operands)
    assert jax_triton._launch("solve", program, plan, operands, like).kernel.wide

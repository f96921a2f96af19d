"""Launches of Triton kernels by XLA, decoded from functions that JAX has lowered."""

import os
import zlib

import numpy as np
import oracles
import oracles_cells
import pytest
from optional import jax, jnp

import parnl
from parnl.backends.jax.private import TRITON_ABSENT

BUILT_IN = [*oracles.CELLS, *oracles_cells.ORACLES]
EVERY = "PARNL_EVERY_CUBIN" in os.environ
needs_plugin = pytest.mark.skipif(
    bool(TRITON_ABSENT),
    reason="JAX's CUDA plugin is not installed: pip install --no-deps jax-cuda13-plugin==RELEASE",
)


def fields(data):
    """Return (number, value) of each field of a protobuf: an integer, or bytes."""
    at, found = 0, []

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            value = varint()
        else:
            size = {1: 8, 5: 4}.get(kind) or varint()
            value, at = data[at : at + size], at + size
        found.append((number, value))
    return found


def signed(value, bits):
    return value - (1 << 64) if value >= 1 << 63 else value if value < 1 << (bits - 1) else None


class Call:
    """A custom call: what jaxlib's `triton.proto` says of the launch, and what XLA hands over."""

    def __init__(self, operation):
        config = operation.attributes["backend_config"].value_bytes
        ((number, call),) = [f for f in fields(zlib.decompress(config)) if f[0] in (1, 2)]
        assert number == 1
        call = fields(call)
        kernel = dict(fields(dict(call)[1]))
        self.name, self.ptx = kernel[1].decode(), kernel[4].decode()
        self.warps, self.shared, self.capability = kernel[2], kernel.get(3, 0), kernel[6]
        self.grid = [dict(call)[i] for i in (2, 3, 4)]
        self.parameters = [self.parameter(*fields(p)[0]) for n, p in call if n == 5]
        self.buffers = [str(v.type) for v in (*operation.operands, *operation.results)]

    def parameter(self, number, value):
        """Return (type in PTX, value): of an array, bytes to zero and alignment."""
        match number:
            case 1:
                about = dict(fields(value))
                return ".u64 .ptr", (about.get(1, 0), about[2])
            case 3:
                return ".u32", signed(value, 32)
            case 5:
                return ".u64", signed(value, 64)
            case 7:
                return ".f32", float(np.frombuffer(value, np.float32)[0])
        raise AssertionError(number)


def custom_calls(operation):
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                if inner.operation.name == "stablehlo.custom_call":
                    name = inner.operation.attributes["call_target_name"].value
                    if name == "triton_kernel_call":
                        yield Call(inner.operation)
                yield from custom_calls(inner.operation)


def lowered(cell, shape, chunks=3, dtype="float32", gradient=True, **how):
    params = cell.init(0, "jax", dtype)
    u = jnp.ones((*shape, cell.input_size), dtype)

    def loss(params, u):
        return parnl.solve(cell, params, u, chunks=chunks, **how).outputs.sum()

    function = jax.jit(jax.value_and_grad(loss, (0, 1)) if gradient else loss)
    return function.trace(params, u).lower(lowering_platforms=("cuda",))


def calls_of(lowered):
    return list(custom_calls(lowered.compiler_ir("stablehlo").operation))

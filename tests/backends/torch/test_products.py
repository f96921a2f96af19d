"""Products of features: into memory of their own, and summed in parts."""

import mmap
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torch_tasks import DOUBLE

from parnl import ops
from parnl.backends.torch import memory


@pytest.fixture
def huge(monkeypatch):
    """Products written into memory of their own, which holds NaN before; says how many were."""
    found, empty = [], memory.empty

    def noted(shape, like):
        found.append(shape)
        return empty(shape, like).fill_(float("nan"))

    monkeypatch.setattr(memory, "_LARGE", 0)
    monkeypatch.setattr(memory, "empty", noted)
    return found


def test_large_products_and_their_derivatives(huge):
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 3, dtype=DOUBLE, generator=draw, requires_grad=True)
    matrix = torch.randn(3, 2, dtype=DOUBLE, generator=draw, requires_grad=True)
    found = ops.matmul(rows.reshape(1, 5, 3), torch.nn.Parameter(matrix.detach()))
    torch.testing.assert_close(found, (rows @ matrix)[None], rtol=1e-14, atol=1e-14)
    assert huge == [(5, 2)]
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda u, w: ops.matmul(u, w).tanh(), (rows, matrix))


def test_large_products_under_what_changes_them(huge):
    rows, matrix = torch.randn(4, 5, 3), torch.randn(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.matmul(rows[0], matrix).dtype == torch.bfloat16
    mapped = torch.func.vmap(lambda u: ops.matmul(u, matrix))(rows)
    moved = torch.func.jvp(lambda w: ops.matmul(rows, w), (matrix,), (torch.ones(3, 2),))[1]
    compiled = torch.compile(ops.matmul, fullgraph=True, backend="eager")(rows, matrix)
    with FlopCounterMode(display=False) as counter:
        ops.matmul(rows, matrix)
    assert counter.get_total_flops() == 2 * 20 * 3 * 2
    assert not huge
    torch.testing.assert_close(mapped, rows @ matrix)
    torch.testing.assert_close(compiled, rows @ matrix)
    torch.testing.assert_close(moved, rows.sum(-1, keepdim=True).expand(4, 5, 2))


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux's huge pages")
def test_large_products_are_in_huge_pages():
    rows, matrix = torch.randn(40_000, 3), torch.randn(3, 64)  # 10 MB
    found = ops.matmul(rows, matrix)
    torch.testing.assert_close(found, rows @ matrix, rtol=0, atol=1e-5)
    middle, here = found.data_ptr() + found.numel() * 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(bounds[1], 16) <= middle < int(bounds[2], 16)
        elif here and line.startswith("VmFlags:"):
            assert "hg" in line.split()
            return
    raise AssertionError("no such memory")


@pytest.mark.parametrize("steps", [3, 700, 2000])
def test_input_sum_by_any_number_of_terms_at_once(steps):
    """All seven, five and two, one by one: against the sum over one large array."""

    def term(u, m, n):
        return torch.tanh(m * u), (n - u) ** 2

    def direct(u, m, n):
        return [x.sum(-2) for x in term(u[..., None], m, n)]

    generator = torch.Generator().manual_seed(0)
    shapes = ((2, steps, 7), (7, 9), (7, 9))
    given = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    given = [x.requires_grad_() for x in given]
    results = {}
    for name in ("direct", "ours"):
        u, *rows = given
        found = direct(u, *rows) if name == "direct" else ops.input_sum(term, u, rows)
        results[name] = [*found, *torch.autograd.grad((found[0] * found[1]).sum(), given)]
    for found, expected in zip(results["ours"], results["direct"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16])
def test_large_memory_is_a_tensor_as_any_other(dtype):
    found = memory.empty((3, 1 << 20, 2), torch.empty(0, dtype=dtype))
    assert (found.shape, found.dtype, found.is_contiguous()) == ((3, 1 << 20, 2), dtype, True)
    assert not found._is_view()  # which autograd would not let a user write to
    assert found.fill_(2.0).sum(dtype=DOUBLE) == 12 << 20

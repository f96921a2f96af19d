"""The cells against other libraries, how they start, and how far they can be driven."""

from typing import Any

import diagonal
import numpy as np
import oracles
import pytest
import torch
from diagonal import assert_same_map, leaf
from oracles import assert_close
from oracles_cells import ORACLES

import parnl


def test_s6_equals_mambapy():
    """The projections into and out of the layer are not part of its function."""
    mamba = pytest.importorskip("mambapy.mamba")
    torch.manual_seed(0)
    e, n, rank = 6, 4, 2
    config = mamba.MambaConfig(d_model=3, n_layers=1, d_state=n, dt_rank=rank)
    module = mamba.MambaBlock(config)
    module.A_log.data += 0.1  # no zeros
    v = leaf(2, 17, e, dtype=torch.float32)
    expected = module.ssm(v, None)
    w_r, w_b, w_c = module.x_proj.weight.split([rank, n, n])
    wide = torch.zeros(e, e * n)
    wide[:, :e] = torch.eye(e)
    params: dict[str, Any] = {
        "W_v": torch.eye(e), "W_out": wide, "W_B": w_b.T, "W_C": w_c.T, "W_r": w_r.T,
        "W_d": module.dt_proj.weight.T, "b_d": module.dt_proj.bias,
        "A_log": module.A_log.reshape(-1), "D": module.D,
    }  # fmt: skip
    cell = parnl.get_cell("s6", e, e * n, state_size=n, rank=rank)
    found = parnl.solve(cell, params, v, chunks=4).outputs[..., :e]
    assert_same_map(module, v, expected, found)


def test_slstm_equals_xlstm():
    xlstm = pytest.importorskip("xlstm.blocks.slstm.src.vanilla.slstm")
    task = oracles.problem("slstm", start=False, batch=(2,), steps=17)
    p = {k: torch.from_numpy(v) for k, v in task.params.items()}
    u = torch.from_numpy(task.inputs)
    w, a, b = (torch.cat([p[f"{k}_{g}"] for g in "ifzo"], -1) for k in "Wab")
    state, rows = torch.zeros(4, 2, 4, dtype=torch.float64), []
    for t in range(17):
        recurrent = a * state[0].repeat(1, 4)
        state, _ = xlstm.slstm_forward_pointwise(u[:, t] @ w, recurrent, b, state, {})
        rows.append(state[0])
    found = parnl.solve(task.cell, p, u, chunks=4).outputs
    assert_close(found, torch.stack(rows, 1), 1e-13)


def test_sweeps_of_the_diagonal_cell_solve_a_dense_one():
    """nn.LSTM as it is: the other channels' states of the sweep before are further inputs."""
    torch.manual_seed(0)
    module = torch.nn.LSTM(3, 8, batch_first=True, dtype=torch.float64).requires_grad_(False)
    u = torch.randn(2, 40, 3, dtype=torch.float64)
    expected, _ = module(u)
    params = diagonal.from_torch("lstm", dict(module.named_parameters()))
    for gate, dense in zip("ifgo", module.weight_hh_l0.chunk(4), strict=True):
        others = dense - torch.diag(dense.diagonal())
        params[f"W_{gate}"] = torch.cat([params[f"W_{gate}"], others.T])
    cell = parnl.get_cell("lstm", 3 + 8, 8)
    h = torch.zeros(2, 40, 8, dtype=torch.float64)
    for sweep in range(1, 20):
        before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], dim=1)
        h = parnl.solve(cell, params, torch.cat([u, before], dim=-1), chunks=5).outputs
        assert_close(h[:, :sweep], expected[:, :sweep], 1e-12)
    assert_close(h, expected, 1e-9)


# -- what the README says of their stability ------------------------------------------------------

# Cells whose two trajectories approach each other at every step, with any parameters but these.
CONTRACTING: dict[str, dict[str, float]] = {
    "mingru": {}, "minlstm": {}, "lru": {}, "s6": {}, "rglru": {}, "s5": {},
    "lrc": {"e_w": 0.0, "w_f": 0.0, "w_g": 0.0}, "stc": {"w_f": 0.0, "w_g": 0.0},
}  # fmt: skip
BOUNDED = ("lrc", "stc", "ltc", "cfc", "gru", "mgu", "slstm", "lem", "cornn")


@pytest.mark.parametrize("name", CONTRACTING)
def test_trajectories_approach_each_other(name):
    task = oracles.problem(name, steps=30)
    p = {k: np.full_like(v, CONTRACTING[name].get(k, v)) for k, v in task.params.items()}
    assert task.initial_state is not None
    one, two = task.initial_state, tuple(-2.0 * s for s in task.initial_state)
    before = np.inf
    for t in range(30):
        one, two = (parnl.step(task.cell, p, task.inputs[:, t], s)[1] for s in (one, two))
        now = np.sum([(a - b) ** 2 for a, b in zip(one, two, strict=True)], axis=0)
        assert ((now < before) | (now < 1e-20)).all()
        before = now


@pytest.mark.parametrize("name", BOUNDED)
def test_states_stay_in_a_range(name):
    """Whatever the inputs: here thousands of steps of large ones."""
    task = oracles.problem(name, steps=3000, batch=(4,), start=False)
    scale = np.array([0.0, 1.0, 10.0, 1000.0])[:, None, None]
    outputs = parnl.solve(task.cell, task.params, scale * task.inputs).outputs
    p = task.params
    bound: Any = 1.0
    if name in ("lrc", "stc"):  # |v_leak| / F, F at its smallest
        low = p["g_leak"] + np.minimum(p["W_f"], 0).sum(0) + np.minimum(p["w_f"], 0)
        bound = np.abs(p["v_leak"]) * (1 + np.exp(-low))
    elif name == "ltc":
        bound = np.maximum(np.abs(p["e_in"]).max(0), np.maximum(abs(p["e"]), abs(p["v_leak"])))
    elif name == "cornn":
        bound = 1 / 2.7 + 1e-9  # overdamped: no larger than the fixed point of a force of 1
    assert (np.abs(outputs) <= bound).all()
    assert np.abs(outputs).max() > 0.01


def test_unicornn_preserves_volume():
    task = oracles.problem("unicornn", steps=60, batch=(), start=True)
    p = {k: torch.from_numpy(v) for k, v in task.params.items()}
    u = torch.from_numpy(task.inputs)

    def flow(state):
        return torch.stack(parnl.solve(task.cell, p, u, (state[0], state[1])).final_state)

    start = torch.from_numpy(np.stack(task.initial_state))
    jacobian = torch.autograd.functional.jacobian(flow, start)
    for i in range(4):
        assert abs(torch.linalg.det(jacobian[:, i, :, i]) - 1) < 1e-12


@pytest.mark.parametrize(("scheme", "kept"), [("im", False), ("imex", True)])
def test_linoss_keeps_energy_or_loses_it(scheme, kept):
    """The eigenvalues of a step without inputs have the size that the docstring says."""
    cell = parnl.get_cell("linoss", 1, 50, scheme=scheme)
    p = cell.init(seed=0, dtype="float64")
    unit = [np.eye(2)[i][:, None] * np.ones(50) for i in range(2)]
    z, y = parnl.step(cell, p, np.zeros((2, 1)), tuple(unit))[1]
    matrices = np.stack([z, y]).transpose(2, 0, 1)  # (50, 2, 2): what becomes of each unit state
    size = np.abs(np.linalg.eigvals(matrices)).max(-1)
    t = 1 / (1 + np.exp(-p["dt_raw"]))
    expected = np.ones(50) if kept else (1 + t**2 * p["A"]) ** -0.5
    assert_close(size, expected, 1e-7)  # a double eigenvalue's root of rounding


def test_linoss_has_two_schemes():
    with pytest.raises(ValueError, match="scheme: expected one of im, imex, got 'euler'"):
        parnl.get_cell("linoss", 1, 1, scheme="euler")


@pytest.mark.parametrize("chunks", [16, 64])
@pytest.mark.parametrize("scheme", ["im", "imex"])
def test_oscillators_are_solved_by_one_scan(scheme, chunks):
    """Whose blocks are far from normal in the units that position and speed come in."""
    cell = parnl.get_cell("linoss", 4, 32, scheme=scheme)
    p = cell.init(seed=0, dtype="float64") | {"A": np.geomspace(1e-2, 1.0, 32)}
    u = np.random.default_rng(0).normal(size=(2, 2048, 4))
    out = parnl.solve(cell, p, u, method="newton", chunks=chunks)
    assert (out.info.iterations, out.info.sequential) == (1, 0)
    assert_close(out.outputs, parnl.solve(cell, p, u, method="sequential").outputs, 1e-10)


# -- how they start ------------------------------------------------------------------------------


def drawn(name: str, n_in: int = 3, hidden: int = 400, **options: Any) -> dict[str, np.ndarray]:
    return parnl.get_cell(name, n_in, hidden, **options).init(seed=1, dtype="float64")


def assert_fills(values: np.ndarray, low: float, high: float) -> None:
    """A uniform sample has this range and this mean."""
    width = high - low
    assert low <= values.min() < low + 0.05 * width
    assert high - 0.05 * width < values.max() <= high
    assert abs(values.mean() - (low + high) / 2) < 5 * width / np.sqrt(12 * values.size)


def test_indrnn_starts_with_positive_recurrent_weights():
    assert_fills(drawn("indrnn")["a"], 0, 1)


def test_cfc_starts_xavier_uniform():
    p, bound = drawn("cfc"), np.sqrt(6 / 803)
    for net in "ghfl":
        assert_fills(p[f"W_{net}"], -bound, bound)
        assert_fills(p[f"a_{net}"], -bound, bound)
        assert_fills(p[f"b_{net}"], -1 / np.sqrt(403), 1 / np.sqrt(403))


def test_cornn_and_unicornn_start_as_published():
    for values in drawn("cornn").values():
        assert_fills(values, -1 / np.sqrt(803), 1 / np.sqrt(803))
    p = drawn("unicornn")
    assert_fills(p["a"], 0, 1)
    assert_fills(p["c"], -0.1, 0.1)
    weight = torch.nn.init.kaiming_uniform_(torch.empty(4000, 3), a=8)
    assert_fills(p["W"], -weight.abs().max().item(), weight.abs().max().item())


def test_linoss_starts_as_published():
    p = drawn("linoss")
    assert_fills(p["A"], 0, 1)
    assert_fills(p["dt_raw"], 0, 1)
    assert_fills(p["B"], -(3**-0.5), 3**-0.5)
    assert_fills(p["C"], -1 / 20, 1 / 20)


def test_slstm_starts_with_forget_biases_from_5_to_minus_7():
    p = drawn("slstm")
    assert (p["b_f"][0], p["b_f"][-1]) == (5, -7)
    assert (np.diff(p["b_f"]) < 0).all()
    assert not any(p[f"a_{g}"].any() for g in "ifzo")
    assert abs(p["W_i"].std() - np.sqrt(2 / 15)) < 0.05


@pytest.mark.parametrize(("r_min", "r_max"), [(0.0, 1.0), (0.9, 0.999)])
def test_lru_starts_uniform_in_a_ring(r_min, r_max):
    p = drawn("lru", r_min=r_min, r_max=r_max, max_phase=2.0)
    value = np.exp(-np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"]))
    assert_fills(np.abs(value) ** 2, r_min**2, r_max**2)  # uniform in area
    assert_fills(np.angle(value), 0, 2)
    assert_close(np.exp(p["gamma_log"]), np.sqrt(1 - np.abs(value) ** 2), 1e-12)
    assert abs(np.mean(p["B_re"] ** 2 + p["B_im"] ** 2) - 1 / 3) < 0.05
    assert abs(400 * np.mean(p["C_re"] ** 2) - 1) < 0.05


def test_lru_states_are_as_large_as_what_drives_them():
    """What gamma is for: white noise times B gives states of the variance of that product."""
    cell = parnl.get_cell("lru", 8, 64, r_min=0.5, r_max=0.9)
    p = cell.init(seed=0, dtype="float64")
    u = np.random.default_rng(0).normal(size=(200, 100, 8))
    re, im = parnl.solve(cell, p, u).final_state
    driven = np.mean((u @ p["B_re"]) ** 2 + (u @ p["B_im"]) ** 2)
    assert abs(np.mean(re**2 + im**2) / driven - 1) < 0.05


@pytest.mark.parametrize("hidden", [1, 2, 8, 33])
def test_s5_starts_at_the_eigenvalues_of_hippo(hidden):
    """HiPPO-LegS plus its low-rank term, element by element as Gu et al. define it."""
    n = 2 * hidden
    hippo = np.zeros((n, n))
    for i in range(n):
        for k in range(n):
            hippo[i, k] = -np.sqrt((2 * i + 1) * (2 * k + 1)) if i > k else -(i + 1.0) * (i == k)
    normal = hippo + np.outer(np.sqrt(np.arange(n) + 0.5), np.sqrt(np.arange(n) + 0.5))
    eigenvalues = np.linalg.eigvals(normal)
    p = drawn("s5", 3, hidden)
    found = np.sort(p["Lambda_im"])
    assert_close(found, np.sort(eigenvalues.imag)[hidden:], 1e-9)
    assert_close(p["Lambda_re"], np.sort(eigenvalues.real)[hidden:], 1e-9)
    if hidden == 1:
        assert_close(found, np.array([np.sqrt(3) / 2]), 1e-12)  # by hand


def test_s5_starts_in_the_eigenbasis_of_a_real_system():
    from parnl.cells.s5 import hippo_n

    values, vectors = hippo_n(10)
    root = np.sqrt(np.arange(10) + 0.5)
    normal = np.triu(np.outer(root, root), 1) - np.tril(np.outer(root, root), -1) - 0.5 * np.eye(10)
    both = np.concatenate([vectors, vectors.conj()], axis=1)
    np.testing.assert_allclose(normal @ vectors, vectors * values, atol=1e-12)
    np.testing.assert_allclose(both.conj().T @ both, np.eye(10), atol=1e-12)
    p = drawn("s5", 3, 60)
    assert_fills(p["log_step"], np.log(0.001), np.log(0.1))
    # each real number of B and C has variance 1 / fan-in, half of a rotated one is imaginary
    for part in ("re", "im"):
        assert abs(2 * 3 * np.mean(p[f"B_{part}"] ** 2) - 1) < 0.3
        assert abs(2 * 120 * np.mean(p[f"C_{part}"] ** 2) - 1) < 0.1


def test_s6_starts_as_published():
    p = drawn("s6", 3, 4000, state_size=16)
    assert_close(np.exp(p["A_log"]).reshape(250, 16), np.tile(np.arange(1.0, 17), (250, 1)), 1e-12)
    assert_fills(np.log(np.log1p(np.exp(p["b_d"]))), np.log(0.001), np.log(0.1))
    assert (p["D"] == 1).all()


def test_rglru_starts_with_decays_near_one():
    p = drawn("rglru")
    assert_fills((1 / (1 + np.exp(-p["Lambda"]))) ** 8, 0.9, 0.999)
    assert abs(400 * np.mean(p["W_r"] ** 2) - 1) < 0.05


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("indrnn", {"activation": "gelu"}, "activation: expected relu or tanh, got 'gelu'"),
        ("lru", {"r_min": 0.9, "r_max": 0.5}, "r_min, r_max: expected 0 <= r_min < r_max <= 1"),
        ("s6", {"state_size": 5}, "state_size: expected a divisor of hidden_size = 8, got 5"),
        ("s6", {"state_size": 0}, "state_size: expected a positive integer, got 0"),
        ("s6", {"rank": 1.5}, "rank: expected a positive integer, got 1.5"),
    ],
)
def test_wrong_options_are_named(name, options, expected):
    with pytest.raises(ValueError, match=expected.replace("<", "[<]")):
        parnl.get_cell(name, 3, 8, **options)


# -- how far they can be driven ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [n for n in ORACLES if n != "indrnn"])
def test_large_inputs_give_finite_results_and_gradients(monkeypatch, name, dtype):
    """Gates saturate, exponentials of the inputs would overflow."""
    monkeypatch.setenv("PARNL_KERNELS", "off")  # compile time; the arithmetic is the same
    cell = parnl.get_cell(name, 3, 8)
    params = {k: v.requires_grad_() for k, v in cell.init(0, "torch", dtype).items()}
    u = 300 * torch.randn(2, 40, 3, dtype=getattr(torch, dtype))
    u.requires_grad_()
    out = parnl.solve(cell, params, u, chunks=5)
    assert torch.isfinite(out.outputs).all()
    grads = torch.autograd.grad(
        out.outputs.sum(), [u, *params.values()], allow_unused=True, materialize_grads=True
    )
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["lrc_complex", "lru", "s5", "s6"])
def test_output_maps_take_half_precision(name, dtype):
    cell = parnl.get_cell(name, 3, 8)
    u, params = torch.randn(2, 20, 3), cell.init(0, "torch")
    half = {k: v.to(dtype) for k, v in params.items()}
    found = parnl.solve(cell, half, u.to(dtype)).outputs
    assert found.dtype == dtype
    assert_close(found.float(), parnl.solve(cell, params, u).outputs, 0.05)
    row, _ = parnl.step(cell, half, u[:, 0].to(dtype))
    assert_close(row.float(), found[:, 0].float(), 0.02)


@pytest.mark.parametrize("name", ["s5", "lru"])
@pytest.mark.parametrize("chunks", [7, 64, 1024])
def test_rotations_take_one_update(name, chunks):
    """Linear, and their states trade sizes without end: nothing is amplified by that."""
    cell = parnl.get_cell(name, 8, 16)
    u = np.random.default_rng(0).normal(size=(1, 1024, 8)).astype(np.float32)
    for seed in range(3):
        info = parnl.solve(cell, cell.init(seed), u, chunks=chunks, max_iterations=chunks).info
        assert (int(info.iterations), bool(info.converged)) == (1, True)

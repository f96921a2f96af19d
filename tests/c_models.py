"""Models that are exported, each with what it computes by other means."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import parnl
from parnl import ops
from parnl.learn.torch_model import Classifier
from parnl.params import matrix, vector

STEPS, INPUTS, HIDDEN = 300, 3, 8
RESET = 170  # in the middle


class Pendulum(parnl.Cell):
    """Two states, features that use views and functions, and an output of its own."""

    states = ("speed", "angle")
    parameters = dict(
        W=matrix("input", "hidden"), V=matrix(2, "hidden"), a=vector("hidden"), b=vector("hidden")
    )

    def features(self, p, u):
        pairs = u[..., 1:].reshape((*u.shape[:-1], 2))
        return dict(
            push=ops.tanh(u @ p.W) * 0.5 + ops.gelu(ops.matmul(pairs, p.V)), rest=u[..., :1]
        )

    def step(self, p, speed, angle, f, dt):
        speed = speed + dt * (f.push + f.rest - ops.sin(angle) - ops.softplus(p.a) * speed)
        return speed, angle + dt * speed

    def output(self, p, speed, angle, f):
        return ops.where(speed > 0.0, angle, abs(angle) + p.b) * ops.sigmoid(f.push)


class Layered(nn.Module):
    """Two recurrences with norms, products and activations around, and residuals."""

    input_size = INPUTS

    def __init__(self):
        super().__init__()
        self.cells = [parnl.get_cell(n, HIDDEN, HIDDEN) for n in ("lrc", "lstm")]
        self.params = nn.ModuleList(
            nn.ParameterDict({k: nn.Parameter(v) for k, v in c.init(i, "torch").items()})
            for i, c in enumerate(self.cells)
        )
        self.into, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in self.cells)
        self.mlp = nn.Sequential(nn.Linear(HIDDEN, 5), nn.GELU(), nn.Linear(5, HIDDEN), nn.ReLU())
        self.dropout = nn.Dropout(0.5)

    def step(self, input_t, state):
        state = [None, None] if state is None else state
        x, after = self.into(input_t), []
        for cell, params, norm, old in zip(self.cells, self.params, self.norms, state, strict=True):
            y, new = parnl.step(cell, dict(params), norm(x), old)
            x = x + self.dropout(self.mlp(y))
            after.append(new)
        return self.out(x), after


class Delays(nn.Module):
    """A dense recurrence that shifts its states along and starts from what it has learned."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(INPUTS, 4)
        self.start = nn.Parameter(torch.linspace(-1, 1, 4))
        self.norm = nn.BatchNorm1d(4)
        self.norm.running_mean += 0.1

    def initial_state(self):
        return {"now": self.start, "before": self.start * 0.5, "clock": torch.zeros(2, 2)}

    def step(self, input_t, state, dt=1.0):
        now = self.cell(input_t, state["now"])
        clock = torch.cat([state["clock"][1:], state["clock"][:1] + dt])
        seen = torch.stack([now, state["before"]]).softmax(-1)
        normed = self.norm(seen).sum(0) + nn.functional.silu(state["now"].view(2, 2).t().reshape(4))
        spread = torch.log_softmax(normed, -1).var(-1, keepdim=True) + clock.max()
        late = (state["before"] > 0.0) & ~(now > 0.2)
        output = torch.cat([normed * late, spread, nn.functional.elu(now[:2]).clamp(-0.1, 0.3)])
        return output, {"now": now, "before": state["now"], "clock": clock}


class Mixed(nn.Module):
    """Channels that read other channels of the state they are about to replace."""

    def __init__(self):
        super().__init__()
        self.turn = nn.Parameter(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))

    def initial_state(self):
        return self.turn.new_zeros(3), self.turn.new_tensor([1.0, -0.5, 0.25])

    def step(self, input_t, state):
        a, b = state
        below = torch.relu(a - a.max() + 0.5).sum()
        b = b @ self.turn
        return input_t * below + b, (0.5 * a + a[:1] * input_t * 0.1 + input_t, b)


class Table(nn.Module):
    """Every function of the table of operations, side by side."""

    def step(self, input_t, state):
        x, y = input_t, torch.zeros_like(input_t) if state is None else state
        size, f = x.abs() + 0.5, nn.functional
        found = [
            torch.exp2(x), torch.expm1(x), torch.log(size), torch.log2(size), torch.log10(size),
            torch.log1p(size), torch.sin(x), torch.cos(x), torch.tan(0.3 * x), torch.atan(x),
            torch.erf(x), f.softplus(x, beta=2.0), f.logsigmoid(x), f.relu(x), f.silu(x),
            f.gelu(x, approximate="tanh"), f.elu(x, alpha=0.7), f.selu(x), f.hardswish(x),
            f.leaky_relu(x, 0.2), f.hardtanh(x, -0.5, 0.7), f.relu6(3.0 * x), f.mish(x),
            torch.sign(x), torch.minimum(x, y), torch.maximum(x, y), x.clamp_min(0.1),
            x.clamp_max(0.2), torch.reciprocal(size), torch.rsqrt(size), 2.0**x, size**1.5, x**3,
            size ** torch.tensor(-2.0), 1.0 - x, torch.where(x.isnan() | x.isinf(), 1.0, x),
            (x == x) * 0.5, torch.logical_xor(x > 0.0, y > 0.0).to(x.dtype), (x != y) * x,
            torch.where((x <= 0.3) & (x >= -0.3), x, y), torch.addcmul(x, y, size, value=0.3),
            torch.sub(x, y, alpha=0.4), torch.lerp(x, y, 0.2), f.tanhshrink(x), torch.square(x),
            torch.bmm(x.view(1, 1, 3), torch.stack([x, y, size]).view(1, 3, 3)).view(3),
            x.amax(0, keepdim=True), x.amin(0, keepdim=True), x.max(0).values.view(1),
            x.var().view(1), x.std(unbiased=False).view(1), torch.logsumexp(x, 0).view(1),
            f.group_norm(torch.cat([x, y]).view(1, 6), 2).view(6), f.rms_norm(size, (3,)),
            f.normalize(size, dim=0), torch.outer(x, y).view(9), torch.dot(x, y).view(1),
        ]  # fmt: skip
        return torch.cat(found), 0.6 * y + x


class Model(NamedTuple):
    """arguments, keywords: of `to_c`; reference: (inputs, resets, dt) -> outputs, states."""

    arguments: tuple
    keywords: dict[str, Any]
    reference: Any


def _draw(cell, seed):
    """Draw parameters of which none is 0 throughout: the published starts would hide mistakes."""
    rng = np.random.default_rng(seed)
    return {
        n: (v + 0.1 * rng.normal(size=v.shape)).astype(np.float32)
        for n, v in cell.init(seed).items()
    }


def of_cell(cell, variable_dt):
    """Return a cell as a model, against `parnl.step` in NumPy and float64."""
    params = _draw(cell, 3)
    wide = {n: v.astype(np.float64) for n, v in params.items()}

    def reference(inputs, resets, dt):
        state, outputs, states = None, [], []
        for u, reset, h in zip(inputs, resets, dt, strict=True):
            state = None if reset else state
            y, state = parnl.step(cell, wide, u, state, dt=float(h) if variable_dt else None)
            outputs.append(y)
            states.append(np.concatenate(state))
        return np.array(outputs), np.array(states)

    return Model((cell, params), dict(variable_dt=variable_dt), reference)


def of_module(module, variable_dt=False):
    """Return a module as a model, against its own step in float64."""
    module.eval()

    def reference(inputs, resets, dt):
        state, outputs, states = None, [], []
        with torch.no_grad():
            for u, reset, h in zip(torch.tensor(inputs), resets, dt, strict=True):
                if reset or state is None:
                    state = module.initial_state() if hasattr(module, "initial_state") else None
                named = {"dt": torch.tensor(h)} if variable_dt else {}
                y, state = module.step(u, state, **named)
                outputs.append(y)
                leaves = torch.utils._pytree.tree_leaves(state)
                states.append(torch.cat([s.reshape(-1) for s in leaves]))
        return torch.stack(outputs).numpy(), torch.stack(states).numpy()

    def wide(*arguments):
        module.double()
        try:
            return reference(*arguments)
        finally:
            module.float()

    return Model((module,), dict(variable_dt=variable_dt, input_size=INPUTS), wide)


def models():
    """Return name -> model."""
    found = {}
    for name in CELLS:
        hidden = 32 if name == "s6" else HIDDEN
        cell = parnl.get_cell(name, INPUTS, hidden)
        found[name] = of_cell(cell, False)
        if cell.time_aware:
            found[f"{name}_dt"] = of_cell(cell, True)
    found["pendulum"] = of_cell(Pendulum(INPUTS, HIDDEN), True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found["layered"] = of_module(Layered())
        found["table"] = of_module(Table())
        found["mixed"] = of_module(Mixed())
        found["delays"] = of_module(Delays(), True)
        classifier = Classifier(INPUTS, 4, cell="lrc", width=6, state=HIDDEN, blocks=2, loops=2)
        found["classifier"] = of_module(classifier)
    return found


CELLS = tuple(n for n in parnl.list_cells() if not n.startswith("test-"))

"""Long short-term memory with diagonal recurrent weights."""

from __future__ import annotations

from parnl import ops
from parnl.cell import Cell
from parnl.params import Parameter, matrix, vector
from parnl.registry import register


@register("lstm")
class LSTM(Cell):
    """Diagonal long short-term memory (Hochreiter and Schmidhuber, 1997; Gers et al., 2000).

    In PyTorch's form: an `nn.LSTM` whose blocks of `weight_hh` are diagonal is the same map, with
    b = b_ih + b_hh for each gate. The state of a channel is the pair (c, h).

        i, f, o = s(u W + b + a h)      g = tanh(u W_g + b_g + a_g h)
        c' = f c + i g                  h' = o tanh(c')

    Options: peephole=True adds p_i c and p_f c inside i and f, and p_o c' inside o; coupled=True
    sets i = 1 - f. Both together are the ParaLSTM of arXiv 2510.21450.
    """

    states = ("c", "h")
    options = {"peephole": False, "coupled": False}

    @property
    def gates(self) -> str:
        return "fog" if self.coupled else "ifog"

    @property
    def parameters(self) -> dict[str, Parameter]:
        specs = {}
        for gate in self.gates:
            specs[f"W_{gate}"] = matrix("input", "hidden")
            specs[f"b_{gate}"] = vector("hidden")
            specs[f"a_{gate}"] = vector("hidden")
            if self.peephole and gate != "g":
                specs[f"p_{gate}"] = vector("hidden")
        return specs

    def features(self, p, u):
        return {g: ops.matmul(u, getattr(p, f"W_{g}")) for g in self.gates}

    def step(self, p, c, h, f):
        def drive(name):
            return getattr(f, name) + getattr(p, f"b_{name}") + getattr(p, f"a_{name}") * h

        def gate(name, cell):
            peep = getattr(p, f"p_{name}") * cell if self.peephole else 0.0
            return ops.sigmoid(drive(name) + peep)

        forget = gate("f", c)
        enter = 1.0 - forget if self.coupled else gate("i", c)
        new_c = forget * c + enter * ops.tanh(drive("g"))
        return new_c, gate("o", new_c) * ops.tanh(new_c)

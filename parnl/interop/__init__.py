"""Begin from the weights of another library: each function returns a cell and its parameters.

>>> import parnl, torch
>>> from parnl.interop import from_torch
>>> theirs = torch.nn.GRU(3, 1, batch_first=True)
>>> cell, params = from_torch(theirs)
>>> u = torch.randn(2, 50, 3)
>>> torch.allclose(parnl.solve(cell, params, u).outputs, theirs(u)[0], atol=1e-5)
True

`parnl.solve(cell, params, inputs).outputs` equals the original's output at every step, to rounding.
Each function refuses what a cell cannot express, and names it.

Arguments that they share, where they apply:

- take: a parnl cell is diagonal, so recurrent weights off the diagonal must be zero, to the last
  bit. Else ValueError says how far they are from that. `take="diagonal"` drops them. The result is
  another function: a start for training.
- skip_readout: a map of the states behind the recurrence (`proj_size` of a CfC, `output_w` of an
  LTC, `to_out` of a minGRU) is not part of a cell. True leaves it out; apply it to the outputs.
- copy: parameters are detached copies. With `copy=False` they stay parts of the module's own
  tensors, and gradients reach those: parnl then trains the module itself.

Modules are recognised by their class, so no library is imported here. A subclass with a `forward`
or `step` of its own is another function, and is refused. TypeError: the source is of another kind.
"""

from parnl.interop.linear import from_mingru, from_s5
from parnl.interop.lrcssm import from_lrcssm
from parnl.interop.ncps import from_ncps
from parnl.interop.pararnn import from_pararnn
from parnl.interop.torch_nn import from_torch, layers_of

__all__ = [
    "from_lrcssm",
    "from_mingru",
    "from_ncps",
    "from_pararnn",
    "from_s5",
    "from_torch",
    "layers_of",
]

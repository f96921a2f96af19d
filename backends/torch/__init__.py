"""The PyTorch backend, and `RNN`, an `nn.Module` with the conventions of `nn.GRU`."""

from parnl.backends.torch.adaptor import backend
from parnl.backends.torch.rnn import RNN

__all__ = ["RNN", "backend"]

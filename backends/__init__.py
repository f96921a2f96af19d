"""Backends: what runs a program on the arrays of one framework; `parnl.frameworks` finds them.

A framework's module or package here has a module level object `backend` with the interface of
`parnl.frameworks.Backend`.
"""

from parnl.frameworks import NAMES, Backend, backend_of, get_backend, name_of

__all__ = ["NAMES", "Backend", "backend_of", "get_backend", "name_of"]

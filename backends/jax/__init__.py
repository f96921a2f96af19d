"""The JAX backend: `parnl.solve` as a pure function under jit, vmap, grad and jvp."""

from parnl.backends.jax.adaptor import backend

__all__ = ["backend"]

"""Kernels in Triton, for NVIDIA GPUs: a whole solve, or backward run, in one launch.

kernels/: the kernels, the same for every program; text.py: the text of a program's own step and its
derivatives, with functions that Triton lacks from mathematics.py; build.py: puts the two together
and compiles them; launch.py: what a launch is given; calls.py: launches on tensors, as
`backends/jax/triton.py` does in JAX.
"""

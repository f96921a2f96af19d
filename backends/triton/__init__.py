"""Kernels in Triton, generated from a program's graph: their text and their calls."""

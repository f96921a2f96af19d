"""Kernels in C, generated from a program's graph: their text, their compilation, their calls."""

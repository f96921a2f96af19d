"""Simplified structured state-space layer, S5."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from parnl import ops
from parnl.cells.lru import ComplexDiagonal
from parnl.params import Parameter, uniform, vector
from parnl.registry import register


def hippo_n(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues (size // 2,) and eigenvectors (size, size // 2) of the HiPPO-N matrix.

    HiPPO-N is the normal part of HiPPO-LegS: -1/2 on the diagonal plus a skew-symmetric matrix. Its
    eigenvalues are conjugate pairs; one of each pair is returned.
    """
    root = np.sqrt(np.arange(size) + 0.5)
    skew = np.triu(np.outer(root, root), 1)
    skew = skew - skew.T
    # i times a skew-symmetric matrix is Hermitian: real eigenvalues, orthonormal eigenvectors
    frequencies, vectors = np.linalg.eigh(-1j * skew)
    half = size // 2
    frequencies, vectors = frequencies[-half:], vectors[:, -half:]
    vectors = vectors * (np.abs(vectors[0]) / vectors[0])  # a phase that no LAPACK decides
    return -0.5 + 1j * frequencies, vectors


# 1 / (n + 1)!, enough for float64 where |z| < 1/4
_SERIES = [1.0 / math.factorial(n + 1) for n in range(13)]


def _rise(re: Any, im: Any) -> tuple[Any, Any]:
    """Return (e^z - 1) / z for z = re + i im, with its limit 1 at z = 0.

    Its derivative is a difference of terms 1 / |z| times as large, so near 0 the series is summed.
    Either formula is given a harmless z where the other holds: no gradient of it can spoil the sum.
    """
    near = re * re + im * im < 0.0625
    x, y = ops.where(near, re, 0.0), ops.where(near, im, 0.0)
    sum_re, sum_im = _SERIES[-1], 0.0
    for c in reversed(_SERIES[:-1]):
        sum_re, sum_im = c + x * sum_re - y * sum_im, x * sum_im + y * sum_re
    x, y = ops.where(near, 1.0, re), ops.where(near, 0.0, im)
    # e^z - 1, without the cancellation that a small z would bring
    half = ops.sin(0.5 * y)
    rise_re = ops.expm1(x) * ops.cos(y) - 2.0 * half * half
    rise_im = ops.exp(x) * ops.sin(y)
    norm = x * x + y * y
    far_re, far_im = (rise_re * x + rise_im * y) / norm, (rise_im * x - rise_re * y) / norm
    return ops.where(near, sum_re, far_re), ops.where(near, sum_im, far_im)


@register("s5")
class S5(ComplexDiagonal):
    """S5, a diagonal state-space layer (Smith et al., 2023, arXiv 2208.04933): solved by one scan.

    dx/dt = Lambda x + u B, discretised by zero-order hold with a learned step for each state:

        d = exp(log_step)       Lambda = Lambda_re + i Lambda_im        a = exp(Lambda d)
        x' = a x + (a - 1) / Lambda (u (B_re + i B_im))         x complex: the states re, im
        y  = 2 Re(x (C_re + i C_im)) + u D

    hidden is the number of conjugate pairs of states, and of outputs. One state of each pair is
    kept, hence the 2. D is a matrix (the paper's is diagonal), so that the input may have another
    size. At Lambda = 0 the gain (a - 1) / Lambda is its limit d. Options, of the start only:
    step_min=0.001, step_max=0.1, between which d is log-uniform. Lambda starts as the eigenvalues
    of HiPPO-N of size 2 hidden, B and C as real normal matrices in its eigenbasis. Stable while
    Lambda_re < 0, which nothing enforces.
    """

    options = {"step_min": 0.001, "step_max": 0.1}
    scale = 2.0

    @property
    def parameters(self) -> dict[str, Parameter]:
        log_step = uniform(math.log(self.step_min), math.log(self.step_max))
        return {
            "Lambda_re": vector("hidden", -0.5),
            "Lambda_im": vector("hidden", "zeros"),  # set by draw(), as B and C
            "log_step": vector("hidden", log_step),
            **self.matrices,
        }

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw the parameters; Lambda, B and C are in the eigenbasis of HiPPO-N."""
        drawn = super().draw(rng)
        n_in, hidden = self.input_size, self.hidden_size
        values, vectors = hippo_n(2 * hidden)
        b = rng.normal(0.0, n_in**-0.5, (n_in, 2 * hidden)) @ vectors.conj()
        c = vectors.T @ rng.normal(0.0, (2 * hidden) ** -0.5, (2 * hidden, hidden))
        drawn |= {"Lambda_re": values.real, "Lambda_im": values.imag}
        return drawn | {"B_re": b.real, "B_im": b.imag, "C_re": c.real, "C_im": c.imag}

    def features(self, p, u):
        step = ops.exp(p.log_step)
        decay, angle = p.Lambda_re * step, p.Lambda_im * step
        size = ops.exp(decay)
        # (a - 1) / Lambda
        gain_re, gain_im = (step * part for part in _rise(decay, angle))
        return {
            "a_re": (size * ops.cos(angle))[None, :],
            "a_im": (size * ops.sin(angle))[None, :],
            "v_re": ops.matmul(u, p.B_re * gain_re - p.B_im * gain_im),
            "v_im": ops.matmul(u, p.B_re * gain_im + p.B_im * gain_re),
            "skip": ops.matmul(u, p.D),
        }

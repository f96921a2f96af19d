"""Simplified structured state-space layer, S5."""

from __future__ import annotations

import math

import numpy as np

from parnl import ops
from parnl.cells.lru import ComplexDiagonal
from parnl.params import Parameter, uniform, vector
from parnl.registry import register


def hippo_n(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues (size // 2,) and eigenvectors (size, size // 2) of the HiPPO-N matrix.

    HiPPO-N is the normal part of HiPPO-LegS: -1/2 on the diagonal plus a skew-symmetric matrix. Its
    eigenvalues are conjugate pairs, of which one each is returned.
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


@register("s5")
class S5(ComplexDiagonal):
    """S5, a diagonal state-space layer (Smith et al., 2023, arXiv 2208.04933): solved by one scan.

    dx/dt = Lambda x + u B, discretised by zero-order hold with a learned step for each state:

        d = exp(log_step)       Lambda = Lambda_re + i Lambda_im        a = exp(Lambda d)
        x' = a x + (a - 1) / Lambda (u (B_re + i B_im))         x complex: the states re, im
        y  = 2 Re(x (C_re + i C_im)) + u D

    hidden is the number of conjugate pairs of states, of which one each is kept, hence the 2, and
    that of outputs; D is a matrix (the paper's is diagonal), so that the input may have another
    size. Options, of the start only: step_min=0.001, step_max=0.1, between which d is log-uniform.
    Lambda starts as the eigenvalues of HiPPO-N of size 2 hidden, B and C as real normal matrices
    in its eigenbasis. Stable while Lambda_re < 0, which nothing enforces.
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
        # a - 1, without the cancellation that short steps would bring
        half = ops.sin(0.5 * angle)
        rise_re = ops.expm1(decay) * ops.cos(angle) - 2.0 * half * half
        rise_im = size * ops.sin(angle)
        # (a - 1) / Lambda
        norm = p.Lambda_re * p.Lambda_re + p.Lambda_im * p.Lambda_im
        gain_re = (rise_re * p.Lambda_re + rise_im * p.Lambda_im) / norm
        gain_im = (rise_im * p.Lambda_re - rise_re * p.Lambda_im) / norm
        return {
            "a_re": (size * ops.cos(angle))[None, :],
            "a_im": (size * ops.sin(angle))[None, :],
            "v_re": ops.matmul(u, p.B_re * gain_re - p.B_im * gain_im),
            "v_im": ops.matmul(u, p.B_re * gain_im + p.B_im * gain_re),
            "skip": ops.matmul(u, p.D),
        }

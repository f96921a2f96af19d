"""Cells that only tests need: one to three states, chaotic, expanding, piecewise, linear."""

import numpy as np
from oracles import (
    to,
)

import parnl
from parnl import ops
from parnl.params import matrix, vector

T = 23


@parnl.register("test-mgu")
class MinimalGatedUnit(parnl.Cell):
    """The example of the documentation: one gate, diagonal recurrence."""

    parameters = dict(
        W_f=matrix("input", "hidden"),
        a_f=vector("hidden"),
        b_f=vector("hidden", init="zeros"),
        W_n=matrix("input", "hidden"),
        a_n=vector("hidden"),
        b_n=vector("hidden", init="zeros"),
    )

    def features(self, p, u):
        return dict(f=u @ p.W_f + p.b_f, n=u @ p.W_n + p.b_n)

    def step(self, p, x, f):
        gate = ops.sigmoid(p.a_f * x + f.f)
        return x + gate * (ops.tanh(p.a_n * gate * x + f.n) - x)


@parnl.register("test-logistic")
class Logistic(parnl.Cell):
    """x' = 4 x (1 - x): chaotic, two nearby states part by a factor 2 a step."""

    parameters = dict(W=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return 4.0 * x * (1.0 - x)


@parnl.register("test-expanding")
class Expanding(parnl.Cell):
    """x' = 1.5 x + u."""

    parameters = dict(W=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return 1.5 * x + f.f


@parnl.register("test-expanding-nonlinear")
class ExpandingNonlinear(parnl.Cell):
    """x' = x + |x| / 2 + u: as `Expanding` above zero, but no longer linear."""

    parameters = dict(W=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return x + 0.5 * abs(x) + f.f


@parnl.register("test-gain")
class Gain(parnl.Cell):
    """x' = a x + b with both from the inputs."""

    parameters = dict(A=matrix("input", "hidden"), B=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(a=u @ p.A, b=u @ p.B)

    def step(self, p, x, f):
        return f.a * x + f.b


@parnl.register("test-gain-nonlinear")
class GainNonlinear(Gain):
    """The same map above zero."""

    def step(self, p, x, f):
        return f.a * ops.abs(x) + f.b


@parnl.register("test-lru")
class LinearRecurrentUnit(parnl.Cell):
    """A complex diagonal recurrence, as two real states: linear, 2 x 2 blocks."""

    parameters = dict(
        W_re=matrix("input", "hidden"),
        W_im=matrix("input", "hidden"),
        nu=vector("hidden"),
        theta=vector("hidden"),
    )
    states = ("im", "re")

    def features(self, p, u):
        return dict(re=u @ p.W_re, im=u @ p.W_im)

    def step(self, p, im, re, f):
        radius = ops.exp(-ops.exp(p.nu))
        lam_re, lam_im = radius * ops.cos(p.theta), radius * ops.sin(p.theta)
        return lam_re * im + lam_im * re + f.im, lam_re * re - lam_im * im + f.re


@parnl.register("test-selective")
class Selective(parnl.Cell):
    """A linear cell whose coefficient is made from the input, as in S6 or minGRU."""

    parameters = dict(W_z=matrix("input", "hidden"), W_n=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(z=ops.sigmoid(u @ p.W_z), n=u @ p.W_n)

    def step(self, p, x, f):
        return (1 - f.z) * x + f.z * f.n


@parnl.register("test-where")
class Piecewise(parnl.Cell):
    """A step with a condition."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return ops.where(x > 0.1, 0.5 * x + f.f, ops.tanh(f.f) - p.a * ops.sin(x))


@parnl.register("test-escaping")
class Escaping(parnl.Cell):
    """As `Piecewise`, but some sequences leave for minus infinity."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return ops.where(x > 0.1, 0.5 * x + f.f, ops.tanh(f.f) - p.a * x * x)


@parnl.register("test-pair")
class Pair(parnl.Cell):
    """Two states, each reading both."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"), b=vector("hidden"))
    states = ("v", "w")

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, v, w, f):
        fast = v + 0.3 * (2 * ops.tanh(v) - v - w + f.f)
        return fast, w + 0.1 * (p.a * v + 0.7 - p.b * w)


@parnl.register("test-trio")
class Trio(parnl.Cell):
    """Three states in a ring."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"), b=vector("hidden"))
    states = ("a", "b", "c")

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, a, b, c, f):
        new = ops.tanh(p.a * a + 0.6 * c + f.f)
        return new, 0.7 * b + ops.sin(new), ops.sigmoid(p.b * b) * c - 0.2 * a


@parnl.register("test-leaky")
class Leaky(parnl.Cell):
    """A time-aware cell with an option."""

    parameters = dict(W=matrix("input", "hidden"), tau=vector("hidden"))
    options = dict(dt=0.5, gain=1.0)

    def features(self, p, u):
        return dict(f=self.gain * (u @ p.W))

    def step(self, p, x, f, dt):
        return x + dt * (ops.tanh(f.f - x) - ops.softplus(p.tau) * x)


@parnl.register("test-accumulator")
class Accumulator(parnl.Cell):
    """x' = x + u: what is too small for half precision adds up in single."""

    parameters = dict(W=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return x + f.f


OWN = {
    "test-mgu": 1,
    "test-lru": 2,
    "test-selective": 1,
    "test-where": 1,
    "test-escaping": 1,
    "test-pair": 2,
    "test-trio": 3,
    "test-leaky": 1,
}

BOUNDED = [name for name in OWN if name != "test-escaping"]

LINEAR = ("test-lru", "test-selective", "test-accumulator")


def own(name, *, steps=T, batch=(3,), n_in=3, hidden=4, seed=0, backend="numpy"):
    """Draw (cell, params, inputs, initial state) for a cell of this file, in float64."""
    cell = parnl.get_cell(name, input_size=n_in, hidden_size=hidden)
    rng = np.random.default_rng(seed)
    params = {
        k: to(backend, rng.uniform(-1, 1, v.shape))
        for k, v in cell.init(seed=0, backend="numpy").items()
    }
    inputs = to(backend, rng.normal(size=(*batch, steps, n_in)))
    state = tuple(to(backend, rng.uniform(-1, 1, (*batch, hidden))) for _ in range(OWN[name]))
    return cell, params, inputs, state

"""An ensemble in Equinox: `eqx.filter_vmap` makes the members, trains them and asks them at once.

They learn a noisy sine from inputs on [-1, 1], each from another start and on other samples. Where
there were data they agree; further away they do not, which says how far to trust the mean.

    python examples/ensemble.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from parnl.equinox import RNN


class Member(eqx.Module):
    """Read a level shown for some steps, and return a number at the last step."""

    rnn: RNN
    head: eqx.nn.Linear

    def __init__(self, hidden, *, key):
        one, two = jax.random.split(key)
        self.rnn = RNN("gru", 1, hidden, num_layers=2, key=one)
        self.head = eqx.nn.Linear(hidden, 1, key=two)

    def __call__(self, levels, steps):
        """Return one number for each of the levels (B,)."""
        shown = jnp.broadcast_to(levels[None, :, None], (steps, len(levels), 1))
        y, _ = self.rnn(shown)
        return jax.vmap(self.head)(y[-1])[:, 0]


def main(members=8, samples=64, steps=8, hidden=16, updates=300, seed=0):
    """Train; return the loss of members, and how far they disagree near the data and away."""
    rng = np.random.default_rng(seed)
    levels = jnp.asarray(rng.uniform(-1, 1, (members, samples)), jnp.float32)
    noise = jnp.asarray(0.05 * rng.standard_normal((members, samples)), jnp.float32)
    targets = jnp.sin(3 * levels) + noise

    keys = jax.random.split(jax.random.key(seed), members)
    ensemble = eqx.filter_vmap(lambda key: Member(hidden, key=key))(keys)
    optimiser = optax.adam(1e-2)
    state = eqx.filter_vmap(lambda m: optimiser.init(eqx.filter(m, eqx.is_array)))(ensemble)

    @eqx.filter_jit
    @eqx.filter_vmap
    def update(member, state, levels, targets):
        def loss(member):
            return jnp.mean((member(levels, steps) - targets) ** 2)

        value, grads = eqx.filter_value_and_grad(loss)(member)
        changes, state = optimiser.update(grads, state)
        return eqx.apply_updates(member, changes), state, value

    for _ in range(updates):
        ensemble, state, losses = update(ensemble, state, levels, targets)

    ask = eqx.filter_jit(eqx.filter_vmap(lambda m, x: m(x, steps), in_axes=(eqx.if_array(0), None)))
    near, far = (
        float(jnp.mean(jnp.std(ask(ensemble, jnp.asarray(x, jnp.float32)), axis=0)))
        for x in (
            np.linspace(-1, 1, 21),
            np.concatenate([np.linspace(-4, -2, 11), np.linspace(2, 4, 11)]),
        )
    )
    print(f"losses {np.round(losses, 4)}")
    print(f"disagreement {near:.3f} where there were data, {far:.3f} away from them")
    return np.asarray(losses), near, far


if __name__ == "__main__":
    main()

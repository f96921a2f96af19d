"""Arrays divided over devices, JAX: under `jit`, where XLA divides them, against `shard_map`.

    python benchmarks/devices.py [--devices 8] [--cell gru]

Prints for both kinds of mesh, for sequences and for channels divided, forward and with gradient:
the median time under `jit` over that of the same in a `shard_map`, and what the program sends.
Virtual devices share the processor: their times are compared, and mean nothing by themselves.
"""

import argparse
import os
import re
from collections import Counter

from measure import timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--cell", default="gru")
    parser.add_argument("--steps", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=15)
    asked = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={asked.devices}"
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    import parnl

    batch, inputs, hidden = 4 * asked.devices, 16, 8 * asked.devices
    cell = parnl.get_cell(asked.cell, inputs, hidden)
    params = cell.init(0, backend="jax")
    u = jax.random.normal(jax.random.key(0), (batch, asked.steps, inputs))
    weights = jnp.cos(jnp.arange(float(asked.steps)))[:, None]

    def forward(cell):
        return lambda params, u: parnl.solve(cell, params, u).outputs

    def training(run, total=lambda x: x):
        def loss(params, u):
            return total((weights * run(params, u) ** 2).sum())

        return jax.value_and_grad(loss, (0, 1))

    print(f"{jax.__version__=} {asked.devices} devices, {asked.cell}, {u.shape}, hidden {hidden}")
    print(f"{'mesh':9} {'divided':10} {'what':9} {'jit / shard_map':>15}  sent under jit")
    for kind in ("Auto", "Explicit"):
        mesh = jax.make_mesh((asked.devices,), ("x",), axis_types=(getattr(AxisType, kind),))
        for axis in ("sequences", "channels"):
            rows, columns = ("x", None) if axis == "sequences" else (None, "x")
            of_params = {n: P(*[None] * (p.ndim - 1), columns) for n, p in params.items()}
            if axis == "channels":
                wide = {n: p.shape[-1] == hidden for n, p in params.items()}
                of_params = {n: s if wide[n] else P(None) for n, s in of_params.items()}
            specs, out = (of_params, P(rows, None, None)), P(rows, None, columns)

            def put(array, spec, mesh=mesh):
                return jax.device_put(array, NamedSharding(mesh, spec))

            there = (jax.tree.map(put, params, of_params), put(u, specs[1]))
            part = cell if axis == "sequences" else parnl.get_cell(asked.cell, inputs, 8)
            for what in ("forward", "gradient"):
                own, whole = forward(part), forward(cell)
                if what == "gradient":
                    whole = training(whole)
                    own = training(own, lambda x: jax.lax.psum(x, "x"))
                results = out if what == "forward" else (P(), specs)
                by_hand = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=results)
                runs = {"jit": jax.jit(whole).lower(*there).compile(), "hand": jax.jit(by_hand)}
                calls = {
                    n: lambda r=r, g=there: jax.block_until_ready(r(*g)) for n, r in runs.items()
                }
                found = timed(calls, asked.repeats)
                ratio = found["jit"] / found["hand"]
                names = "all-gather|all-reduce|collective-permute|all-to-all"
                sent = Counter(re.findall(rf" ({names})(?:-start)?\(", runs["jit"].as_text()))
                print(f"{kind:9} {axis:10} {what:9} {ratio:15.2f}  {dict(sent)}")


if __name__ == "__main__":
    main()

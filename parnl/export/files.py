"""The two files of a recorded model."""

from __future__ import annotations

import math
import textwrap

import torch

from parnl.export import text
from parnl.export.lowering import Lowering, Value, layout_of
from parnl.export.record import Recorded
from parnl.export.schedule import Buffer, Place, Schedule, contiguous, stripped

_FLOAT = 4  # bytes


def written(recorded: Recorded, name: str, kind: str) -> tuple[dict[str, str], tuple[int, ...]]:
    """Return file name -> text, and the bytes of constants, state and scratch."""
    schedule = Schedule()
    lowering = Lowering(schedule)

    def given(kind: str, name: str, shape: tuple[int, ...]) -> Value:
        buffer = schedule.buffer(kind, math.prod(shape), name)
        return lowering.standing(buffer, layout_of(shape))

    states = [given("state", f"state->{n}", tuple(s.shape)) for n, s in recorded.starts.items()]
    inputs = [given("input", "input", (recorded.input_size,)), *states]
    if recorded.variable_dt:
        inputs.append(given("dt", "dt", ()))
    output, *after = lowering.run(recorded.graph, inputs)
    target = schedule.buffer("output", math.prod(output.shape), "output")
    _copy(lowering, [output, *after], [target, *(s.buffer for s in states if s.buffer)])
    scratch = schedule.finish()

    sizes = {n: s.numel() for n, s in recorded.starts.items()}
    resets, starts = _reset(recorded)
    constants = [*schedule.used("constant"), *starts]
    numbers = sum(b.size for b in constants), sum(sizes.values()), scratch
    found = tuple(_FLOAT * n for n in numbers)
    body = _step_body(schedule, scratch, recorded.variable_dt)
    words = {"name": name, "kind": kind, "output": target.size, "input": recorded.input_size,
             "dt": "float dt, " if recorded.variable_dt else ""}  # fmt: skip
    header = _header(words, found, sizes)
    return {f"{name}.h": header, f"{name}.c": _source(words, constants, resets, body)}, found


def _copy(lowering: Lowering, values: list[Value], targets: list[Buffer]) -> None:
    """Write results to where the caller looks for them, after all else has been read."""
    schedule, pairs = lowering.schedule, []
    for value, target in zip(values, targets, strict=True):
        stands = lowering.array(value)
        assert stands.buffer is not None
        if stands.buffer.kind == "state":  # as it was before this step
            stands = lowering.array(Value(value.shape, stands.leaf))
        pairs.append((stands, target))
    schedule.close()
    for value, target in pairs:
        place = Place.of(target, 0, value.shape, contiguous(value.shape))
        schedule.store(place, value.leaf, stripped(value.shape))


def _step_body(schedule: Schedule, scratch: int, has_dt: bool) -> str:
    arrays = [f"float scratch[{scratch}];"] if scratch else []
    for buffer in schedule.used("scratch"):
        arrays.append(f"float *const {buffer.name} = scratch + {buffer.offset};")
    names = ("input", "dt") if has_dt else ("input",)
    unused = [f"(void){n};" for n in names if not any(schedule.used(n))]
    return text.indented([*arrays, *unused, *text.loops(schedule, schedule.groups)])


def _reset(recorded: Recorded) -> tuple[str, list[Buffer]]:
    """Return the body of the reset, and the constants that it copies."""
    lines, constants = [], []
    for number, (name, start) in enumerate(recorded.starts.items()):
        values = start.detach().reshape(-1).to(torch.float32).numpy()
        if (values == values[0]).all():
            value = text.number(values[0])
        else:
            constants.append(Buffer(0, "constant", f"start{number}", values.size, values))
            value = f"start{number}[i]"
        lines += [
            f"for (int i = 0; i < {values.size}; i++) {{",
            f"state->{name}[i] = {value};",
            "}",
        ]
    return text.indented(lines), constants


def _header(words: dict, found: tuple[int, ...], sizes: dict[str, int]) -> str:
    constants, state, scratch = found
    members = "\n".join(f"    float {name}[{size}];" for name, size in sizes.items())
    guard = f"{words['name'].upper()}_H"
    return textwrap.dedent("""\
        /* One step at a time of a recurrent model ({kind}), written by parnl.to_c.

           Bytes: constants {constants} (static const, in flash), state {state} (the caller's),
           scratch {scratch} (on the stack, within {name}_step). */

        #ifndef {guard}
        #define {guard}

        #define {upper}_INPUT_SIZE {input}
        #define {upper}_OUTPUT_SIZE {output}
        #define {upper}_STATE_SIZE {total}

        #ifdef __cplusplus
        extern "C" {{
        #endif

        typedef struct {{
        {members}
        }} {name}_state;

        /* Begin a sequence. */
        void {name}_reset({name}_state *state);

        /* Read {input} numbers, write {output}; the arrays must not overlap. */
        void {name}_step({name}_state *state, {dt}const float *input, float *output);

        #ifdef __cplusplus
        }}
        #endif

        #endif
        """).format(
        constants=constants, state=state, scratch=scratch, guard=guard, members=members,
        upper=words["name"].upper(), total=sum(sizes.values()), **words,
    )  # fmt: skip


def _source(words: dict, constants: list[Buffer], resets: str, body: str) -> str:
    name, dt = words["name"], words["dt"]
    parts = [
        f'#include "{name}.h"\n\n#include <math.h>\n',
        text.functions(body),
        *map(text.constant, constants),
        f"void {name}_reset({name}_state *state)\n{{\n{resets}}}\n",
        f"void {name}_step({name}_state *state, {dt}const float *input, float *output)\n"
        f"{{\n{body}}}\n",
    ]
    return "\n".join(part for part in parts if part)

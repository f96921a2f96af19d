"""A step as text: the same step again, anywhere; and what is none is refused."""

import gc
import json

import numpy as np
import pytest

import parnl
from parnl.graph import serial
from parnl.graph.program import Program

# parnl's own: other files register more
CELLS = [n for n in parnl.list_cells() if not n.startswith("test-")]


def forms(cell):
    for program in (cell.program, cell.program.restarting):
        yield from (program, program.masked)


@pytest.mark.parametrize("name", CELLS)
def test_what_is_read_is_what_was_written(name):
    for program in forms(parnl.get_cell(name, 2, 3)):
        graph, groups = serial.read(program.text)
        assert serial.write(*groups) == program.text
        again = Program(graph, *groups)
        assert (again.states, again.operands) == (program.states, program.operands)
        assert (again.linear, again.cost) == (program.linear, program.cost)
        numpy = parnl.frameworks.get_backend("numpy")
        rng = np.random.default_rng(0)
        given = rng.uniform(0.1, 0.9, (len(program.states) + len(program.operands), 5))
        steps = (p.function("step_jacobian", numpy)(*given) for p in (program, again))
        for one, other in zip(*steps, strict=True):
            np.testing.assert_array_equal(one, other)


def test_numbers_keep_every_bit():
    for value in (-0.0, 0.1, 5e-324, 1.7e308, float("inf"), float("nan")):
        graph = parnl.graph.nodes.Graph()
        x, number = graph.leaf("state", "x"), graph.constant(value)
        _, (_, _, [found]) = serial.read(
            serial.write([x], [], [graph.node("add", (x, number), None)])
        )
        assert np.float64(found.args[1].value).tobytes() == np.float64(value).tobytes()


def test_a_program_that_is_gone_is_made_again():
    class Passing(parnl.Cell):
        parameters = dict(a=parnl.params.vector("hidden"))

        def features(self, p, u):
            return dict(u=u)

        def step(self, p, x, f):
            return 0.123456789 * p.a * x + f.u

    cell = Passing(1, 1)
    text = cell.program.text
    assert Program.of_text(text) is cell.program
    del cell
    gc.collect()
    found = Program.of_text(text)
    assert (found.text, found.linear) == (text, True)
    gc.collect()
    assert Program.of_text(text) is found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no text", "expected the text of a step, got 'no text'"),
        ("[1, 2]", "expected the text of a step"),
        (json.dumps(["parnl step 2", [], [[], [], []]]), "no format 'parnl step 2'"),
        (json.dumps(["parnl step 1", [["erfc", None]], [[], [], [0]]]), "no operations erfc"),
    ],
)
def test_what_is_no_text_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        serial.read(text)

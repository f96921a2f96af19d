"""The rooms of the house: no file imports in a circle, none from a room above its own."""

import imports
import pytest


def test_no_circles_and_no_arrows_upward():
    graph = imports.arrows()
    assert sum(map(len, graph.values())) > 100
    assert not imports.circles(graph)
    assert not imports.upward(graph)


@pytest.mark.parametrize(
    ("links", "circle"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, [["b", "c"]]),
    ],
)
def test_circles_are_found(links, circle):
    assert imports.circles(links) == circle


def test_an_arrow_upward_is_found():
    assert imports.upward({"parnl.graph.nodes": {"parnl.solve"}, "parnl.solve": set()})

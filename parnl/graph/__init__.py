"""A cell's step as a graph, and all that is derived from it. Start with `nodes`.

    nodes         symbols that record what a step does with them; the graph, each expression once
    operation     what an elementwise operation is: one entry with all that is known of it
    operations    the table of them: entries of `arithmetic` and `elementary`; a new elementwise
                  function is written in the latter
    intervals     interval arithmetic, of which operations make their bounds
    derivatives   tangents and cotangents of graphs, by the rules of the table
    flatcode      a graph as a flat Python function over a framework's arrays
    program       a traced step with its derived functions: what backends run

Nothing here imports a framework but NumPy: the other targets are given as text.
"""

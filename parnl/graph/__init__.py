"""A cell's step as a graph: its nodes, their derivatives, flat code, and programs made of them."""

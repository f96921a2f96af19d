"""A trained model in other forms. Start with `to_c`: plain C, for boards.

to_c          the public function: what is given, what is refused, the two files
record        one step of a model as the operations of PyTorch that it is made of
lowering      these operations, each as loops over arrays
aten          the table of elementwise ones
schedule      loops that can be one become one; what is computed once; where it is kept
text          the C of all that
runs          what `parnl train` has trained, as C, ONNX, or a program of PyTorch or JAX
"""

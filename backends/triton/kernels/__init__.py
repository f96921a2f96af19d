"""The Triton kernels: code that is the same for every program.

tiles.py has arithmetic on tiles and on tuples of them, newton.py the iteration, solve.py and
gradients.py a kernel each: where lanes stand, how they run, and what is stored in the end.

Imports in here are relative. `build.kernels` imports the folder twice where it must, once compiled
and once interpreted, under a name for each.
"""

"""The damped, driven pendulum for adeptml: order 8 in time, written in JAX.

Four modules, to be read in this order:

- `dormand_prince`: one step of the Runge-Kutta method, and what it knows of its own error;
- `pendulum`: the equation of motion, and the trajectory as one pure function of JAX arrays;
- `solver`: that function behind adeptml's face, NumPy in and NumPy out. This is the pattern to copy
  for a JAX solver of your own;
- `plugin`: what adeptml reads to list the solver.
"""

__version__ = "0.1.0"

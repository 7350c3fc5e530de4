"""The whole proof, for each of the three solvers: this is all that a plugin needs for it."""

from adeptml_core.testing import solver_checks

test_heat1d = solver_checks("heat1d")
test_conductivity = solver_checks("heat1d-conductivity")
test_propagator = solver_checks("heat1d-propagator")

"""The solvers keep the contract and their gradients are right: the proof, check by check."""

from adeptml_core.testing import solver_checks

test_heat1d = solver_checks("heat1d")
test_conductivity = solver_checks("heat1d-conductivity")
test_propagator = solver_checks("heat1d-propagator")

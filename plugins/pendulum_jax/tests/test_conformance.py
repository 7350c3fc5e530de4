"""The solver keeps the contract, and its gradients are right: core's proof, check by check."""

from adeptml_core.testing import solver_checks

test_pendulum = solver_checks("pendulum-jax")

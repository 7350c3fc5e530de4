"""The whole proof: this is all that a plugin needs for it."""

from adeptml_core.testing import solver_checks

test_pendulum_jax = solver_checks("pendulum-jax")

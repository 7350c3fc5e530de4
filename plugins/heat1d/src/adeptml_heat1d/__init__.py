"""The heat equation on a rod, with per-sample conductivity, for adeptml.

Three solvers, one for each way in which a solver can state its derivative. They share one physics,
one set of options and one adjoint:

===================== ========= ============== =============================================
solver                mode      differentiates module
===================== ========= ============== =============================================
heat1d                split_vjp T0, k, q, T_ext `adeptml_heat1d.solver`
heat1d-conductivity   vjp       k, T0, q, T_ext `adeptml_heat1d.conductivity`
heat1d-propagator     jacobian  T0              `adeptml_heat1d.propagator`
===================== ========= ============== =============================================

To learn how it works, read in this order: `rod` (space), `poles` (time), `tridiagonal` (the linear
algebra), `evolution` (all three put together, and the adjoint), `rows` (the contract's side).
"""

__version__ = "0.1.0"

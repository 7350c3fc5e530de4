"""What adeptml reads to list the solver: data only, so that listing costs no jax and no numpy.

The bounds are a promise, at the default options: for all inputs within them the trajectory is
finite, its error is below 1e-8 rad and its derivative is right to rounding. They are no limits.
Outside them the solver is as good as its equation. But the longer the run and the shorter the
pendulum, the more does a swing close to the upright position amplify whatever is put in, rounding
included: by up to ``exp(sqrt(g / L) t)``, which is 7e3 at the corner of these bounds. In 99 of 100
draws from within them it is below 70.
"""

from adeptml_core.plugin import Array, Option, SolverSpec, hookimpl

OPTIONS = (
    Option("dt", 0.05, unit="s", low=1e-6, doc="time between the states returned"),
    Option("steps", 40, low=1, doc="number of states returned, the initial state not among them"),
    Option("substeps", 2, low=1, doc="Runge-Kutta steps of order 8 in each dt"),
)


@hookimpl
def adeptml_solvers() -> list[SolverSpec]:
    """Declare the solver."""
    return [
        SolverSpec(
            name="pendulum-jax",
            mode="split_vjp",
            summary="damped, driven pendulum at any angle, order 8 in time, in JAX",
            x=Array(
                "state",
                (2,),
                unit="(rad, rad/s)",
                low=(-3.0, -5.0),
                high=(3.0, 5.0),
                doc="angle from the hanging rest position and angular velocity, at t = 0",
            ),
            args=(
                Array(
                    "params",
                    (4,),
                    unit="(m, 1/s, 1/s^2, rad/s)",
                    low=(0.5, 0.0, -5.0, -10.0),
                    high=(10.0, 2.0, 5.0, 10.0),
                    differentiable=True,
                    doc="length L > 0, damping c >= 0, drive A and its angular frequency Omega",
                ),
            ),
            y=Array(
                "trajectory",
                ("steps", 2),
                unit="(rad, rad/s)",
                doc="angle and angular velocity at dt, 2 dt, ..., steps dt",
            ),
            options=OPTIONS,
            forward="adeptml_pendulum_jax.solver:forward",
            jvp="adeptml_pendulum_jax.solver:jvp",
            example="adeptml_pendulum_jax.solver:example",
            requires=("jax>=0.10",),
            citation="https://doi.org/10.1007/978-3-540-78862-1",
        ),
    ]

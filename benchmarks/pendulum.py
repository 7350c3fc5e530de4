r"""pendulum-jax beside other differentiable integrators: error and time of y and all gradients.

The problem: ``batch`` damped, driven pendulums, each with parameters of its own, for 10 s, of which
200 states are wanted; a random cotangent for each; gradients in the initial state and in L, c, A,
Omega. The peers integrate the same equation, written the same way:

- *pendulum-jax*, by name, in torch, with one and with two substeps;
- *diffrax*: Dopri8 and Tsit5, steps chosen by a PID controller at two tolerances, and Dopri8 with a
  fixed step, jitted, the samples vmapped; ``RecursiveCheckpointAdjoint``, which is its default;
- *torchdiffeq*: dopri8 and dopri5, by backpropagation and by the adjoint.

The reference is SciPy's DOP853 with steps of 5 ms at most; its derivatives come from the complex
step, so no two close numbers are subtracted. Errors are relative, in the 2-norm, the largest of
four samples; that of the gradient is the larger of the two. Run it::

    python -m venv scratch
    scratch/bin/pip install -e . -e "plugins/pendulum_jax[benchmarks]"
    scratch/bin/python benchmarks/pendulum.py --plot pendulum.png    # minutes; --quick: a minute
"""

import sys

if sys.path[0].endswith("benchmarks"):  # where operator.py would pass for the standard library's
    sys.path[0] = sys.path[0].removesuffix("benchmarks")

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks import contest
from benchmarks.contest import Call, Peer, torch_call

BATCHES = (1, 32, 1024)
HELD = 4  # samples that are compared with the reference
DT, STEPS = 0.05, 200
TIMES = DT * np.arange(STEPS + 1)
GRAVITY = 9.80665  # m/s^2


@dataclass(frozen=True)
class Problem:
    """Some pendulums."""

    batch: int

    @property
    def label(self) -> str:
        """Return its name in the tables."""
        return f"batch {self.batch}, 10 s"

    def covers(self, other: "Problem") -> bool:
        """Return whether this one is at least as large."""
        return self.batch >= other.batch

    def inputs(self) -> tuple[Any, ...]:
        """Return x, params and the cotangent g, in float64."""
        rng = np.random.default_rng(0)
        numbers = rng.uniform(size=(self.batch, 6))  # the first are the same in every batch
        low, high = (
            np.array([-2.0, -1.5, 0.7, 0.05, 0.0, 0.5]),
            np.array([2.0, 1.5, 2.0, 0.5, 1.5, 3.0]),
        )
        drawn = low + (high - low) * numbers
        g = np.random.default_rng(1).normal(size=(self.batch, STEPS, 2))
        return drawn[:, :2].copy(), drawn[:, 2:].copy(), g


def slope(t: Any, theta: Any, omega: Any, params: Any, lib: Any) -> Any:
    """Return d(omega)/dt; the functions are those of a library."""
    L, c, A, Omega = (params[..., i] for i in range(4))
    return -(GRAVITY / L) * lib.sin(theta) - c * omega + A * lib.cos(Omega * t)


# ---- the reference ------------------------------------------------------------------------------


def reference(problem: Problem) -> tuple[Any, Sequence[Any]]:
    """Return the trajectories and both gradients of the first samples, from SciPy."""
    x, params, g = (a[:HELD] for a in problem.inputs())
    inputs = np.concatenate([x, params], axis=1)
    runs = [[_run(row, index) for index in range(6)] for row in inputs]
    y = np.stack([run[0].real for run in runs])
    sensitivities = np.stack([[column.imag / 1e-20 for column in run] for run in runs])
    gradient = np.einsum("bksi,bsi->bk", sensitivities, g)
    return y, [gradient[:, :2], gradient[:, 2:]]


def _run(inputs: Any, stepped: int) -> Any:
    """Return one trajectory, one of the six inputs being stepped into the imaginary."""
    from scipy.integrate import solve_ivp

    given = inputs.astype(complex)
    given[stepped] += 1e-20j
    x, params = given[:2], given[2:]
    run = solve_ivp(
        lambda t, state: (state[1], slope(t, *state, params, np)),
        (0.0, TIMES[-1]),
        x,
        "DOP853",
        t_eval=TIMES[1:],
        max_step=0.005,
        rtol=1e-13,
        atol=1e-15,
    )
    return run.y.T


# ---- peers --------------------------------------------------------------------------------------


def ours(problem: Problem, substeps: int) -> Call:
    from adeptml_core import solve

    options = {"dt": DT, "steps": STEPS, "substeps": substeps}
    return torch_call(problem, lambda *inputs: solve("pendulum-jax", *inputs, options=options))


def diffrax_peer(problem: Problem, method: str, tolerance: float | None) -> Call:
    import diffrax
    import jax

    jax.config.update("jax_enable_x64", True)  # a process of its own
    import jax.numpy as jnp

    def field(t: Any, state: Any, params: Any) -> Any:
        return jnp.stack([state[1], slope(t, state[0], state[1], params, jnp)])

    term, solver = diffrax.ODETerm(field), getattr(diffrax, method)()
    saved = diffrax.SaveAt(ts=jnp.asarray(TIMES[1:]))
    control: dict[str, Any]
    if tolerance is None:  # each state that is wanted ends a step: nothing is interpolated
        control = {"stepsize_controller": diffrax.StepTo(ts=jnp.asarray(TIMES))}
    else:
        control = {
            "stepsize_controller": diffrax.PIDController(
                rtol=tolerance, atol=tolerance, pcoeff=0.3, icoeff=0.4
            )
        }

    def one(x: Any, params: Any) -> Any:
        dt0 = DT if tolerance else None
        run = diffrax.diffeqsolve(
            term, solver, 0.0, TIMES[-1], dt0, x, params, saveat=saved, max_steps=4096, **control
        )
        return run.ys

    *inputs, g = (jnp.asarray(a) for a in problem.inputs())

    @jax.jit
    def both(x: Any, params: Any) -> Any:
        y, pullback = jax.vjp(jax.vmap(one), x, params)
        return y, pullback(g)

    return lambda: jax.block_until_ready(both(*inputs))


def torchdiffeq_peer(problem: Problem, method: str, adjoint: bool) -> Call:
    import torch
    import torchdiffeq

    times = torch.tensor(TIMES)

    class Field(torch.nn.Module):
        def __init__(self, params: Any) -> None:
            super().__init__()
            self.params = params

        def forward(self, t: Any, state: Any) -> Any:
            theta, omega = state[..., 0], state[..., 1]
            return torch.stack([omega, slope(t, theta, omega, self.params, torch)], dim=-1)

    def solution(x: Any, params: Any) -> Any:
        settings: dict[str, Any] = {"method": method, "rtol": 1e-9, "atol": 1e-9}
        if adjoint:
            settings["adjoint_params"] = (params,)
        integrate = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
        return integrate(Field(params), x, times, **settings)[1:].transpose(0, 1)

    return torch_call(problem, solution)


def _peers() -> Iterator[Peer]:
    for substeps, name in ((2, "two substeps"), (1, "one substep")):
        run = partial(ours, substeps=substeps)
        yield Peer(f"pendulum-jax, {name}", run, ("jax",), family="pendulum-jax")
    for method, tolerance in (
        ("Dopri8", None),
        ("Dopri8", 1e-8),
        ("Dopri8", 1e-12),
        ("Tsit5", 1e-8),
        ("Tsit5", 1e-12),
    ):
        run = partial(diffrax_peer, method=method, tolerance=tolerance)
        steps = f"tolerance {tolerance:.0e}" if tolerance else "fixed step"
        yield Peer(f"diffrax, {method}, {steps}", run, ("diffrax",), family="diffrax")
    for method in ("dopri8", "dopri5"):
        for adjoint in (False, True):
            run = partial(torchdiffeq_peer, method=method, adjoint=adjoint)
            name = f"torchdiffeq, {method}{', adjoint' if adjoint else ''}"
            yield Peer(name, run, ("torchdiffeq",), family="torchdiffeq")


COLOURS = {"pendulum-jax": "#1f5fa8", "diffrax": "#d9772b", "torchdiffeq": "#8a6fb0"}


def main() -> None:
    contest.main(
        __doc__ or "",
        list(_peers()),
        [Problem(batch) for batch in BATCHES],
        reference,
        rows=["10 s"],
        columns=[f"batch {b}" for b in BATCHES],
        colours=COLOURS,
    )


if __name__ == "__main__":
    main()

r"""heat1d beside other ways to get the temperature at time t and all its gradients.

The problem: ``batch`` rods of n cells, each cell of each with a conductivity of its own, films at
the ends, heat from smooth sources; sensors in every eighth cell, whose misfit gives the cotangent;
gradients in T0, k, q and T_ext. All peers get the same equation in space, so what is compared is
the error in time. They are

- *heat1d*, by name, in torch;
- *JAX*: implicit time stepping under ``lax.scan`` with ``tridiagonal_solve``, jitted, with ``grad``
  (implicit Euler, and L-stable SDIRK of orders 2 and 4);
- *torch*: in the graph, by LU of each sample's matrix and SDIRK 2, or by ``matrix_exp``;
- *torchdiffeq*: dopri5, by backpropagation and by its adjoint;
- *SciPy*: BDF with a banded Jacobian, and ``expm``; these have no gradient.

The reference shares no line with the solver and no precision with anybody: Talbot's contour in
80-bit arithmetic (Trefethen, Weideman, Schmelzer 2006, https://doi.org/10.1007/s10543-006-0077-9),
its gradients held against differences of itself. Errors are relative, in the 2-norm, the largest
of four samples; that of the gradient is the largest of the four. Run it::

    python -m venv scratch
    scratch/bin/pip install -e . -e "plugins/heat1d[benchmarks]"
    scratch/bin/python benchmarks/heat1d.py --plot heat1d.png     # half an hour; --quick: a minute
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

CELLS = (64, 256, 1024)
BATCHES = (1, 32, 1024)
HELD = 4  # samples that are compared with the reference
ROD = {"length": 1.0, "rho_c": 1.0, "h_left": 20.0, "h_right": 5.0, "t": 1.0}


@dataclass(frozen=True)
class Problem:
    """Some rods."""

    n: int
    batch: int

    @property
    def label(self) -> str:
        """Return its name in the tables."""
        return f"n = {self.n}, batch {self.batch}"

    def covers(self, other: "Problem") -> bool:
        """Return whether this one is at least as large."""
        return self.n >= other.n and self.batch >= other.batch

    def inputs(self) -> tuple[Any, ...]:
        """Return T0, k, q, T_ext and the cotangent g, in float64."""
        rng = np.random.default_rng(self.n)  # so the first rods are the same in every batch
        x = (np.arange(self.n) + 0.5) / self.n
        waves = np.array([np.cos(np.pi * m * x) for m in range(5)])

        def smooth(scale: float) -> Any:
            return scale * rng.normal(size=(self.batch, 5)) @ waves

        T0, q = 300.0 + smooth(5.0), smooth(5.0)
        k = 0.03 * np.exp(smooth(0.2) + 0.3 * rng.normal(size=(self.batch, self.n)))
        T_ext = 300.0 + 10.0 * rng.normal(size=(self.batch, 2))
        g = np.zeros((self.batch, self.n))
        g[:, ::8] = rng.normal(size=g[:, ::8].shape)
        return T0, k, q, T_ext, g


# ---- the equation in space, for all ------------------------------------------------------------


def conductances(k: Any, cat: Any) -> Any:
    """Return those of the n + 1 faces, over rho_c dx, 1/s; arrays of any library."""
    n = k.shape[-1]
    half = ROD["length"] / (2 * n) / k
    film = (0 * k[..., :1] + 1 / ROD["h_left"], 0 * k[..., :1] + 1 / ROD["h_right"])
    resistance = cat([film[0], half, film[1]])
    return n / (ROD["rho_c"] * ROD["length"] * (resistance[..., :-1] + resistance[..., 1:]))


def load(q: Any, T_ext: Any, G: Any, cat: Any) -> Any:
    """Return what enters each cell from its source and from the ambient, K/s."""
    inside = 0 * q[..., 1:-1]
    ends = cat([G[..., :1] * T_ext[..., :1], inside, G[..., -1:] * T_ext[..., 1:]])
    return q / ROD["rho_c"] + ends


# ---- the reference ------------------------------------------------------------------------------


def reference(problem: Problem) -> tuple[Any, Sequence[Any]]:
    """Return T and its four gradients for the first samples, in 80-bit arithmetic."""
    T0, k, q, T_ext, g = (a[:HELD].astype(np.longdouble) for a in problem.inputs())
    T, gradients = contour(T0, k, q, T_ext, g)
    step = np.longdouble(0.003)
    d = k * np.random.default_rng(1).uniform(-1, 1, k.shape)
    there = sum(
        weight * (g * contour(T0, k + shift * step * d, q, T_ext)[0]).sum(axis=1)
        for shift, weight in {-3: -1, -2: 9, -1: -45, 1: 45, 2: -9, 3: 1}.items()
    ) / (60 * step)
    back = (d * gradients[1]).sum(axis=1)
    # Rounding, 1e-16 of 300 K, over the step and the sum is all that they may differ by.
    if np.abs(there / back - 1).max() > 1e-7:
        raise ArithmeticError(f"the reference contradicts itself: {there} and {back}")
    return T.astype(float), [a.astype(float) for a in gradients]


def contour(T0: Any, k: Any, q: Any, T_ext: Any, g: Any = None) -> tuple[Any, list[Any]]:
    """Return T, and the gradients of ``(g * T).sum()``, by quadrature on Talbot's contour."""
    nodes, n = 32, k.shape[1]
    one = np.longdouble(1)  # a product of two Python floats would be rounded to 53 bits
    theta = (np.arange(nodes // 2) * 2 + 1) * (4 * np.arctan(one) / nodes)
    cot = 1 / np.tan(0.6407 * theta)
    z = nodes * (0.5017 * theta * cot - 0.6122 + 0.2645j * theta)
    dz = nodes * (0.5017 * cot - 0.5017 * (0.6407 * theta) * (1 + cot**2) + 0.2645j)
    weight = 2 * np.exp(z) * dz / (1j * nodes)  # of the conjugate pair
    t, (z, weight) = ROD["t"], (a[:, None, None] for a in (z, weight))
    G = t * conductances(k, lambda parts: np.concatenate(parts, axis=-1))
    f = load(t * q, T_ext, G, lambda parts: np.concatenate(parts, axis=-1))
    u = thomas(G, z, T0 + f / z)
    T = (weight * u).sum(axis=0).real
    if g is None:
        return T, []
    a = thomas(G, z, g + 0 * z)
    grad_f = (weight / z * a).sum(axis=0).real
    over = np.pad(u, ((0, 0), (0, 0), (1, 1)))
    over[..., :1], over[..., -1:] = T_ext[:, :1] / z, T_ext[:, 1:] / z
    drops = np.diff(np.pad(a, ((0, 0), (0, 0), (1, 1)))) * np.diff(over)
    grad_G = -(weight * drops).sum(axis=0).real
    grad_k = G[:, :-1] ** 2 * grad_G[:, :-1] + G[:, 1:] ** 2 * grad_G[:, 1:]
    grad_k *= ROD["rho_c"] * ROD["length"] ** 2 / (2 * t * n**2 * k**2)
    return T, [
        (weight * a).sum(axis=0).real,
        grad_k,
        t / ROD["rho_c"] * grad_f,
        np.stack([G[:, 0] * grad_f[:, 0], G[:, -1] * grad_f[:, -1]], axis=1),
    ]


def thomas(G: Any, z: Any, b: Any) -> Any:
    """Solve ``(K + z) x = b`` by the textbook's elimination."""
    n = b.shape[-1]
    d, x = G[:, :-1] + G[:, 1:] + z, b + 0 * z
    for i in range(1, n):
        factor = G[:, i] / d[..., i - 1]
        d[..., i] -= factor * G[:, i]
        x[..., i] += factor * x[..., i - 1]
    x[..., -1] /= d[..., -1]
    for i in range(n - 2, -1, -1):
        x[..., i] = (x[..., i] + G[:, i + 1] * x[..., i + 1]) / d[..., i]
    return x


# ---- peers --------------------------------------------------------------------------------------


def ours(problem: Problem, poles: int) -> Call:
    from adeptml_core import solve

    options = ROD | {"poles": poles}
    return torch_call(problem, lambda *inputs: solve("heat1d", *inputs, options=options))


def ours_forward(problem: Problem) -> Call:
    import torch

    from adeptml_core import solve

    inputs = [torch.tensor(a) for a in problem.inputs()[:-1]]
    return lambda: (solve("heat1d", *inputs, options=ROD), None)


GAMMA = 1 - 0.5**0.5
EULER: tuple[float, Any] = (1.0, [(), (1.0,)])
SDIRK2: tuple[float, Any] = (GAMMA, [(), (1 - GAMMA,), (1 - GAMMA, GAMMA)])
SDIRK4: tuple[float, Any] = (  # Hairer & Wanner, Solving ODEs II, table IV.6.5
    0.25,
    [
        (),
        (1 / 2,),
        (17 / 50, -1 / 25),
        (371 / 1360, -137 / 2720, 15 / 544),
        (25 / 24, -49 / 48, 125 / 16, -85 / 12),
        (25 / 24, -49 / 48, 125 / 16, -85 / 12, 1 / 4),
    ],
)
"""The diagonal, the rows beneath it, and the weights: singly diagonally implicit Runge-Kutta."""


def jax_stepping(problem: Problem, scheme: tuple[float, Any], steps: int) -> Call:
    import jax

    jax.config.update("jax_enable_x64", True)  # a process of its own
    import jax.numpy as jnp
    from jax.lax.linalg import tridiagonal_solve

    gamma, (*rows, weights) = scheme
    h = ROD["t"] / steps

    def cat(parts: Any) -> Any:
        return jnp.concatenate(parts, axis=-1)

    def solution(T0: Any, k: Any, q: Any, T_ext: Any) -> Any:
        G = conductances(k, cat)
        f = load(q, T_ext, G, cat)
        diagonal = 1 + gamma * h * (G[:, :-1] + G[:, 1:])
        off = -gamma * h * G[:, 1:-1]
        lower = jnp.pad(off, ((0, 0), (1, 0)))
        upper = jnp.pad(off, ((0, 0), (0, 1)))

        def rate(T: Any) -> Any:
            flux = jnp.pad(G[:, 1:-1] * (T[:, 1:] - T[:, :-1]), ((0, 0), (1, 1)))
            ends = jnp.zeros_like(T).at[:, 0].add(G[:, 0] * T[:, 0])
            return flux[:, 1:] - flux[:, :-1] - ends.at[:, -1].add(G[:, -1] * T[:, -1]) + f

        def step(T: Any, _: None) -> tuple[Any, None]:
            slopes: list[Any] = []
            for row in rows:
                at = T + h * sum(a * s for a, s in zip(row, slopes, strict=True))
                slopes.append(
                    tridiagonal_solve(lower, diagonal, upper, rate(at)[..., None])[..., 0]
                )
            return T + h * sum(b * s for b, s in zip(weights, slopes, strict=True)), None

        kept = 32.0 * steps * len(rows) * T0.size  # bytes, of the residuals of all stages
        step_kept = jax.checkpoint(step) if kept > 2**30 else step
        return jax.lax.scan(step_kept, T0, None, length=steps)[0]

    *inputs, g = (jnp.asarray(a) for a in problem.inputs())

    @jax.jit
    def both(*inputs: Any) -> Any:
        T, pullback = jax.vjp(solution, *inputs)
        return T, pullback(g)

    return lambda: jax.block_until_ready(both(*inputs))


def assembled(k: Any) -> tuple[Any, Any]:
    """Return the rods' matrices, torch, shape (batch, n, n), and conductances, both per s."""
    import torch

    G = conductances(k, lambda parts: torch.cat(parts, dim=-1))
    A = torch.diag_embed(G[:, :-1] + G[:, 1:])
    A = A - torch.diag_embed(G[:, 1:-1], 1) - torch.diag_embed(G[:, 1:-1], -1)
    return A, G


def torch_lu(problem: Problem) -> Call:
    import torch

    gamma, (*rows, weights), steps = *SDIRK2, 100
    h = ROD["t"] / steps

    def solution(T0: Any, k: Any, q: Any, T_ext: Any) -> Any:
        A, G = assembled(k)
        f = load(q, T_ext, G, lambda parts: torch.cat(parts, dim=-1))[..., None]
        eye = torch.eye(problem.n, dtype=A.dtype)
        factors = torch.linalg.lu_factor(eye + gamma * h * A)
        T = T0[..., None]
        for _ in range(steps):
            slopes: list[Any] = []
            for row in rows:
                at = T + h * sum(a * s for a, s in zip(row, slopes, strict=True))
                slopes.append(torch.linalg.lu_solve(*factors, f - A @ at))
            T = T + h * sum(b * s for b, s in zip(weights, slopes, strict=True))
        return T[..., 0]

    return torch_call(problem, solution)


def torch_expm(problem: Problem) -> Call:
    import torch

    def solution(T0: Any, k: Any, q: Any, T_ext: Any) -> Any:
        A, G = assembled(k)
        f = load(q, T_ext, G, lambda parts: torch.cat(parts, dim=-1))[..., None]
        zeros = A.new_zeros(len(A), 1, problem.n + 1)
        generator = torch.cat([torch.cat([-A, f], dim=2), zeros], dim=1)
        start = torch.cat([T0, torch.ones_like(T0[:, :1])], dim=1)[..., None]
        return (torch.matrix_exp(ROD["t"] * generator) @ start)[:, :-1, 0]

    return torch_call(problem, solution)


def torchdiffeq_dopri5(problem: Problem, adjoint: bool) -> Call:
    import torch
    import torchdiffeq

    class Rate(torch.nn.Module):
        def __init__(self, G: Any, f: Any) -> None:
            super().__init__()
            self.G, self.f = G, f

        def forward(self, t: Any, T: Any) -> Any:
            # The flux through each face, with nothing beyond the ends: f brings the ambient in.
            drops = torch.diff(torch.nn.functional.pad(T, (1, 1)))
            return torch.diff(self.G * drops) + self.f

    def solution(T0: Any, k: Any, q: Any, T_ext: Any) -> Any:
        G = conductances(k, lambda parts: torch.cat(parts, dim=-1))
        f = load(q, T_ext, G, lambda parts: torch.cat(parts, dim=-1))
        rate, times = Rate(G, f), torch.tensor([0.0, ROD["t"]], dtype=T0.dtype)
        settings = {"method": "dopri5", "rtol": 1e-8, "atol": 1e-8}
        if adjoint:
            extra = {"adjoint_params": (G, f)}
            return torchdiffeq.odeint_adjoint(rate, T0, times, **settings, **extra)[-1]
        return torchdiffeq.odeint(rate, T0, times, **settings)[-1]

    return torch_call(problem, solution)


def scipy_bdf(problem: Problem) -> Call:
    from scipy.integrate import solve_ivp

    T0, k, q, T_ext, _ = problem.inputs()
    G = conductances(k, lambda parts: np.concatenate(parts, axis=-1))
    f = load(q, T_ext, G, lambda parts: np.concatenate(parts, axis=-1))

    def one(T0: Any, G: Any, f: Any) -> Any:
        from scipy.sparse import diags_array

        A = diags_array(
            [G[1:-1], -(G[:-1] + G[1:]), G[1:-1]], offsets=[-1, 0, 1], shape=(len(T0),) * 2
        ).tocsc()
        run = solve_ivp(
            lambda t, T: A @ T + f, (0, ROD["t"]), T0, "BDF", jac=A, rtol=1e-8, atol=1e-8
        )
        return run.y[:, -1]

    return lambda: (np.stack([one(*rod) for rod in zip(T0, G, f, strict=True)]), None)


def scipy_expm(problem: Problem) -> Call:
    from scipy.linalg import expm

    T0, k, q, T_ext, _ = problem.inputs()
    G = conductances(k, lambda parts: np.concatenate(parts, axis=-1))
    f = load(q, T_ext, G, lambda parts: np.concatenate(parts, axis=-1))

    def one(T0: Any, G: Any, f: Any) -> Any:
        A = np.diag(-(G[:-1] + G[1:])) + np.diag(G[1:-1], 1) + np.diag(G[1:-1], -1)
        generator = np.block([[A, f[:, None]], [np.zeros((1, len(f) + 1))]])
        return (expm(ROD["t"] * generator) @ np.append(T0, 1.0))[:-1]

    return lambda: (np.stack([one(*rod) for rod in zip(T0, G, f, strict=True)]), None)


def matrices(problem: Problem, count: float) -> float:
    """Return the memory, bytes, that so many (batch, n, n) arrays take."""
    return 8.0 * count * problem.batch * problem.n**2


def _peers() -> Iterator[Peer]:
    for poles in (14, 8):
        yield Peer(f"heat1d, {poles} poles", partial(ours, poles=poles), family="heat1d")
    yield Peer("heat1d, 14 poles (forward only)", ours_forward, family="heat1d")
    schemes = (("implicit Euler", EULER, 100), ("SDIRK 2", SDIRK2, 100))
    for name, scheme, steps in (*schemes, ("SDIRK 4", SDIRK4, 30), ("SDIRK 4", SDIRK4, 300)):
        stepping = partial(jax_stepping, scheme=scheme, steps=steps)
        yield Peer(f"JAX, {name}, {steps} steps", stepping, ("jax",), family="JAX")
    of_lu, of_expm = partial(matrices, count=5), partial(matrices, count=30)
    yield Peer("torch, LU, SDIRK 2, 100 steps", torch_lu, memory=of_lu, family="torch")
    yield Peer("torch, matrix_exp", torch_expm, memory=of_expm, family="torch")
    for name, adjoint in (("dopri5", False), ("dopri5, adjoint", True)):
        dopri5 = partial(torchdiffeq_dopri5, adjoint=adjoint)
        yield Peer(f"torchdiffeq, {name}", dopri5, ("torchdiffeq",), family="torchdiffeq")
    yield Peer("SciPy, BDF (forward only)", scipy_bdf, family="SciPy")
    yield Peer("SciPy, expm (forward only)", scipy_expm, family="SciPy")


COLOURS = {
    "heat1d": "#1f5fa8",
    "JAX": "#d9772b",
    "torch": "#4c9a52",
    "torchdiffeq": "#8a6fb0",
    "SciPy": "#6b7280",
}


def main() -> None:
    contest.main(
        __doc__ or "",
        list(_peers()),
        [Problem(n, batch) for batch in BATCHES for n in CELLS],
        reference,
        rows=[f"batch {b}" for b in BATCHES],
        columns=[f"n = {n}" for n in CELLS],
        colours=COLOURS,
    )


if __name__ == "__main__":
    main()

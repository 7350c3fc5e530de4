"""The trajectory, against what is known of pendulums in closed form.

Without damping and drive the solution is elliptic [1]_. With ``w = sqrt(g / L)``, released at rest
at theta0, ``k = sin(theta0 / 2)`` and ``m = k^2``:

    theta = 2 arcsin(k cd(w t | m)),    period = 4 K(m) / w.

Started at the bottom with omega0 > 2 w it turns over the top for ever; ``m = (2 w / omega0)^2``,

    theta = 2 am(omega0 t / 2 | m).

Small swings obey a linear equation, whose solution is elementary with damping and drive as well.

References
----------
.. [1] NIST Digital Library of Mathematical Functions, section 22.19(i),
   https://dlmf.nist.gov/22.19#i
"""

from functools import partial

import jax
import numpy as np
import pytest
from scipy.special import ellipj, ellipkm1

from adeptml_pendulum_jax.pendulum import trajectory
from adeptml_pendulum_jax.solver import forward

GRAVITY = 9.80665  # m/s^2, written out: the solver's own constant is on trial too
SWINGS = (0.1, 1.0, 2.0, 3.0)
SMALL = 1e-6  # rad: sin(theta) differs from theta by 2e-13 of it


def solve(x, params, **options):
    """Return the trajectory alone."""
    return forward(np.array(x, dtype=float), np.array(params, dtype=float), **options)[0]


def times(dt, steps):
    """Return the times of the states."""
    return dt * np.arange(1, steps + 1)


@pytest.mark.parametrize("theta0", SWINGS)
@pytest.mark.parametrize("L", [0.5, 2.0])
def test_period_is_that_of_the_complete_elliptic_integral(theta0, L):
    """After 4 K(m) / w the pendulum is at rest again: its remaining velocity is a delay."""
    w = np.sqrt(GRAVITY / L)
    period = 4 * ellipkm1(np.cos(theta0 / 2) ** 2) / w
    steps = 100
    theta, omega = solve([[theta0, 0]], [L, 0, 0, 0], dt=period / steps, steps=steps, substeps=2)[
        0, -1
    ]
    delay = omega / (w**2 * np.sin(theta0))
    assert abs(delay) < 1e-12 * period
    assert theta == pytest.approx(theta0, rel=1e-12)


def test_swings_are_jacobi_elliptic_functions():
    """Ten seconds at any amplitude, with the two substeps that are the default."""
    dt, steps = 0.05, 200
    k = np.sin(np.array(SWINGS) / 2)[:, None]
    w = np.sqrt(GRAVITY)
    quarter = ellipkm1(1 - k**2)
    sn, cn, dn, _ = ellipj(quarter - w * times(dt, steps), k**2)  # cd(u) = sn(K - u)
    exact = np.stack([2 * np.arctan2(k * sn, dn), -2 * k * w * cn], axis=-1)
    x = np.stack([SWINGS, np.zeros(4)], axis=1)
    got = solve(x, [1.0, 0, 0, 0], dt=dt, steps=steps, substeps=2)
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-9)


def test_over_the_top_theta_is_the_amplitude_function():
    """At omega0 = 3 w the pendulum turns over; theta grows beyond 2 pi and is not folded back."""
    dt, steps = 0.05, 100
    w = np.sqrt(GRAVITY)
    omega0 = 3 * w
    m = (2 * w / omega0) ** 2
    _, _, dn, amplitude = ellipj(omega0 * times(dt, steps) / 2, m)
    got = solve([[0, omega0]], [1.0, 0, 0, 0], dt=dt, steps=steps, substeps=4)[0]
    exact = np.stack([2 * amplitude, omega0 * dn], axis=-1)
    assert exact[-1, 0] > 6 * np.pi
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("steps", "tolerance"), [(200, 1e-11), (2000, 1e-10)])
def test_energy_does_not_drift(steps, tolerance):
    """Without damping and drive ``omega^2 / 2 - (g / L) cos(theta)`` stays, 10 s and 100 s long."""
    x = np.stack([SWINGS, np.full(4, 0.3)], axis=1)
    y = solve(x, [1.0, 0, 0, 0], dt=0.05, steps=steps, substeps=2)
    energy = y[..., 1] ** 2 / 2 - GRAVITY * np.cos(y[..., 0])
    start = x[:, 1] ** 2 / 2 - GRAVITY * np.cos(x[:, 0])
    assert np.abs(energy - start[:, None]).max() < tolerance


@pytest.mark.parametrize("c", [0.0, 0.4, 8.0], ids=["undamped", "underdamped", "overdamped"])
def test_small_free_swings_are_damped_oscillations(c):
    """``theta = exp(-c t / 2) (cosh(s t) + c / (2 s) sinh(s t)) theta0``, s imaginary or real."""
    t = times(0.05, 200)
    s = np.sqrt(complex(c**2 / 4 - GRAVITY))
    decay = SMALL * np.exp(-c * t / 2)
    theta = decay * (np.cosh(s * t) + c / (2 * s) * np.sinh(s * t)).real
    omega = -decay * GRAVITY * (np.sinh(s * t) / s).real
    got = solve([[SMALL, 0]], [1.0, c, 0, 0], dt=0.05, steps=200, substeps=2)[0]
    exact = np.stack([theta, omega], axis=-1)
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-10 * SMALL)


@pytest.mark.parametrize("Omega", [0.0, 2.0, np.sqrt(GRAVITY)], ids=["torque", "below", "resonant"])
def test_small_driven_swings_are_those_of_the_linear_oscillator(Omega):
    """Started on the steady motion ``Re(H A exp(i Omega t))``, the pendulum stays on it."""
    c, A = 0.5, SMALL
    t = times(0.05, 200)
    H = 1 / (GRAVITY - Omega**2 + 1j * c * Omega)
    motion = H * A * np.exp(1j * Omega * np.append(0, t))
    exact = np.stack([motion.real, (1j * Omega * motion).real], axis=-1)
    got = solve(exact[:1], [1.0, c, A, Omega], dt=0.05, steps=200, substeps=2)[0]
    np.testing.assert_allclose(got, exact[1:], rtol=0, atol=1e-10 * SMALL)


def test_resonance_without_damping_grows_linearly():
    """From rest at Omega = w: ``theta = A t sin(w t) / (2 w)``; no steady motion exists."""
    w = np.sqrt(GRAVITY / 2)
    t = times(0.05, 200)
    exact = SMALL * t * np.sin(w * t) / (2 * w)
    got = solve([[0, 0]], [2.0, 0, SMALL, w], dt=0.05, steps=200, substeps=2)[0, :, 0]
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-10 * SMALL)


def test_error_falls_at_least_as_the_eighth_power_of_the_step():
    """Halving the step divides the error of ten-second swings by 2^8 or more.

    More, because the leading coefficients of this method are so small that the next order shows.
    """
    model = partial(jax.jit, static_argnames=("steps", "substeps"))(trajectory)
    with jax.enable_x64(True):
        x = np.stack([np.linspace(0.5, 2.5, 16), np.zeros(16)], axis=1)
        params = np.array([1.0, 0.1, 0.5, 2.0])
        fine, coarse, halved = (
            np.asarray(model(x, params, 0.5, steps=20, substeps=n)[0]) for n in (40, 3, 6)
        )
    errors = [np.sqrt(np.mean((y - fine) ** 2)) for y in (coarse, halved)]
    assert errors[1] > 1e-11  # well above rounding
    assert np.log2(errors[0] / errors[1]) > 7.8


def test_the_last_state_is_where_to_go_on():
    """``y[:, -1]`` as the next x continues the trajectory: no state is doubled, none is lost."""
    params = [1.0, 0.2, 0, 0]
    whole = solve([[2.0, 1.0]], params, dt=0.05, steps=200, substeps=2)
    half = solve([[2.0, 1.0]], params, dt=0.05, steps=100, substeps=2)
    rest = solve(half[:, -1], params, dt=0.05, steps=100, substeps=2)
    np.testing.assert_allclose(np.concatenate([half, rest], axis=1), whole, rtol=0, atol=1e-13)


def test_shared_params_are_those_of_each_sample():
    """``(4,)`` and ``(batch, 4)`` of equal rows give the same trajectories."""
    x, params = np.array([[0.1, 0], [1.0, 1.0], [-2.0, 0.5]]), np.array([0.8, 0.2, 1.0, 3.0])
    options = {"dt": 0.05, "steps": 20, "substeps": 2}
    shared, each = solve(x, params, **options), solve(x, np.tile(params, (3, 1)), **options)
    np.testing.assert_allclose(shared, each, rtol=0, atol=1e-14)

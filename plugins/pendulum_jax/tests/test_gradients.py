"""The pullback: exact, linear, and the transpose of the tangent."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from adeptml_pendulum_jax.solver import example, forward, jvp

GRAVITY = 9.80665  # m/s^2
OPTIONS = {"dt": 0.05, "steps": 20, "substeps": 2}
TIMES = 0.05 * np.arange(1, 21)

# Sums of some hundred rounded terms: 1e-16 of the largest, times a hundred.
ROUNDING = 1e-14


def sensitivities(x, params):
    """Return d(trajectory)/d(x, params) of one sample, shape (steps, 2, 6).

    From SciPy's integrator at its tightest, by the complex step: with no difference of two close
    numbers there is no cancellation, and an imaginary part of 1e-20 is no perturbation.
    """

    def slope(t, state, L, c, A, Omega):
        theta, omega = state
        return omega, -GRAVITY / L * np.sin(theta) - c * omega + A * np.cos(Omega * t)

    columns = []
    for index in range(6):
        inputs = np.append(x, params).astype(complex)
        inputs[index] += 1e-20j
        run = solve_ivp(
            slope,
            (0, TIMES[-1]),
            inputs[:2],
            "DOP853",
            max_step=0.01,
            t_eval=TIMES,
            args=tuple(inputs[2:]),
            rtol=1e-13,
            atol=1e-15,
        )
        columns.append(run.y.imag.T / 1e-20)
    return np.stack(columns, axis=-1)


@pytest.fixture(scope="module")
def inputs():
    """Return four samples and a cotangent of their trajectories."""
    rng = np.random.default_rng(7)
    return *example(rng, 4), rng.normal(size=(4, 20, 2))


def test_pullback_is_the_derivative_of_the_flow(inputs):
    """All six derivatives of four trajectories agree with SciPy and the complex step."""
    x, params, g = inputs
    dx, dparams = forward(x, params, **OPTIONS)[1](g)
    expected = np.stack(
        [np.tensordot(g[row], sensitivities(x[row], params[row]), axes=2) for row in range(4)]
    )
    got = np.concatenate([dx, dparams], axis=1)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize("index", range(4), ids=["L", "c", "A", "Omega"])
def test_each_parameter_has_its_own_cotangent(inputs, index):
    """A difference of order 6 in one parameter alone sees that parameter's cotangent alone."""
    x, params, g = inputs
    step = 1e-2  # truncation (1e-2)^6 = 1e-12, rounding 1e-16 / 1e-2
    stencil = {-3: -1 / 60, -2: 3 / 20, -1: -3 / 4, 1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
    offset = step * np.eye(4)[index]
    expected = sum(
        weight * (g * forward(x, params + shift * offset, **OPTIONS)[0]).sum((1, 2)) / step
        for shift, weight in stencil.items()
    )
    got = forward(x, params, **OPTIONS)[1](g)[1][:, index]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9 * max(1, np.abs(got).max()))


def test_at_rest_the_derivative_is_the_linear_propagator():
    """About theta = 0 the change of state turns as ``[[cos, sin / w], [-w sin, cos]]``."""
    w = np.sqrt(GRAVITY)
    y, pullback = forward(np.zeros((1, 2)), np.array([1.0, 0, 0, 0]), **OPTIONS)
    propagator = np.array([[np.cos(w), np.sin(w) / w], [-w * np.sin(w), np.cos(w)]])
    for row in range(2):
        g = np.zeros_like(y)
        g[0, -1, row] = 1
        np.testing.assert_allclose(pullback(g)[0][0], propagator[row], rtol=0, atol=1e-12)


def test_upright_the_derivative_grows_exponentially():
    """About theta = pi it is hyperbolic: right where the pendulum is at its most sensitive."""
    w = np.sqrt(GRAVITY / 0.5)
    x, params = np.array([[np.pi, 0.0]]), np.array([0.5, 0, 0, 0])
    y, pullback = forward(x, params, **OPTIONS)
    g = np.zeros_like(y)
    g[0, -1, 0] = 1
    np.testing.assert_allclose(pullback(g)[0][0], [np.cosh(w), np.sinh(w) / w], rtol=1e-9, atol=0)


def test_pullback_is_the_transpose_of_the_tangent(inputs):
    """``g . (J v) = (J^T g) . v`` for random g and v, row by row."""
    x, params, g = inputs
    v = np.random.default_rng(8).normal(size=x.shape)
    dx, _ = forward(x, params, **OPTIONS)[1](g)
    dy = jvp(x, v, params, **OPTIONS)
    np.testing.assert_allclose(
        (g * dy).sum(axis=(1, 2)),
        (dx * v).sum(axis=1),
        rtol=0,
        atol=ROUNDING * np.linalg.norm(g) * np.linalg.norm(dy),
    )


def test_pullback_is_linear(inputs):
    """``pullback(2 g - 3 g') = 2 pullback(g) - 3 pullback(g')``."""
    x, params, g = inputs
    other = np.random.default_rng(9).normal(size=g.shape)
    pullback = forward(x, params, **OPTIONS)[1]
    for mixed, first, second in zip(
        pullback(2 * g - 3 * other), pullback(g), pullback(other), strict=True
    ):
        scale = np.abs(first).max() + np.abs(second).max()
        np.testing.assert_allclose(mixed, 2 * first - 3 * second, atol=10 * ROUNDING * scale)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_shared_params_have_the_sum_of_the_cotangents(inputs, batch):
    """Over params that the batch shares the cotangent is summed; rows of padding add nothing."""
    x, params, g = inputs
    x, g, shared = x[:batch], g[:batch], params[0]
    dx, dshared = forward(x, shared, **OPTIONS)[1](g)
    dx_each, deach = forward(x, np.tile(shared, (batch, 1)), **OPTIONS)[1](g)
    assert dshared.shape == (4,)
    scale = np.abs(deach).sum(axis=0)
    np.testing.assert_allclose(dx, dx_each, atol=ROUNDING * np.abs(dx_each).max())
    np.testing.assert_allclose(dshared, deach.sum(axis=0), rtol=0, atol=ROUNDING * scale.max())


def test_rows_do_not_feel_each_other(inputs):
    """A sample has the same trajectory and cotangents alone, in company, and beside padding."""
    x, params, g = inputs
    y, pullback = forward(x, params, **OPTIONS)
    y_three, pullback_three = forward(x[1:], params[1:], **OPTIONS)
    np.testing.assert_allclose(y_three, y[1:], rtol=0, atol=ROUNDING * 10)
    for three, four in zip(pullback_three(g[1:]), pullback(g), strict=True):
        np.testing.assert_allclose(three, four[1:], rtol=0, atol=ROUNDING * 10 * np.abs(four).max())

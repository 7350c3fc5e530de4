"""The declared bounds are a promise, and what lies beyond is refused rather than guessed."""

import numpy as np
import pytest

from adeptml_core.errors import SampleError
from adeptml_pendulum_jax import dormand_prince
from adeptml_pendulum_jax.plugin import adeptml_solvers
from adeptml_pendulum_jax.solver import ERROR_LIMIT, SMALL_SWING, example, forward, jvp

OPTIONS = {"dt": 0.05, "steps": 40, "substeps": 2}
[SPEC] = adeptml_solvers()


def from_bounds(batch):
    """Draw inputs from within the bounds, a third of the numbers from the bounds themselves."""
    rng = np.random.default_rng(5)
    drawn = []
    for array in SPEC.inputs:
        low, high = np.array(array.low), np.array(array.high)
        position = rng.uniform(-0.25, 1.25, (batch, *array.shape)).clip(0, 1)
        drawn.append(low + position * (high - low))
    return drawn


def test_within_the_bounds_results_are_finite_and_as_exact_as_promised():
    """Of 256 draws none is refused; four times as many substeps change them by 1e-8 at most."""
    x, params = from_bounds(256)
    y, pullback = forward(x, params, **OPTIONS)
    dx, dparams = pullback(np.ones_like(y))
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()
    assert np.isfinite(dparams).all()
    finer = forward(x, params, **OPTIONS | {"substeps": 8})[0]
    assert np.abs(y - finer).max() < 1e-8


def test_within_the_bounds_little_is_amplified():
    """No derivative in the initial state is beyond the 7e3 of an upright pendulum of 0.5 m."""
    x, params = from_bounds(256)
    tangents = [jvp(x, np.broadcast_to(e, x.shape), params, **OPTIONS) for e in np.eye(2)]
    assert max(np.abs(tangent).max() for tangent in tangents) < 1e4


def test_example_lies_within_the_bounds_and_varies():
    """``example`` gives inputs to which the promise applies, no two alike."""
    x, params = example(np.random.default_rng(0), 64)
    for array, values in zip(SPEC.inputs, (x, params), strict=True):
        assert (np.array(array.low) <= values).all()
        assert (values <= np.array(array.high)).all()
        assert len(np.unique(values, axis=0)) == 64


@pytest.mark.parametrize(
    ("index", "value", "said"),
    [
        (0, 0.0, "L = params[0] = 0 m"),
        (0, -0.5, "L = params[0] = -0.5 m"),
        (1, -0.1, "c = params[1] = -0.1 1/s"),
        (2, np.nan, "nan 1/s^2"),
        (3, np.inf, "inf rad/s"),
    ],
)
@pytest.mark.parametrize("function", ["forward", "jvp"])
def test_params_that_make_no_pendulum_are_refused(index, value, said, function):
    """The error names the sample, the parameter, its value and its unit."""
    x, params = example(np.random.default_rng(0), 5)
    params[3, index] = value
    call = forward if function == "forward" else lambda x, *rest, **o: jvp(x, x, *rest, **o)
    with pytest.raises(SampleError) as raised:
        call(x, params, **OPTIONS)
    assert raised.value.row == 3
    assert said in raised.value.reason


def test_shared_params_that_make_no_pendulum_are_refused_for_the_first_sample():
    """What all samples share is wrong for the first of them."""
    x, _ = example(np.random.default_rng(0), 5)
    with pytest.raises(SampleError, match=r"L = params\[0\] = -1 m") as raised:
        forward(x, np.array([-1.0, 0, 0, 0]), **OPTIONS)
    assert raised.value.row == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_refused(value):
    """NaN would otherwise come back as a trajectory of NaN."""
    x, params = example(np.random.default_rng(0), 5)
    x[2, 1] = value
    with pytest.raises(SampleError, match="rad/s\\): not finite") as raised:
        forward(x, params, **OPTIONS)
    assert raised.value.row == 2


def test_a_step_that_is_too_long_is_refused_and_the_mend_works():
    """A 2 mm pendulum does not fit steps of 25 ms: the error says how many substeps it takes."""
    x, params = example(np.random.default_rng(0), 2)
    x[1], params[1, 0] = (0.02, 0.0), 2e-3
    for function in (forward, lambda x, *rest, **options: jvp(x, x, *rest, **options)):
        with pytest.raises(SampleError, match="25 s is too long") as raised:
            function(x, params, **OPTIONS)
        assert raised.value.row == 1
        assert "0.002 m" in raised.value.reason
        assert raised.value.reason.endswith("sqrt(g / L) = 70.0237 1/s. Set substeps = 5 or more")
    with pytest.raises(SampleError, match=r"estimated error is 5\.0e-06 rad") as raised:
        forward(x, params, **OPTIONS | {"substeps": 5})
    assert raised.value.reason.endswith("Try substeps = 7 or more")
    wanted, finer = 7, OPTIONS | {"substeps": 7}
    y, pullback = forward(x, params, **finer)
    best, best_pullback = forward(x, params, **OPTIONS | {"substeps": 8 * wanted})
    np.testing.assert_allclose(y, best, atol=10 * ERROR_LIMIT)
    g = np.ones_like(y)
    for got, expected in zip(pullback(g), best_pullback(g), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "params", "dt", "substeps"),
    [
        ((0.0, 5.0), (1.0, 226.22, 0.0, 0.0), 0.05, 2),  # d5 = 0 at z = -5.65
        ((0.01, 0.0), (0.2775, 6.067, 0.0, 0.0), 1.0, 1),  # and at z = -3.03 +- 5.11i
        ((0.02, 0.0), (2.5, 2.0222, 0.0, 0.0), 3.0, 1),
        ((0.5, 0.0), (1.0, 0.1, 0.0, 1000.0), 0.05, 2),  # A = 0: y knows nothing of Omega
        ((0.0, 0.0), (1.0, 500.0, 0.0, 0.0), 0.05, 2),  # at rest: y = 0, however it is stepped
        ((0.0, 0.0), (1e-4, 0.1, 0.0, 0.0), 0.05, 2),
        ((0.0, 0.0), (1e-200, 0.1, 0.0, 0.0), 0.05, 2),
        ((0.0, 0.0), (1e-310, 0.1, 0.0, 0.0), 0.05, 2),  # g / L overflows
    ],
)
def test_what_the_estimate_cannot_see_is_refused(x, params, dt, substeps):
    """Steps far too long, for which the embedded methods agree, or which a derivative feels."""
    with pytest.raises(SampleError, match="s is too long for"):
        forward(np.array([x]), np.array(params), dt=dt, steps=3, substeps=substeps)


def test_a_small_swing_errs_as_is_said():
    """``|R(iz) - exp(iz)|`` is at most 7e-8 z^9 for a swing within a radian, and not much less."""
    stages = len(dormand_prince.STAGES)
    A, b = np.zeros((stages, stages)), np.zeros(stages)
    for row, coefficients in enumerate(dormand_prince.STAGES):
        A[row, list(coefficients)] = list(coefficients.values())
    b[list(dormand_prince.WEIGHTS)] = list(dormand_prince.WEIGHTS.values())
    for z in (0.5, 0.7, 1.0):
        R = 1 + 1j * z * b @ np.linalg.solve(np.eye(stages) - 1j * z * A, np.ones(stages))
        assert 0.5 * SMALL_SWING < abs(R - np.exp(1j * z)) / z**9 <= SMALL_SWING
    assert ERROR_LIMIT == 1e-6  # as the README has it


@pytest.mark.parametrize("c", [1e3, 1e6, 1e9, 1e300])
def test_damping_beyond_the_methods_stability_is_refused(c):
    """It would blow up, to infinity and NaN."""
    x, params = example(np.random.default_rng(0), 2)
    params[1, 1] = c
    said = "with c = 1000 1/s. Set substeps = 93 or more" if c == 1e3 else "with c = 1e"
    with pytest.raises(SampleError, match=said) as raised:
        forward(x, params, **OPTIONS)
    assert raised.value.row == 1


def test_a_trajectory_that_overflows_is_refused():
    """The estimate is NaN or infinite then."""
    x, params = example(np.random.default_rng(0), 2)
    params[1, 2] = 1e300
    with pytest.raises(SampleError, match="Nothing is resolved: try substeps = 20, and") as raised:
        forward(x, params, **OPTIONS)
    assert raised.value.row == 1


def test_what_is_not_refused_is_right():
    """Of trajectories with coarse steps, those let pass err by no more than ten times the limit."""
    rng = np.random.default_rng(1)
    errors = []
    for row in range(24):
        x, params = example(rng, 1)
        try:
            y, _ = forward(x, params, dt=0.1 + 0.02 * row, steps=4, substeps=1)
        except SampleError:
            continue
        fine, _ = forward(x, params, dt=0.1 + 0.02 * row, steps=4, substeps=32)
        errors.append(np.abs(y - fine).max())
    assert 4 <= len(errors) <= 20
    assert max(errors) < 10 * ERROR_LIMIT

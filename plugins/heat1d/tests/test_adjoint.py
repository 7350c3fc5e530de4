"""The derivatives, against the complex step, exact differences and the dot-product test."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from adeptml_heat1d import conductivity, evolution, propagator, solver, tridiagonal

NAMES = ("T0", "k", "q", "T_ext")
STEP = 1e-40


@pytest.fixture(params=["block", "ladder"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test of this module on both kinds of sweep."""
    monkeypatch.setattr(tridiagonal, "NARROW", 10**9 if request.param == "block" else -1)


def draw(rng: np.random.Generator, batch: int, n: int) -> dict[str, NDArray]:
    return {
        "T0": rng.normal(size=(batch, n)),
        "k": rng.lognormal(0.0, 1.0, (batch, n)),
        "q": rng.normal(size=(batch, n)),
        "T_ext": rng.normal(size=(batch, 2)),
    }


def gradients(inputs: dict[str, NDArray], g: NDArray, **options: float) -> dict[str, NDArray]:
    _, pullback = solver.forward(*(inputs[name] for name in NAMES), **options)
    return dict(zip(NAMES, pullback(g), strict=True))


def complex_step(
    solution: Callable[..., NDArray], inputs: dict[str, NDArray], g: NDArray, **options: float
) -> dict[str, NDArray]:
    """Differentiate g . T of one sample through the dense exponential, entry by entry."""
    result = {}
    for name, value in inputs.items():
        result[name] = np.empty(value.shape)
        for entry in range(value.size):
            stepped = value + 1j * STEP * (np.arange(value.size) == entry)
            T = solution(*(stepped if key == name else inputs[key] for key in NAMES), **options)
            result[name][entry] = (g @ T).imag / STEP
    return result


@pytest.mark.parametrize("n", [1, 2, 6])
def test_pullback_is_the_complex_step(
    n: int, options: dict[str, float], dense_solution: Callable, rng: np.random.Generator
) -> None:
    """All four gradients, for all ends (the singular insulated rod among them).

    The rational function's derivative differs from the exponential's by up to 2e-12 (its r'(0)),
    which sums up to some 1e-11 over the entries.
    """
    inputs, g = draw(rng, 2, n), rng.normal(size=(2, n))
    got = gradients(inputs, g, **options)
    for sample in range(2):
        expected = complex_step(
            dense_solution, {key: a[sample] for key, a in inputs.items()}, g[sample], **options
        )
        for name in NAMES:
            np.testing.assert_allclose(
                got[name][sample], expected[name], rtol=0, atol=2e-11, err_msg=name
            )


@pytest.mark.parametrize("n", [1, 2, 33])
def test_pullback_of_the_linear_inputs_is_exact(
    n: int, options: dict[str, float], rng: np.random.Generator
) -> None:
    """T is affine in T0, q and T_ext: a difference over a whole unit is their derivative."""
    inputs, g = draw(rng, 3, n), rng.normal(size=(3, n))
    grad = gradients(inputs, g, **options)
    T, _ = solver.forward(*inputs.values(), **options)
    for name in ("T0", "q", "T_ext"):
        d = rng.normal(size=inputs[name].shape)
        stepped, _ = solver.forward(
            *(inputs[key] + d if key == name else inputs[key] for key in NAMES), **options
        )
        there = ((stepped - T) * g).sum(axis=1)
        back = (d * grad[name]).sum(axis=1)
        # n roundings of numbers of order 1 to 10, amplified by the residues (106).
        np.testing.assert_allclose(there, back, rtol=0, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("n", [1, 2, 33])
def test_pullback_of_k_against_extrapolated_differences(
    n: int, options: dict[str, float], rng: np.random.Generator
) -> None:
    """Of the forward that we have, not of the exponential: sixth-order central differences.

    Steps h and weights of order 6: truncation h^6 = 1e-13 at h = 0.007, and rounding 1e-14 / h.
    """
    inputs, g, h = draw(rng, 3, n), rng.normal(size=(3, n)), 0.007
    d = inputs["k"] * rng.uniform(-1, 1, inputs["k"].shape)  # relative steps

    def objective(step: float) -> NDArray:
        T, _ = solver.forward(*{**inputs, "k": inputs["k"] + step * d}.values(), **options)
        return (T * g).sum(axis=1)

    weights = {1: 45 / 60, 2: -9 / 60, 3: 1 / 60}
    there = sum(w * (objective(i * h) - objective(-i * h)) for i, w in weights.items()) / h
    back = (d * gradients(inputs, g, **options)["k"]).sum(axis=1)
    np.testing.assert_allclose(there, back, rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch", [3, 40])
def test_faces_taken_a_few_at_a_time_are_all_taken(
    batch: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Wide batches go through the faces in blocks: what comes of it is what one block gives."""
    inputs, g = draw(rng, batch, 9), rng.normal(size=(batch, 9))
    whole = gradients(inputs, g)
    for faces in (1, 3):
        monkeypatch.setattr(evolution, "CACHED", faces * 7 * batch)
        for name, gradient in gradients(inputs, g).items():
            np.testing.assert_allclose(gradient, whole[name], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("k", [1e-8, 1e4, 1e8])
def test_logarithmic_gradient_of_k_keeps_its_accuracy(
    k: float, dense_solution: Callable, rng: np.random.Generator
) -> None:
    """The error of k dT/dk is a rounding of T, in the singular case too, for any conductor.

    A perfect conductor is perfectly mixed at any time, so k dT/dk tends to 0 there, as 1 / k; a
    perfect insulator has it proportional to k. The reference is exact in those limits.
    """
    insulated = {"h_left": 0.0, "h_right": 0.0}
    inputs, g = draw(rng, 1, 6), rng.normal(size=(1, 6))
    inputs["k"][:] = k
    inputs["q"][:] = 0
    got = k * gradients(inputs, g, **insulated)["k"][0]
    if k >= 1e4:
        expected = np.zeros(6)
    else:
        one = {key: a[0] for key, a in inputs.items()}
        expected = k * complex_step(dense_solution, one, g[0], **insulated)["k"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("shared", ["k", "q", "T_ext", "all"])
def test_shared_arg_sums_its_cotangent(
    batch: int, shared: str, options: dict[str, float], rng: np.random.Generator
) -> None:
    """A shared arg is the per-sample one with equal rows; its cotangent is the sum of theirs."""
    inputs, g = draw(rng, batch, 7), rng.normal(size=(batch, 7))
    names = NAMES[1:] if shared == "all" else (shared,)
    for name in names:
        inputs[name][:] = inputs[name][0]
    spread = gradients(inputs, g, **options)
    got = gradients({**inputs, **{name: inputs[name][0] for name in names}}, g, **options)
    for name in NAMES:
        expected = spread[name].sum(axis=0) if name in names else spread[name]
        assert got[name].shape == expected.shape
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("shared", [(), ("T0",), ("T0", "q", "T_ext")])
def test_vjp_mode_is_the_pullback(
    shared: tuple[str, ...], options: dict[str, float], rng: np.random.Generator
) -> None:
    """heat1d-conductivity returns the same numbers, k first, for shared and per-sample args."""
    inputs, g = draw(rng, 4, 9), rng.normal(size=(4, 9))
    for name in shared:
        inputs[name][:] = inputs[name][0]
    expected = gradients(inputs, g, **options)
    for name in shared:
        inputs[name], expected[name] = inputs[name][0], expected[name].sum(axis=0)
    T0, k, q, T_ext = inputs.values()
    got = conductivity.vjp(k, g, T0, q, T_ext, **options)
    for name, gradient in zip(("k", "T0", "q", "T_ext"), got, strict=True):
        assert gradient.shape == inputs[name].shape
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("n", [1, 2, 12])
def test_jacobian_mode_is_the_pullback(
    n: int, options: dict[str, float], rng: np.random.Generator
) -> None:
    """Contracting heat1d-propagator's Jacobian with a cotangent gives the pullback to T0."""
    inputs, g = draw(rng, 5, n), rng.normal(size=(5, n))
    inputs["k"] = inputs["k"][0]
    J = propagator.jacobian(*inputs.values(), **options)
    assert J.shape == (5, n, n)
    expected = gradients(inputs, g, **options)["T0"]
    np.testing.assert_allclose(np.einsum("bi,bij->bj", g, J), expected, rtol=0, atol=1e-12)


def test_jacobian_is_the_dense_exponential(
    options: dict[str, float], dense_solution: Callable, rng: np.random.Generator
) -> None:
    """Column j is what an impulse in cell j becomes."""
    n, k = 8, rng.lognormal(0.0, 1.0, 8)
    columns = [dense_solution(e, k, np.zeros(n), np.zeros(2), **options) for e in np.eye(n)]
    J = propagator.jacobian(np.zeros((1, n)), k, np.zeros(n), np.zeros(2), **options)
    np.testing.assert_allclose(J[0], np.transpose(columns), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_pullback_is_linear(
    scale: float, options: dict[str, float], rng: np.random.Generator
) -> None:
    """pullback(a g1 + g2) = a pullback(g1) + pullback(g2) to rounding."""
    inputs, g1, g2 = draw(rng, 3, 7), *rng.normal(size=(2, 3, 7))
    got = gradients(inputs, scale * g1 + g2, **options)
    first, second = gradients(inputs, g1, **options), gradients(inputs, g2, **options)
    for name in NAMES:
        expected = scale * first[name] + second[name]
        size = scale * np.abs(first[name]).max() + np.abs(second[name]).max()
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=1e-12 * size)

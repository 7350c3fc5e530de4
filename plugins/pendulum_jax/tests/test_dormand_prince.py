"""The Runge-Kutta method by itself: its coefficients, its order, its estimate of its own error."""

from collections import Counter
from functools import cache, partial
from itertools import combinations_with_replacement
from math import factorial, prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate._ivp import dop853_coefficients as published

from adeptml_pendulum_jax import dormand_prince
from adeptml_pendulum_jax.dormand_prince import NODES, STAGES, WEIGHTS, WEIGHTS_3, WEIGHTS_5
from adeptml_pendulum_jax.pendulum import trajectory

Tree = tuple["Tree", ...]
"""A rooted tree: the subtrees that hang from its root, sorted."""

# The coefficients reach 43 and cancel in sums of order 1/10: rounding, 1e-16, grows to some 1e-14.
ROUNDING = 1e-13


def dense(coefficients):
    """Return the coefficients of all twelve stages."""
    return np.array([coefficients.get(stage, 0.0) for stage in range(len(STAGES))])


A = np.array([dense(row) for row in STAGES])


@cache
def trees(order: int) -> tuple[Tree, ...]:
    """Return all rooted trees with `order` nodes."""
    return tuple(forest for forest in forests(order - 1, order - 1))


@cache
def forests(nodes: int, largest: int) -> tuple[Tree, ...]:
    """Return all multisets of trees with `nodes` nodes in all, none with more than `largest`."""
    if nodes == 0:
        return ((),)
    found = []
    for size in range(min(nodes, largest), 0, -1):
        for count in range(1, nodes // size + 1):
            for chosen in combinations_with_replacement(trees(size), count):
                rest = forests(nodes - size * count, size - 1)
                found += [chosen + others for others in rest]
    return tuple(found)


def size(tree: Tree) -> int:
    """Return the number of nodes."""
    return 1 + sum(map(size, tree))


def density(tree: Tree) -> int:
    """Return gamma: the product of the sizes of all subtrees."""
    return size(tree) * prod(map(density, tree))


def stage_values(tree: Tree) -> np.ndarray:
    """Return, for each stage, the product over the subtrees of ``A @ stage_values``."""
    return prod((A @ stage_values(branch) for branch in tree), start=np.ones(len(A)))


def defects(weights, order: int) -> np.ndarray:
    """Return ``sum b_i Phi_i(tree) - 1 / gamma(tree)`` for each tree of that order."""
    b = dense(weights)
    return np.array([b @ stage_values(tree) - 1 / density(tree) for tree in trees(order)])


def test_trees_are_counted_as_in_the_literature():
    """Cayley's numbers of rooted trees: a missing tree would be a missing condition."""
    assert [len(trees(order)) for order in range(1, 10)] == [1, 1, 2, 4, 9, 20, 48, 115, 286]
    assert max(Counter(trees(8)).values()) == 1


@pytest.mark.parametrize(
    ("weights", "order"), [(WEIGHTS, 8), (WEIGHTS_5, 5), (WEIGHTS_3, 3)], ids=["8", "5", "3"]
)
def test_order_conditions_hold_up_to_the_order_and_no_further(weights, order):
    """Butcher's conditions, 200 of them for order 8, hold to rounding; the next order's do not."""
    for lower in range(1, order + 1):
        assert np.abs(defects(weights, lower)).max() < ROUNDING
    assert np.abs(defects(weights, order + 1)).max() > 1e-6


def test_nodes_are_the_row_sums():
    """``c_i = sum_j a_ij``: a stage is at least a consistent step to its node."""
    np.testing.assert_allclose(A.sum(axis=1), NODES, rtol=0, atol=ROUNDING)


def test_coefficients_are_those_of_dop853():
    """SciPy carries the same published coefficients, to the last bit of double precision."""
    stages = published.N_STAGES
    np.testing.assert_array_equal(A, published.A[:stages, :stages])
    np.testing.assert_array_equal(NODES, published.C[:stages])
    np.testing.assert_array_equal(dense(WEIGHTS), published.B)
    np.testing.assert_array_equal(dense(dormand_prince.DISTANCE_5), published.E5[:stages])
    np.testing.assert_array_equal(dense(dormand_prince.DISTANCE_3), published.E3[:stages])


def oscillator_step(h):
    """Return the error of one step of ``y1' = y2, y2' = -y1``, and its estimate."""
    with jax.enable_x64(True):
        y, estimate = dormand_prince.step(
            lambda stage, y: jnp.stack([y[1], -y[0]]), jnp.array([1.0, 0.0]), h
        )
        return float(np.hypot(y[0] - np.cos(h), y[1] + np.sin(h))), float(estimate)


def test_one_step_errs_as_the_ninth_power_and_the_estimate_as_the_eighth():
    """Halving a step divides its error by 2^9 and the estimate by 2^8, which stays above it."""
    errors, estimates = np.transpose([oscillator_step(h) for h in (0.8, 0.4)])
    assert np.log2(errors[0] / errors[1]) == pytest.approx(9, abs=0.1)
    assert np.log2(estimates[0] / estimates[1]) == pytest.approx(8, abs=0.1)
    assert (estimates > errors).all()


def test_the_estimate_is_that_of_dop853():
    """Hairer, Norsett and Wanner's formula, with SciPy's copy of the coefficients."""
    slopes, h = [], 0.7

    def slope(stage, y):
        slopes.append(jnp.stack([y[1], -jnp.sin(y[0])]))
        return slopes[-1]

    with jax.enable_x64(True):
        _, estimate = dormand_prince.step(slope, jnp.array([1.0, 0.5]), jnp.array(h))
        stages = np.stack(slopes)
    d5, d3 = (published.E5[:12] @ stages, published.E3[:12] @ stages)
    expected = h * (d5 @ d5) / np.sqrt(d5 @ d5 + 0.01 * (d3 @ d3))
    assert float(estimate) == pytest.approx(expected, rel=1e-9)


def test_the_estimates_of_all_steps_are_added():
    """Twice the steps, in a swing that goes on as it was, are twice the error."""
    with jax.enable_x64(True):
        x, params = jnp.array([[0.1, 0.0]]), jnp.array([1.0, 0.0, 0.0, 0.0])
        once, twice = (
            float(trajectory(x, params, 0.5, steps=steps, substeps=1)[1][0]) for steps in (40, 80)
        )
    assert twice == pytest.approx(2 * once, rel=0.05)


def test_a_state_at_rest_has_no_error():
    """Where all slopes vanish the estimate is 0, not 0 / 0."""
    with jax.enable_x64(True):
        y, estimate = dormand_prince.step(lambda stage, y: 0 * y, jnp.ones((2, 3)), jnp.array(0.1))
        assert np.asarray(y).tolist() == np.ones((2, 3)).tolist()
        assert np.asarray(estimate).tolist() == [0.0, 0.0, 0.0]


def test_the_drive_is_seen_at_the_nodes():
    """``y' = t^7`` is integrated exactly from 0 to 1: the stages lie at `NODES`."""
    with jax.enable_x64(True):
        step = partial(dormand_prince.step, lambda stage, y: jnp.full_like(y, NODES[stage] ** 7))
        y, _ = step(jnp.zeros(1), jnp.array(1.0))
        assert float(y[0]) == pytest.approx(factorial(7) / factorial(8), abs=1e-14)

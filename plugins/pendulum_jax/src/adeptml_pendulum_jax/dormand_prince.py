r"""One step of the explicit Runge-Kutta method of order 8 by Dormand and Prince.

For :math:`\dot y = f(t, y)` a step of length h takes twelve slopes and mixes them:

.. math::  k_i = f\Big(t + c_i h, \; y + h \sum_{j < i} a_{ij} k_j\Big), \qquad
           y(t + h) \approx y + h \sum_i b_i k_i .

The local error is of order :math:`h^9`. Why not the fourth order that everybody knows? The pendulum
is smooth, and on smooth problems high order is cheap accuracy: halving h costs 2 and gains 256.

**Two more mixtures of the same slopes** cost next to nothing: results of order 5 and 3, whose
distances :math:`d_5` and :math:`d_3` from the result of order 8 Hairer, Nørsett and Wanner combine
into an estimate of the local error,

.. math::  e = \|d_5\| \, \frac{\|d_5\|}{\sqrt{\|d_5\|^2 + 0.01 \, \|d_3\|^2}} ,

which falls as :math:`h^8`, one order more slowly than the error itself: an estimate on the safe
side. Programs with a variable step steer by it. Here the step is fixed, so that shapes are static
and the derivative of the result is the derivative of a plain composition of functions; the estimate
serves to refuse a step that is too long, instead of returning a trajectory that is wrong.

The coefficients are those of the program DOP853 [1]_, rounded to double precision. A test holds
them against all 200 order conditions, another against SciPy's copy.

References
----------
.. [1] E. Hairer, S. P. Nørsett, G. Wanner, "Solving Ordinary Differential Equations I: Nonstiff
   Problems", 2nd ed., Springer 1993, sections II.5 and II.10,
   https://doi.org/10.1007/978-3-540-78862-1
.. [2] P. J. Prince, J. R. Dormand, "High order embedded Runge-Kutta formulae", J. Comput. Appl.
   Math. 7 (1981) 67-75, https://doi.org/10.1016/0771-050X(81)90010-3
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

__all__ = ["NODES", "STAGES", "WEIGHTS", "WEIGHTS_3", "WEIGHTS_5", "step"]

Slope = Callable[[int, jax.Array], jax.Array]
"""``(stage, y) -> dy/dt`` at the time ``t + NODES[stage] * h``."""

Coefficients = Mapping[int, float]
"""Stage number to coefficient; the stages left out have coefficient 0."""

# fmt: off
NODES = (0.0, 0.05260015195876773, 0.0789002279381516, 0.1183503419072274, 0.2816496580927726,
         1 / 3, 1 / 4, 4 / 13, 127 / 195, 3 / 5, 6 / 7, 1.0)
"""``c_i``."""

STAGES: tuple[Coefficients, ...] = (
    {},
    {0: 0.05260015195876773},
    {0: 0.0197250569845379, 1: 0.0591751709536137},
    {0: 0.02958758547680685, 2: 0.08876275643042054},
    {0: 0.2413651341592667, 2: -0.8845494793282861, 3: 0.924834003261792},
    {0: 1 / 27, 3: 0.17082860872947386, 4: 0.12546768756682242},
    {0: 19 / 512, 3: 0.17025221101954405, 4: 0.06021653898045596, 5: -9 / 512},
    {0: 0.03709200011850479, 3: 0.17038392571223998, 4: 0.10726203044637328,
     5: -0.015319437748624402, 6: 0.008273789163814023},
    {0: 0.6241109587160757, 3: -3.3608926294469414, 4: -0.868219346841726, 5: 27.59209969944671,
     6: 20.154067550477894, 7: -43.48988418106996},
    {0: 0.47766253643826434, 3: -2.4881146199716677, 4: -0.590290826836843, 5: 21.230051448181193,
     6: 15.279233632882423, 7: -33.28821096898486, 8: -0.020331201708508627},
    {0: -0.9371424300859873, 3: 5.186372428844064, 4: 1.0914373489967295, 5: -8.149787010746927,
     6: -18.52006565999696, 7: 22.739487099350505, 8: 2.4936055526796523, 9: -3.0467644718982196},
    {0: 2.273310147516538, 3: -10.53449546673725, 4: -2.0008720582248625, 5: -17.9589318631188,
     6: 27.94888452941996, 7: -2.8589982771350235, 8: -8.87285693353063, 9: 12.360567175794303,
     10: 0.6433927460157636},
)
"""``a_ij``: row i mixes the slopes before stage i."""

WEIGHTS: Coefficients = {
    0: 0.054293734116568765, 5: 4.450312892752409, 6: 1.8915178993145003, 7: -5.801203960010585,
    8: 0.3111643669578199, 9: -0.1521609496625161, 10: 0.20136540080403034, 11: 0.04471061572777259,
}
"""``b_i``, of order 8."""

DISTANCE_5: Coefficients = {
    0: 0.01312004499419488, 5: -1.2251564463762044, 6: -0.4957589496572502, 7: 1.6643771824549864,
    8: -0.35032884874997366, 9: 0.3341791187130175, 10: 0.08192320648511571,
    11: -0.022355307863886294,
}
"""``b_i`` less those of the embedded method of order 5."""

WEIGHTS_3: Coefficients = {0: 0.2440944881889764, 8: 0.7338466882816118, 11: 3 / 136}
"""The embedded method of order 3."""
# fmt: on


def _less(left: Coefficients, right: Coefficients) -> Coefficients:
    stages = sorted(left.keys() | right.keys())
    return {stage: left.get(stage, 0.0) - right.get(stage, 0.0) for stage in stages}


WEIGHTS_5 = _less(WEIGHTS, DISTANCE_5)
"""The embedded method of order 5."""

DISTANCE_3 = _less(WEIGHTS, WEIGHTS_3)

TINY = 1e-300  # a pendulum at rest has d5 = d3 = 0, and the error 0 rather than 0 / 0


def step(slope: Slope, y: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Advance y from t to t + h.

    Parameters
    ----------
    slope : callable
        ``slope(stage, y) -> dy/dt``, of the shape of y, at the time ``t + NODES[stage] * h``. The
        stages are known beforehand, so what depends on time alone may be computed there.
    y : Array, shape (states, ...)
        State at t.
    h : Array, shape (), s
        Length of the step.

    Returns
    -------
    y : Array, shape (states, ...)
        State at t + h.
    error : Array, shape (...)
        Estimated local error, the Euclidean norm over the states. Its derivative is zero: the
        estimate judges the step and is no part of it.
    """
    slopes: list[jax.Array] = []
    for stage, row in enumerate(STAGES):
        slopes.append(slope(stage, y + h * _mix(row, slopes)))
    return y + h * _mix(WEIGHTS, slopes), _error(slopes, h)


def _mix(coefficients: Coefficients, slopes: Sequence[jax.Array]) -> jax.Array | float:
    return sum(coefficient * slopes[stage] for stage, coefficient in coefficients.items())


def _error(slopes: Sequence[jax.Array], h: jax.Array) -> jax.Array:
    square_5, square_3 = (
        jnp.sum(jnp.square(jax.lax.stop_gradient(_mix(distance, slopes))), axis=0)
        for distance in (DISTANCE_5, DISTANCE_3)
    )
    return h * square_5 / jnp.sqrt(square_5 + 0.01 * square_3 + TINY)

r"""A rational function that is the exponential on the whole negative axis.

Time stepping answers "what is exp(-t A) T0?" in hundreds of small solves. Here the answer takes
p/2 solves, whatever the time, because one fixed rational function

.. math::  r(x) = \sum_{j=1}^{p} \frac{c_j}{x - z_j} \approx e^x ,  \qquad  -\infty < x \le 0

has an error that falls by the factor 9.28903 (Halphen's constant) with each further pole, and each
of its terms is one linear solve. Poles and residues come in conjugate pairs; on the real axis the
pair sums to ``2 Re c / (x - z)``, so only the upper half is stored.

How they are found, following Trefethen, Weideman and Schmelzer [1]_:

1. The map ``x = 9 (w - 1) / (w + 1)`` carries ``-1 <= w <= 1`` to the negative axis (9 balances the
   two ends), and makes ``e^x`` a smooth function with Chebyshev coefficients ``a_0, a_1, ...``.
2. Carathéodory and Fejér: the best approximation of degree p to ``sum a_k v^k`` on the unit circle
   is had, with no iteration, from the singular value decomposition of the Hankel matrix
   ``H[i, j] = a_{i+j+1}``. Singular value number p is the error; the zeros outside the unit circle
   of the polynomial with the entries of its singular vector as coefficients are the poles.
3. Joukowski's ``w = (v + 1/v) / 2`` takes them from the circle to the interval, and the map of
   step 1 to the plane: ``z = 9 (v - 1)^2 / (v + 1)^2``.
4. The paper also takes the residues from the singular vectors. In double precision that loses
   digits (1e-13 for p = 14, 7e-14 for p = 16). With the poles known, the residues are a *linear*
   least-squares problem, which loses none.

We demand ``r(0) = 1`` besides, by weight. It makes the steady state of the heat equation a fixed
point, and an insulated rod keep its energy to 1e-13, for any number of poles. Since r has no
constant term it vanishes at minus infinity: the stiffest modes are damped out, as they should be.

A constant source needs ``phi(x) = (e^x - 1) / x`` too; `adeptml_heat1d.evolution` makes it of the
same poles, as ``(r(x) - 1) / x``. The largest errors on the whole negative axis:

===== ======= =======
poles exp     phi
===== ======= =======
8     2.0e-08 7.4e-07
10    2.3e-10 1.1e-08
12    2.7e-12 1.5e-10
14    4e-14   2.0e-12
16    4e-14   2e-13
===== ======= =======

References
----------
.. [1] L. N. Trefethen, J. A. C. Weideman, T. Schmelzer, "Talbot quadratures and rational
   approximations", BIT 46 (2006) 653-670, https://doi.org/10.1007/s10543-006-0077-9
"""

from functools import cache

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.linalg import hankel, svd

from adeptml_core.errors import ConfigError

__all__ = ["exponential_poles", "require_count"]

POLE_COUNTS = (8, 10, 12, 14, 16)  # beyond 16 rounding, near 4e-14, hides the gain

SCALE = 9.0
COEFFICIENTS = 75  # the Chebyshev coefficients have fallen to 1e-16 here
SAMPLES = 256
FIT_POINTS = 100  # for the residues
WEIGHT_AT_ZERO = 1000.0  # pins r(0) = 1 to 1e-13; the error elsewhere grows by 3 %


def require_count(count: object) -> None:
    """Raise ConfigError unless there are poles of that count; 14.0 is no count."""
    if count not in POLE_COUNTS or not isinstance(count, int):
        counts = ", ".join(map(str, POLE_COUNTS))
        raise ConfigError(f"option poles = {count!r}: choose one of {counts}")


@cache
def exponential_poles(
    count: int,
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Return poles and residues of the approximation of ``exp`` on ``(-inf, 0]``.

    Parameters
    ----------
    count : int
        Number of poles: 8, 10, 12, 14 or 16.

    Returns
    -------
    poles, residues : ndarray, shape (count / 2,), complex128
        Those in the upper half plane, read-only: ``exp(x) = 2 Re sum(residues / (x - poles))``.

    Raises
    ------
    ConfigError
        For another count.
    ArithmeticError
        If this machine's linear algebra is too inaccurate to separate the poles.

    Examples
    --------
    >>> z, c = exponential_poles(14)
    >>> bool(abs(2 * (c / (-1.0 - z)).sum().real - np.exp(-1.0)) < 1e-13)
    True
    """
    require_count(count)
    poles = _caratheodory_fejer_poles(count)
    residues = _fitted_residues(poles)
    poles.setflags(write=False)
    residues.setflags(write=False)
    return poles, residues


def _negative_axis(w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map ``-1 < w <= 1`` to ``-inf < x <= 0`` (step 1)."""
    return SCALE * (w - 1) / (w + 1)


def _chebyshev_coefficients() -> NDArray[np.float64]:
    """Return ``a_1 ... a_COEFFICIENTS`` of ``exp(x(w))``: a cosine transform of its values."""
    angles = np.pi * (np.arange(SAMPLES) + 0.5) / SAMPLES
    values = np.exp(_negative_axis(np.cos(angles)))
    return np.asarray(dct(values)[1 : COEFFICIENTS + 1] / SAMPLES)


def _caratheodory_fejer_poles(count: int) -> NDArray[np.complex128]:
    """Return the poles in the upper half plane, sorted by imaginary part (steps 2 and 3)."""
    singular_vectors = svd(hankel(_chebyshev_coefficients()))[2]
    v = np.roots(singular_vectors[count])
    v = v[np.abs(v) > 1]
    z = SCALE * (v - 1) ** 2 / (v + 1) ** 2
    upper = z[z.imag > 0]
    if upper.size != count // 2:
        raise ArithmeticError(f"found {2 * upper.size} of {count} poles; use fewer, 14 say")
    return np.asarray(upper[np.argsort(upper.imag)], dtype=np.complex128)


def _fitted_residues(poles: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Fit ``2 Re sum(c / (x - z)) = exp(x)`` at Chebyshev points and at ``x = 0`` (step 4)."""
    x = _negative_axis(np.append(chebyshev.chebpts1(FIT_POINTS), 1.0))
    weight = np.append(np.ones(FIT_POINTS), WEIGHT_AT_ZERO)
    terms = 2 / (x[:, None] - poles)  # Re(c u) = Re c Re u - Im c Im u
    matrix = np.hstack([terms.real, -terms.imag])
    parts = np.linalg.lstsq(matrix * weight[:, None], np.exp(x) * weight, rcond=None)[0]
    real, imaginary = np.split(parts, 2)
    return np.asarray(real + 1j * imaginary)

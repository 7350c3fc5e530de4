"""The rational approximation of the exponential, against the exponential."""

import numpy as np
import pytest

from adeptml_heat1d.poles import POLE_COUNTS, exponential_poles

NEGATIVE_AXIS = -np.concatenate([[0.0], np.logspace(-8, 8, 20_001)])

# The errors that the CF method promises (Trefethen, Weideman, Schmelzer 2006), in double precision.
EXP_ERROR = {8: 2.3e-8, 10: 2.7e-10, 12: 3.2e-12, 14: 8.4e-14, 16: 8.4e-14}
# (r(x) - 1) / x is worst at 0, where it is the error of r'(0); the table in the module's docstring.
PHI_ERROR = {8: 8e-7, 10: 1.2e-8, 12: 1.6e-10, 14: 2.5e-12, 16: 4e-13}


def approximation(count: int, x: np.ndarray) -> np.ndarray:
    poles, residues = exponential_poles(count)
    return 2 * (residues / (x[:, None] - poles)).real.sum(axis=1)


@pytest.mark.parametrize("count", POLE_COUNTS)
def test_error_on_the_negative_axis(count: int) -> None:
    """The error is that of the published table, from 0 to -1e8."""
    error = np.abs(approximation(count, NEGATIVE_AXIS) - np.exp(NEGATIVE_AXIS)).max()
    assert error < EXP_ERROR[count]


@pytest.mark.parametrize("count", POLE_COUNTS)
def test_error_of_phi(count: int) -> None:
    """The same poles give phi(x) = (e^x - 1) / x, of which the source makes use."""
    poles, residues = exponential_poles(count)
    terms = residues / poles / (NEGATIVE_AXIS[1:, None] - poles)
    exact = np.expm1(NEGATIVE_AXIS[1:]) / NEGATIVE_AXIS[1:]
    assert np.abs(2 * terms.real.sum(axis=1) - exact).max() < PHI_ERROR[count]


def test_error_falls_by_halphens_constant() -> None:
    """Two more poles gain the factor 9.28903^2 = 86 while rounding does not matter."""
    errors = [
        np.abs(approximation(p, NEGATIVE_AXIS) - np.exp(NEGATIVE_AXIS)).max() for p in (8, 10, 12)
    ]
    assert errors[0] / errors[1] == pytest.approx(9.28903**2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(9.28903**2, rel=0.05)


@pytest.mark.parametrize("count", POLE_COUNTS)
def test_value_at_zero_is_one(count: int) -> None:
    """r(0) = 1, so that steady states and energies are kept."""
    # Rounding of residues up to 235 / 6.5 in size, summed over 16 terms: a few 1e-14.
    assert abs(approximation(count, np.zeros(1))[0] - 1) < 1e-13


@pytest.mark.parametrize("count", POLE_COUNTS)
def test_poles_are_in_the_upper_half_plane(count: int) -> None:
    """Half of them are stored, all with the positive imaginary part that the ladder relies on."""
    poles, residues = exponential_poles(count)
    assert poles.shape == residues.shape == (count // 2,)
    assert (poles.imag > 1).all()


def test_arrays_are_shared_and_read_only() -> None:
    """Poles are computed once, and nobody can spoil them for the next caller."""
    poles, residues = exponential_poles(14)
    assert exponential_poles(14)[0] is poles
    assert not poles.flags.writeable
    assert not residues.flags.writeable


def test_other_counts_are_refused() -> None:
    """An unknown count is an error that lists the known ones."""
    with pytest.raises(ValueError, match="poles = 7: choose one of 8, 10, 12, 14, 16"):
        exponential_poles(7)

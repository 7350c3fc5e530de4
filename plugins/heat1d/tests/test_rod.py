"""Space: options, conductances, sources."""

import numpy as np
import pytest

from adeptml_core.errors import ConfigError
from adeptml_heat1d.rod import Rod, conductances, conductances_pullback, source, source_pullback


def test_two_cells_by_hand() -> None:
    """Half cells and films are resistances in series."""
    # dx = 1, half cells 1/2 and 1/8 m^2 K/W; films 1/4 and none.
    rod = Rod(length=2.0, h_left=4.0, h_right=np.inf)
    G = conductances(np.array([[1.0], [4.0]]), rod)
    np.testing.assert_allclose(G[:, 0], [1 / (1 / 4 + 1 / 2), 1 / (1 / 2 + 1 / 8), 8], rtol=1e-15)


def test_insulation_and_contact_are_limits_of_the_film() -> None:
    """A film of 0 conducts nothing; of inf leaves the half cell alone; large comes close."""
    k = np.ones((2, 1))
    G = {h: conductances(k, Rod(h_left=h))[0, 0] for h in (0.0, 1e12, np.inf)}
    assert G[0.0] == 0
    assert G[np.inf] == 4
    assert G[1e12] == pytest.approx(4, rel=1e-11)  # 4 / 1e12 is the first order


@pytest.mark.parametrize("n", [1, 2, 5])
def test_conductances_pullback_is_the_complex_step(
    n: int, options: dict[str, float], rng: np.random.Generator
) -> None:
    """The chain rule from faces to cells, against the complex step, which has no rounding error."""
    rod = Rod(**options)
    k, g = rng.lognormal(size=(n, 1)), rng.normal(size=(n + 1, 1))
    expected = [
        (g * conductances(k + 1e-40j * np.eye(n)[:, [i]], rod).imag).sum() / 1e-40 for i in range(n)
    ]
    grad = conductances_pullback(g, k, conductances(k, rod), rod)
    np.testing.assert_allclose(grad[:, 0], expected, rtol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_source_pullback_is_the_transpose(
    n: int, options: dict[str, float], rng: np.random.Generator
) -> None:
    """<source(q, T_ext), g> = <(q, T_ext), source_pullback(g)>, as source is linear."""
    rod = Rod(**options)
    G = conductances(rng.lognormal(size=(n, 3)), rod)
    q, T_ext, g = (rng.normal(size=(m, 3)) for m in (n, 2, n))
    grad_q, grad_T_ext = source_pullback(g, G, rod)
    there = (source(q, T_ext, G, rod) * g).sum()
    back = (q * grad_q).sum() + (T_ext * grad_T_ext).sum()
    assert there == pytest.approx(back, rel=1e-13)


@pytest.mark.parametrize("k", [1e-320, 1e-300, 1e300])
def test_absurd_conductivities_stay_finite(k: float) -> None:
    """Neither the conductance nor its derivative overflows, down to subnormal numbers."""
    rod = Rod(h_left=1.0)
    field = np.full((4, 1), k)
    G = conductances(field, rod)
    assert np.isfinite(G).all()
    assert np.isfinite(conductances_pullback(np.ones((5, 1)), field, G, rod)).all()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"length": 0.0}, "option length = 0.0 m: must be positive and finite"),
        ({"length": np.inf}, "option length = inf m"),
        ({"rho_c": -1.0}, "option rho_c = -1.0 J/m^3/K: must be positive and finite"),
        ({"rho_c": np.nan}, "option rho_c = nan J/m^3/K"),
        ({"h_left": -2.0}, "option h_left = -2.0 W/m^2/K: must not be negative"),
        ({"h_right": np.nan}, "option h_right = nan W/m^2/K"),
        ({"t": -0.5}, "option t = -0.5 s: must be finite and not negative"),
        ({"t": np.inf}, "option t = inf s"),
    ],
)
def test_options_out_of_bounds_are_refused(option: dict[str, float], message: str) -> None:
    """The error names option, value and unit."""
    with pytest.raises(ConfigError) as caught:
        Rod(**option)
    assert message in str(caught.value)

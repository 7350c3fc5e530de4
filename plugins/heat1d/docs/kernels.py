"""Measure the two kinds of sweep, and print the table of `adeptml_heat1d.tridiagonal`.

Run it with one thread: ``OMP_NUM_THREADS=1 python docs/kernels.py``. The threshold `NARROW` in that
module is where the columns cross.
"""

from collections.abc import Callable
from timeit import Timer

import numpy as np

from adeptml_heat1d import tridiagonal
from adeptml_heat1d.poles import exponential_poles

CELLS = 64
SAMPLES = (1, 4, 8, 12, 16, 32, 128, 1024)
ALWAYS, NEVER = 10**9, -1  # values of NARROW: LAPACK for any width, or for none

rng = np.random.default_rng(0)
poles, _ = exponential_poles(14)


def microseconds(function: Callable[[], object]) -> float:
    """Return the best of ten runs, of about 0.02 s each."""
    timer = Timer(function)
    repeats = max(1, timer.autorange()[0] // 10)
    return min(timer.repeat(10, repeats)) / repeats * 1e6


def there_and_back(narrow: int, samples: int, batch: int) -> float:
    """Time what one forward and its pullback need: one factorisation and two solves."""
    tridiagonal.NARROW = narrow
    scaled_conductances = CELLS**2 * rng.uniform(0.05, 0.2, (CELLS + 1, samples))
    order = tridiagonal.factorise(scaled_conductances, poles, batch).order
    ones = np.ones((CELLS, len(poles), batch), dtype=np.complex128, order=order)
    b = ones.copy(order="K")

    def run() -> None:
        sweep = tridiagonal.factorise(scaled_conductances, poles, batch)
        for _ in range(2):
            np.copyto(b, ones)
            sweep.solve(b)

    return microseconds(run)


def main() -> None:
    """Print the table, in reStructuredText."""
    rule = "======= ========== =========== ========== ==========="
    print(rule)
    print("        a material for each    one material for all")
    print("------- ---------------------- ----------------------")
    print("samples BlockSweep LadderSweep BlockSweep LadderSweep")
    print(rule)
    for batch in SAMPLES:
        cells = (
            there_and_back(narrow, samples, batch)
            for samples in (batch, 1)
            for narrow in (ALWAYS, NEVER)
        )
        print("{:<7} {:<10.0f} {:<11.0f} {:<10.0f} {:.0f}".format(batch, *cells))
    print(rule)


if __name__ == "__main__":
    main()

"""A solver under examination: its calls counted, timed and limited, its inputs drawn and stacked.

**Stacking.** Where rows are independent, each row of a batch is an experiment of its own: a point,
a direction, a step. One forward then serves thousands of experiments, which is what makes a proof
affordable. Arrays that a solver takes shared only (``batched=False``) cannot be stacked; they are
the same for all rows of a call.
"""

import contextlib
import dataclasses
import math
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adeptml_core.conformance.limits import Budget, time_limit
from adeptml_core.linearizer import Pullback
from adeptml_core.solver import Solver
from adeptml_core.spec import Mode, SolverSpec

__all__ = ["AnyArray", "Inputs", "Probe", "Undeclared", "as_dtype", "close", "magnitude"]

AnyArray = NDArray[Any]
Inputs = tuple[AnyArray, ...]
"""``(x, *args)``, as a solver takes them."""

MOST_ROWS = 2048  # beyond, numpy gains nothing more from stacking
MOST_ELEMENTS = 2**20  # of inputs and result together: 8 MB in float64, about a cache's worth
MOST_JACOBIAN = 2**24  # elements of a Jacobian that one call may be asked for: 128 MB
LONGEST_CALL = 2.0  # seconds; longer stacks are cut, so that progress shows and limits bite
SIZES_FOR_COMPILERS = (1, 4, 64, 512)  # a just-in-time compiler pays for each new shape
DEFAULT_SIZES = (5, 4, 3, 6, 7)  # for symbolic sizes that only an example would tell


class Undeclared(Exception):  # noqa: N818 - says what is missing from a spec; no fault of the run
    """Inputs cannot be drawn: the spec has neither an example nor bounds."""


def as_dtype(value: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
    """Cast floating arrays to `dtype`; leave integers and bools as they are."""
    return value.astype(dtype) if value.dtype.kind == "f" else value


def magnitude(values: Any) -> float:
    """Return the largest absolute value, 0 for an empty array; NaN where there is one."""
    values = np.abs(np.asarray(values, dtype=np.float64))
    return float(values.max()) if values.size else 0.0


def close(first: Any, second: Any) -> float:
    """Return ``max|first - second| / max(|first|, |second|)``; inf where only one is finite."""
    first = np.asarray(first, dtype=np.float64)
    second = np.asarray(second, dtype=np.float64)
    finite = np.isfinite(first) & np.isfinite(second)
    if not finite.all() and not np.array_equal(first, second, equal_nan=True):
        return math.inf
    difference = magnitude(first[finite] - second[finite])
    return difference / (max(magnitude(first[finite]), magnitude(second[finite])) or 1.0)


class Probe:
    """One solver, with fixed options, under examination.

    Parameters
    ----------
    spec : SolverSpec
    options : mapping, optional
    seed : int
        Every check draws from its own stream, made of this and the check's id: a check gives the
        same answer alone as among the others.
    budget : Budget
        For the whole examination.
    limit : float
        Seconds that one call of the solver may take.
    distribution, version : str
        Where the spec comes from.

    Attributes
    ----------
    writes_inputs : str
        What the solver said when it tried to write to its read-only inputs; it then goes on with
        private copies, so that this fault does not hide the others.
    coupled : bool
        Whether rows must not be stacked: declared so, or found so.
    noise : float, optional
        The relative noise of the solver's values, once it has been measured.
    first_inputs : tuple of ndarray, optional
        Where the solver was linearised for the very first time: what it keeps, it has from there.
    trials : list
        What the solver did with other options, before it was called with these.
    curves : list of dict
        The step sweeps behind each gradient that was examined, for plots.
    changes_at_import, changes_at_first_call : dict
        Global state that changed then: (before, after) by name.
    """

    def __init__(
        self,
        spec: SolverSpec,
        options: Mapping[str, object] | None = None,
        *,
        seed: int = 0,
        budget: Budget | None = None,
        limit: float = 60.0,
        distribution: str = "",
        version: str = "",
    ) -> None:
        self.spec = spec
        self.seed = seed
        self.budget = budget or Budget()
        self.limit = limit
        self.distribution = distribution
        self.version = version
        self.solver = Solver(spec, options, distribution=distribution, version=version)
        self.calls = 0
        self.writes_inputs = ""
        self.coupled = not spec.row_independent
        self.noise: float | None = None
        self.first_inputs: Inputs | None = None
        self.trials: list[Any] = []
        self.curves: list[dict[str, Any]] = []
        self.changes_at_import: dict[str, tuple[Any, Any]] = {}
        self.changes_at_first_call: dict[str, tuple[Any, Any]] = {}
        self._timings: dict[int, list[float]] = {}
        self._pull_timings: dict[int, list[float]] = {}
        self._first_and_later: list[dict[int, list[float]]] = [self._timings]
        self._sizes: dict[str, int] = {}

    def with_options(self, changed: Mapping[str, object]) -> "Probe":
        """Return a probe of the same solver with some options changed."""
        other = Probe(
            self.solver.spec,
            self.solver.options | dict(changed),
            seed=self.seed,
            budget=self.budget,
            limit=self.limit,
            distribution=self.distribution,
            version=self.version,
        )
        other.writes_inputs, other.coupled, other.noise = (
            self.writes_inputs,
            self.coupled,
            self.noise,
        )
        # What one has learnt about the cost of new shapes, all know.
        other._first_and_later = self._first_and_later
        self._first_and_later.append(other._timings)
        return other

    def give_copies(self, message: str) -> None:
        """Go on with private, writable copies of the inputs: the solver insists on writing."""
        self.writes_inputs = message
        self.solver = Solver(
            dataclasses.replace(self.spec, writable_inputs=True),
            self.solver.options,
            distribution=self.distribution,
            version=self.version,
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype in which the solver is most accurate."""
        return max((np.dtype(name) for name in self.spec.dtypes), key=lambda d: d.itemsize)

    def rng(self, label: str) -> np.random.Generator:
        """Return the random stream of the check called `label`."""
        return np.random.default_rng([self.seed, zlib.crc32(label.encode())])

    def tolerance(self, dtype: np.dtype[Any], float64: float, float32: float) -> float:
        """Return the tolerance for `dtype`, or what the solver claims, if that is larger."""
        ours = float64 if dtype == np.float64 else float32 if dtype == np.float32 else 0.05
        return max(ours, self.spec.tolerance or 0.0)

    def name(self, index: int) -> str:
        """Return the declared name of input `index`: 0 is x."""
        return self.spec.inputs[index].name

    def title(self, index: int) -> str:
        """Return ``x 'T0'`` or ``args[1] 'q'``."""
        role = "x" if index == 0 else f"args[{index - 1}]"
        return f"{role} '{self.name(index)}'" if self.name(index) != role else role

    def where(self, role: str = "") -> str:
        """Return ``flow.solver:vjp (flow/solver.py:61)`` for the derivative, or for `role`."""
        if not role:
            role = {Mode.SPLIT_VJP: "forward"}.get(self.solver.mode, self.solver.mode.value)
        declared = getattr(self.spec, role, None)
        place = self.solver.where(role)
        return f"{declared} ({place})" if isinstance(declared, str) and place else place or role

    # -- calls --

    @contextlib.contextmanager
    def _call(self, what: str, rows: int | None = None) -> Iterator[None]:
        self.calls += rows is not None
        started = time.perf_counter()
        with time_limit(self.limit, f"{what} of {self.spec.name}"):
            yield
        if rows is not None:
            self._timings.setdefault(rows, []).append(time.perf_counter() - started)

    def forward(self, inputs: Inputs) -> AnyArray:
        """Return y."""
        with self._call("forward", len(inputs[0])):
            return self.solver.forward(*inputs)

    def linearize(self, inputs: Inputs) -> tuple[AnyArray, Pullback]:
        """Return y and the pullback, whose calls are limited as well."""
        if self.first_inputs is None:
            self.first_inputs = tuple(np.array(value) for value in inputs)
        with self._call("forward", len(inputs[0])):
            y, pullback = self.solver.linearize(*inputs)

        def limited(cotangent: AnyArray) -> tuple[AnyArray | None, ...]:
            started = time.perf_counter()
            with self._call("pullback"):
                pulled = pullback(cotangent)
            self._pull_timings.setdefault(len(y), []).append(time.perf_counter() - started)
            return pulled

        return y, limited

    def pull(self, inputs: Inputs, cotangent: AnyArray) -> tuple[AnyArray | None, ...]:
        """Return the cotangents of a fresh forward, as private copies."""
        pulled = self.linearize(inputs)[1](cotangent)
        return tuple(None if value is None else np.array(value) for value in pulled)

    def call(self, role: str, *arrays: AnyArray) -> Any:
        """Call the plugin's own function of that role (``jvp``, ``hvp``, ``jacobian``)."""
        function = self.solver.function(role)
        frozen = [np.array(array) for array in arrays]
        if not self.solver.spec.writable_inputs:
            for array in frozen:
                array.flags.writeable = False
        with self._call(role, len(arrays[0])):
            return function(*frozen, **self.solver.options)

    def seconds(self, rows: int) -> float:
        """Return what a forward of that many rows will take, judged by those seen so far."""
        return _expected(self._timings, rows)

    def pull_seconds(self, rows: int) -> float:
        """Return what a pullback of that many rows will take, judged by those seen so far."""
        return _expected(self._pull_timings, rows)

    @property
    def compiles(self) -> bool:
        """Whether a new shape costs much more than a known one: a just-in-time compiler."""
        again = [
            (times[0], min(times[1:]))
            for timings in self._first_and_later
            for times in timings.values()
            if times[1:]
        ]
        return any(first > 0.05 and first > 5 * later for first, later in again)

    def rows_worth(self, rows: int) -> int:
        """Return `rows`, or the next size that serves all checks where each new one is compiled."""
        fitting = [n for n in SIZES_FOR_COMPILERS if n >= rows]
        return fitting[0] if self.compiles and fitting else rows

    # -- inputs --

    def is_stacked(self, index: int) -> bool:
        """Tell whether input `index` has a row for each row of a stack."""
        return index == 0 or self.spec.args[index - 1].batched is not False

    def draw(self, rng: np.random.Generator, batch: int) -> Inputs:
        """Return one draw of the plugin's example, or of the bounds, in the solver's dtype."""
        if self.spec.example is None:
            return self._draw_from_bounds(rng, batch)
        with self._call("example"):
            given = self.solver.function("example")(rng, batch, **self.solver.options)
        values = given if isinstance(given, tuple | list) else (given,)
        return tuple(self._drawn(i, np.asarray(value)) for i, value in enumerate(values))

    def _drawn(self, index: int, value: AnyArray) -> AnyArray:
        declared = self.spec.inputs[index].dtype if index < len(self.spec.inputs) else None
        if declared is not None:
            return value.astype(declared)
        return self.inside(index, value, self.dtype)

    def stacked(self, inputs: Inputs) -> Inputs:
        """Return `inputs` with a row of each array for each row of x, where it may have one."""
        batch = len(inputs[0])
        return tuple(
            np.array(np.broadcast_to(value, (batch, *value.shape)))
            if self.is_stacked(i) and value.ndim == len(self.spec.inputs[i].shape)
            else np.array(value)
            for i, value in enumerate(inputs)
        )

    def examples(self, label: str, rows: int) -> Inputs:
        """Return a stack of example draws; each pair of rows from its own draw, where possible.

        An example may give shared args, so that one draw has one value of them only.
        """
        rng = self.rng(f"examples:{label}")
        if not all(map(self.is_stacked, range(len(self.spec.inputs)))):
            return self.stacked(self.draw(rng, rows))
        draws = [self.stacked(self.draw(rng, 2)) for _ in range(math.ceil(rows / 2))]
        return tuple(np.concatenate(parts)[:rows] for parts in zip(*draws, strict=True))

    def take(self, inputs: Inputs, rows: Any) -> Inputs:
        """Return some rows of a stack."""
        return tuple(value[rows] if self.is_stacked(i) else value for i, value in enumerate(inputs))

    def cast(self, inputs: Inputs, dtype: np.dtype[Any]) -> Inputs:
        """Return `inputs` in another dtype, still inside the declared bounds."""
        return tuple(
            self.inside(i, value, dtype) if value.dtype.kind == "f" else value
            for i, value in enumerate(inputs)
        )

    # -- bounds --

    def bounds(self, index: int) -> tuple[AnyArray | float, AnyArray | float]:
        """Return the declared (low, high) of input `index`, infinite where there is none."""
        array = self.spec.inputs[index]
        low = -math.inf if array.low is None else np.asarray(array.low, dtype=np.float64)
        high = math.inf if array.high is None else np.asarray(array.high, dtype=np.float64)
        return low, high

    def is_bounded(self, index: int) -> bool:
        """Tell whether input `index` promises anything beyond what the example gives."""
        array = self.spec.inputs[index]
        return array.low is not None or array.high is not None

    def inside(self, index: int, value: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
        """Cast to `dtype` without leaving the bounds.

        A bound rounded to float32 may lie just outside itself; there the next number inward is
        taken. Values that were outside before stay there: they are the author's own example.
        """
        low, high = self.bounds(index)
        wide = np.asarray(value, dtype=np.float64)
        cast = wide.astype(dtype)
        below = (cast < low) & (wide >= low)
        above = (cast > high) & (wide <= high)
        upward = np.nextafter(cast, np.asarray(np.inf, dtype))
        downward = np.nextafter(cast, np.asarray(-np.inf, dtype))
        return np.asarray(np.where(below, upward, np.where(above, downward, cast)))

    def core_shape(self, index: int) -> tuple[int, ...]:
        """Return the core shape of input `index`, for a solver without an example."""
        array = self.spec.inputs[index]
        declared = self.solver.declared_sizes
        for size in array.shape:
            if isinstance(size, str) and size not in declared:
                nth = len(self._sizes)
                self._sizes.setdefault(size, DEFAULT_SIZES[nth % len(DEFAULT_SIZES)])
        known = {**self._sizes, **declared}
        return tuple(known[size] if isinstance(size, str) else size for size in array.shape)

    def _draw_from_bounds(self, rng: np.random.Generator, batch: int) -> Inputs:
        missing = [
            self.name(i)
            for i, array in enumerate(self.spec.inputs)
            if not self.is_bounded(i) and array.dtype is None
        ]
        if missing:
            raise Undeclared(", ".join(missing))
        return tuple(self._drawn_from(rng, i, batch) for i in range(len(self.spec.inputs)))

    def _drawn_from(self, rng: np.random.Generator, index: int, batch: int) -> AnyArray:
        shape = self.core_shape(index)
        shape = (batch, *shape) if self.is_stacked(index) else shape
        low, high = self.span(index, 1.0)
        kind = self.spec.inputs[index].dtype
        if kind is not None:
            top = 2 if kind == "bool" else 4
            return rng.integers(0, top, shape).astype(kind)
        return self.inside(index, rng.uniform(low, high, shape), self.dtype)

    def span(self, index: int, typical: Any) -> tuple[Any, Any]:
        """Return finite bounds to draw from: what is open ends at a few times the typical value."""
        low, high = self.bounds(index)
        reach = 3.0 * np.maximum(np.abs(typical), 1e-300)
        top = np.where(np.isfinite(high), high, np.maximum(low, 0.0) + reach)
        top = np.where(np.isfinite(high) | np.isfinite(low), top, reach)
        bottom = np.where(np.isfinite(low), low, np.minimum(high, 0.0) - reach)
        return bottom, top

    # -- stacks --

    def rows_per_call(self, row: Inputs, y_size: int, *, derivative: bool = False) -> int:
        """Return how many rows one call may have, by memory and by time."""
        x_size = sum(v.size // len(v) for i, v in enumerate(row) if self.is_stacked(i) and v.ndim)
        rows = min(MOST_ROWS, MOST_ELEMENTS // max(1, x_size + y_size))
        if derivative and self.solver.mode is Mode.JACOBIAN:
            rows = min(rows, MOST_JACOBIAN // max(1, x_size * y_size))
        per_row = self.seconds(2) - self.seconds(1)
        if per_row > 0:
            rows = min(rows, int(LONGEST_CALL / per_row))
        if self.compiles:
            rows = min(rows, SIZES_FOR_COMPILERS[-1])
        return max(1, rows)

    def _chunks(self, total: int, most: int) -> Iterator[tuple[slice, int]]:
        """Yield slices of a stack and the size to pad each to."""
        for start in range(0, total, most):
            size = min(most, total - start)
            yield slice(start, start + size), min(self.rows_worth(size), max(most, size))

    def _padded(self, inputs: Inputs, rows: slice, size: int) -> Inputs:
        part = self.take(inputs, rows)
        short = size - len(part[0])
        if not short:
            return part
        return tuple(
            np.concatenate([value, np.repeat(value[-1:], short, axis=0)])
            if self.is_stacked(i)
            else value
            for i, value in enumerate(part)
        )

    def forward_rows(self, inputs: Inputs, y_size: int = 1) -> AnyArray:
        """Return y of a whole stack, shape (rows, m), float64, in as many calls as it takes."""
        total = len(inputs[0])
        most = self.rows_per_call(inputs, y_size)
        parts = [
            np.array(self.forward(self._padded(inputs, rows, size)), np.float64)[
                : rows.stop - rows.start
            ].reshape(rows.stop - rows.start, -1)
            for rows, size in self._chunks(total, most)
        ]
        return np.concatenate(parts)

    def pull_rows(
        self, inputs: Inputs, cotangents: Sequence[AnyArray]
    ) -> list[tuple[AnyArray | None, ...]]:
        """Return, for each of the stacked cotangents, those of the inputs: (rows, n), float64.

        One forward serves all cotangents. None stands for what cannot be told row by row.
        """
        total, y_size = len(inputs[0]), cotangents[0][0].size
        most = self.rows_per_call(inputs, y_size, derivative=True)
        parts: list[list[tuple[AnyArray | None, ...]]] = [[] for _ in cotangents]
        for rows, size in self._chunks(total, most):
            y, pullback = self.linearize(self._padded(inputs, rows, size))
            count = rows.stop - rows.start
            for part, cotangent in zip(parts, cotangents, strict=True):
                g = np.zeros(y.shape, y.dtype)
                g[:count] = cotangent[rows].reshape(count, *y.shape[1:])
                part.append(self._flat_rows(pullback(g), count))
        return [_joined(part) for part in parts]

    def _flat_rows(
        self, pulled: tuple[AnyArray | None, ...], count: int
    ) -> tuple[AnyArray | None, ...]:
        return tuple(
            None
            if value is None or not self.is_stacked(i)
            else np.array(value, np.float64)[:count].reshape(count, -1)
            for i, value in enumerate(pulled)
        )


def _expected(timings: Mapping[int, list[float]], rows: int) -> float:
    seen = {n: min(times) for n, times in timings.items()}
    if not seen:
        return 0.0
    few, many = min(seen), max(seen)
    slope = max(0.0, (seen[many] - seen[few]) / (many - few)) if many > few else 0.0
    return max(seen[few] + slope * (rows - few), min(seen.values()))


def _joined(parts: list[tuple[AnyArray | None, ...]]) -> tuple[AnyArray | None, ...]:
    return tuple(
        None if column[0] is None else np.concatenate([c for c in column if c is not None])
        for column in zip(*parts, strict=True)
    )

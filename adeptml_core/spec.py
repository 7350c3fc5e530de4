"""What a solver says of itself: `Array`, `Option`, `SolverSpec`.

A spec is data. It is made in a plugin's light module, read by the registry, the command and the
configs, and only `adeptml_core.solver` turns it into something that runs. So it imports nothing but
the standard library, checks itself completely when it is made (a wrong spec is a `SpecError` at the
author's desk, not a wrong gradient at the user's), and never changes.

Shapes are *core* shapes, per sample, as in NumPy's generalised ufuncs [1]_: an ``int`` is fixed, a
``str`` is a size that must agree wherever it recurs.

References
----------
.. [1] https://numpy.org/doc/stable/reference/c-api/generalized-ufuncs.html
"""

import keyword
import math
import numbers
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Any

from adeptml_core.errors import ApiVersionError, ConfigError, SpecError
from adeptml_core.names import did_you_mean, normalize_name

__all__ = [
    "API",
    "Array",
    "Function",
    "Mode",
    "Option",
    "SolverSpec",
    "check_second_order",
    "did_you_mean",
    "normalize_name",
]

API = 1
"""Version of the contract that this core speaks."""

FLOATING = ("float64", "float32", "float16")
EXACT = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

Function = str | Callable[..., Any]
"""``"module:attribute"``, resolved on first use, or a callable for a solver not packaged."""


class Mode(StrEnum):
    """How a solver differentiates; each is a way to obtain a pullback."""

    JACOBIAN = "jacobian"
    VJP = "vjp"
    SPLIT_VJP = "split_vjp"


def _is_identifier(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)


def _is_real(value: object) -> bool:
    """Tell whether `value` is a real number: not a bool, not NaN."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return isinstance(value, numbers.Integral) or not math.isnan(value)


def _tupled(value: object) -> Any:
    """Return lists, however deep, as tuples, so that specs and options hash."""
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Array:
    """One array that a solver takes or gives.

    Parameters
    ----------
    name : str
        An identifier; unique among the solver's inputs.
    shape : tuple of int or str
        The core shape. A ``str`` is a size that must agree wherever it recurs, or the name of an
        integer option.
    unit : str
        ``"1"`` for a pure number.
    low, high : float or tuple, optional
        Inclusive bounds, each a number or a nested tuple that broadcasts to the core shape. A
        promise: within them the result is finite and the derivative right.
    differentiable : bool
        For an arg: whether the solver returns a cotangent for it. ``x`` and ``y`` always are.
    dtype : str, optional
        ``None`` is floating. An integer type or ``"bool"`` is passed as it is.
    batched : bool, optional
        What the solver sees of an arg: ``None`` either form, ``True`` always per sample, ``False``
        always shared by the batch.
    doc : str
        One line.

    Raises
    ------
    SpecError
        Where the fields contradict each other.

    Examples
    --------
    >>> Array("k", ("n",), unit="W/m/K", low=1e-9).signature
    'k[n] W/m/K'
    """

    name: str
    shape: tuple[int | str, ...] = ()
    _: KW_ONLY
    unit: str = "1"
    low: float | tuple[Any, ...] | None = None
    high: float | tuple[Any, ...] | None = None
    differentiable: bool = False
    dtype: str | None = None
    batched: bool | None = None
    doc: str = ""

    def __post_init__(self) -> None:
        where = f"Array {self.name!r}"
        if not _is_identifier(self.name):
            raise SpecError(f"{where}: the name is no identifier")
        object.__setattr__(self, "shape", _checked_shape(where, self.shape))
        _check_texts(where, unit=self.unit, doc=self.doc)
        self._check_kind(where)
        self._check_bounds(where)

    def _check_kind(self, where: str) -> None:
        if not isinstance(self.differentiable, bool):
            raise SpecError(
                f"{where}: differentiable={self.differentiable!r} is neither True nor False"
            )
        if not (self.batched is None or isinstance(self.batched, bool)):
            raise SpecError(f"{where}: batched={self.batched!r} is none of None, True, False")
        if self.dtype is None:
            return
        if self.dtype not in EXACT:
            raise SpecError(
                f"{where}: dtype={self.dtype!r}. Leave it out for a floating array; "
                f"otherwise one of {', '.join(EXACT)}"
            )
        if self.differentiable:
            raise SpecError(f"{where}: a {self.dtype} array cannot be differentiable")

    def _check_bounds(self, where: str) -> None:
        for side in ("low", "high"):
            bound = getattr(self, side)
            if bound is not None:
                object.__setattr__(self, side, _checked_bound(where, side, bound, self.shape))
        if self.low is None or self.high is None:
            return
        for low, high in _meeting(where, self.low, self.high):
            if low > high:
                raise SpecError(f"{where}: low={low!r} is above high={high!r}")

    @property
    def range(self) -> str:
        """``"1e-09 .."``; an open side is left out, no bounds at all are an empty string."""
        return _range(self.low, self.high)

    @property
    def signature(self) -> str:
        """``"k[n] W/m/K"``: name, core shape, unit."""
        sizes = ",".join(str(size) for size in self.shape)
        shape = f"[{sizes}]" if self.shape else ""
        kind = f" {self.dtype}" if self.dtype else ""
        unit = f" {self.unit}" if self.unit not in ("1", "") else ""
        return f"{self.name}{shape}{kind}{unit}"


def _check_texts(where: str, **texts: object) -> None:
    for name, text in texts.items():
        if not isinstance(text, str):
            raise SpecError(f"{where}: {name}={text!r} is not a string")


def _checked_shape(where: str, shape: object) -> tuple[int | str, ...]:
    if not isinstance(shape, tuple | list):
        raise SpecError(f"{where}: the shape is {shape!r}; write a tuple, as in ('n',)")
    for size in shape:
        is_count = isinstance(size, int) and not isinstance(size, bool) and size >= 1
        if not (is_count or _is_identifier(size)):
            raise SpecError(f"{where}: the size {size!r} is neither a positive int nor a name")
    return tuple(shape)


def _checked_bound(where: str, side: str, bound: object, core: tuple[int | str, ...]) -> Any:
    """Return `bound`, a number or a nested tuple of numbers that broadcasts to the core shape."""
    bound = _tupled(bound)
    shape = _shape_of(bound)
    if shape is None:
        raise SpecError(
            f"{where}: {side}={bound!r} is neither a number nor an even tuple of numbers"
        )
    # A symbolic size takes a tuple of any length: what it is for, the arrays of a call will tell.
    aligned = zip(reversed(shape), reversed(core), strict=False)
    fits = len(shape) <= len(core) and all(
        got in (1, size) or isinstance(size, str) for got, size in aligned
    )
    if not fits:
        raise SpecError(f"{where}: {side}={bound!r} does not broadcast to the core shape {core}")
    return bound


def _shape_of(bound: object) -> tuple[int, ...] | None:
    """Return the shape of a nested tuple of numbers, ``()`` for a number, None for all else."""
    if not isinstance(bound, tuple):
        return () if _is_real(bound) else None
    inner = {_shape_of(item) for item in bound}
    shape = inner.pop() if len(inner) == 1 else None  # none at all, or ragged
    return None if shape is None else (len(bound), *shape)


def _meeting(where: str, low: Any, high: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the entries of two bounds that meet where one broadcasts over the other."""
    depths = len(_shape_of(low) or ()), len(_shape_of(high) or ())
    if max(depths) == 0:
        yield low, high
        return
    # The shallower bound is one entry of the axis that only the deeper one has.
    lows = low if depths[0] >= depths[1] else (low,)
    highs = high if depths[1] >= depths[0] else (high,)
    size = max(len(lows), len(highs))
    if not {len(lows), len(highs)} <= {1, size}:
        raise SpecError(f"{where}: low={low!r} and high={high!r} do not broadcast to each other")
    for i in range(size):
        yield from _meeting(where, lows[i % len(lows)], highs[i % len(highs)])


_TYPES: Mapping[type, str] = {bool: "bool", int: "int", float: "float", str: "str", tuple: "tuple"}


@dataclass(frozen=True)
class Option:
    """A static keyword setting of a solver.

    Parameters
    ----------
    name : str
        An identifier.
    default : bool, int, float, str, tuple of these, or a type
        A type in place of a default (``Option("mesh", str)``) means that the user must set it.
    unit : str
        ``"1"`` for a pure number.
    low, high : float, optional
        Inclusive bounds.
    choices : tuple, optional
        The only values allowed.
    doc : str
        One line.

    Raises
    ------
    SpecError
        Where the fields contradict each other.
    """

    name: str
    default: Any
    _: KW_ONLY
    unit: str = "1"
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] | None = None
    doc: str = ""

    def __post_init__(self) -> None:
        where = f"Option {self.name!r}"
        if not _is_identifier(self.name):
            raise SpecError(f"{where}: the name is no identifier")
        if self.type not in _TYPES:
            raise SpecError(
                f"{where}: default={self.default!r}; write a bool, int, float, str, a tuple of "
                "these, or one of these types where the user must choose"
            )
        _check_texts(where, unit=self.unit, doc=self.doc)
        self._check_limits(where)
        try:
            self._settle()
        except ConfigError as error:
            raise SpecError(f"{where} contradicts itself: {error}") from error

    def _check_limits(self, where: str) -> None:
        for side in ("low", "high"):
            limit = getattr(self, side)
            if limit is not None and not _is_real(limit):
                raise SpecError(f"{where}: {side}={limit!r} is no number")
            if limit is not None and self.type not in (int, float, tuple):
                raise SpecError(f"{where}: {side}={limit!r} bounds a {_TYPES[self.type]}")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise SpecError(f"{where}: low={self.low!r} is above high={self.high!r}")
        if self.choices is not None and not (
            isinstance(self.choices, tuple | list) and self.choices
        ):
            raise SpecError(f"{where}: choices={self.choices!r} is not a tuple of values")

    def _settle(self) -> None:
        """Bring choices and default into this option's own type."""
        if self.choices is not None:
            object.__setattr__(self, "choices", tuple(map(self._bounded, self.choices)))
        if not self.required:
            object.__setattr__(self, "default", self.validate(self.default))

    @property
    def required(self) -> bool:
        """Whether the user must set it."""
        return isinstance(self.default, type)

    @property
    def type(self) -> type:
        """``bool``, ``int``, ``float``, ``str`` or ``tuple``."""
        return self.default if isinstance(self.default, type) else type(self.default)

    def validate(self, value: object) -> Any:
        """Return `value` as this option's type, hashable; lists become tuples.

        Raises
        ------
        ConfigError
            For a wrong type, NaN, a value out of bounds or not among the choices.
        """
        value = self._bounded(value)
        if self.choices is not None and value not in self.choices:
            listed = ", ".join(map(repr, self.choices))
            hint = did_you_mean(value, self.choices) if isinstance(value, str) else ""
            raise ConfigError(
                f"option {self.name!r} is {value!r}; it must be one of {listed}.{hint}"
            )
        return value

    def _bounded(self, value: object) -> Any:
        value = self._cast(value)
        for item in value if isinstance(value, tuple) else (value,):
            self._check_range(item)
        return value

    def _cast(self, value: object) -> Any:
        if self.type is not tuple:
            return _cast_scalar(self.name, value, self.type)
        if not isinstance(value, tuple | list):
            raise ConfigError(f"option {self.name!r} is {value!r}; it must be a tuple")
        kind = None if self.required else _common_type(self.default)
        return tuple(_cast_scalar(self.name, item, kind or type(item)) for item in value)

    def _check_range(self, item: Any) -> None:
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        if _is_real(item) and not low <= item <= high:
            unit = "" if self.unit in ("1", "") else f" {self.unit}"
            allowed = f"must lie in {self.range}"
            if self.low is None or self.high is None:
                side = "at most" if self.low is None else "at least"
                allowed = f"must be {side} {_brief(self.high if self.low is None else self.low)}"
            raise ConfigError(f"option {self.name!r} is {item!r}{unit}; it {allowed}{unit}")

    @property
    def range(self) -> str:
        """``"0.0 .. 1.0"``; an open side is left out, no bounds at all are an empty string."""
        return _range(self.low, self.high)


def _range(low: object, high: object) -> str:
    if low is None and high is None:
        return ""
    return f"{_brief(low)} .. {_brief(high)}".strip()


def _brief(bound: object) -> str:
    """Return a bound as one would write it by hand: ``0`` for ``0.0``, nothing for None."""
    if isinstance(bound, tuple):
        return f"({', '.join(map(_brief, bound))})"
    return "" if bound is None else str(bound).removesuffix(".0")


def _common_type(values: Iterable[object]) -> type | None:
    """Return the type that all `values` share (an int among floats is a float), or None."""
    kinds = {type(value) for value in values}
    if kinds == {int, float}:
        return float
    return kinds.pop() if len(kinds) == 1 else None


def _cast_scalar(name: str, value: object, kind: type) -> Any:
    """Cast losslessly to `kind`; a bool is no number, NaN is no value."""
    is_bool = isinstance(value, bool)
    if kind is bool and is_bool:
        return value
    if kind is str and isinstance(value, str):
        return str(value)
    if kind is int and isinstance(value, numbers.Integral) and not is_bool:
        return int(value)
    if kind is float and _is_real(value):
        try:
            return float(value)  # type: ignore[arg-type]
        except OverflowError:
            raise ConfigError(f"option {name!r} is too large for a floating number") from None
    expected = _TYPES[kind] if kind in (bool, int, float, str) else "bool, int, float or str"
    raise ConfigError(f"option {name!r} is {value!r}; it must be a value of type {expected}")


FUNCTIONS: Mapping[Mode, tuple[str, ...]] = {
    Mode.JACOBIAN: ("forward", "jacobian"),
    Mode.VJP: ("forward", "vjp"),
    Mode.SPLIT_VJP: ("forward",),
}
"""The functions that each mode requires."""

ALL_FUNCTIONS = ("forward", "jacobian", "vjp", "jvp", "hvp", "example", "sizes")


@dataclass(frozen=True, kw_only=True, repr=False)
class SolverSpec:
    """What a plugin declares of one solver.

    Parameters
    ----------
    name : str
        Lower-case letters, digits and ``-``; the entry point bears the same name.
    mode : {"jacobian", "vjp", "split_vjp"}
        How the solver differentiates.
    summary : str
        One line.
    x, y : Array
        Input and output.
    args : tuple of Array
        Further inputs, in the order in which the functions take them.
    forward : str or callable
        ``forward(x, *args) -> y``; in split mode ``-> (y, pullback)`` with
        ``pullback(grad_output) -> (dx, *dargs)``.
    jacobian : str or callable
        ``jacobian(x, *args) -> (batch, *y_core, *x_core)``; required in jacobian mode.
    vjp : str or callable
        ``vjp(x, grad_output, *args) -> dx``; required in vjp mode.
    jvp : str or callable, optional
        ``jvp(x, dx, *args) -> dy``.
    hvp : str or callable, optional
        ``hvp(x, grad_output, v, *args)``: the derivative of ``vjp`` in x along v.
    options : tuple of Option
        Passed to every function as keywords.
    example : str or callable, optional
        ``example(rng, batch, **options) -> (x, *args)``: valid, varied inputs.
    sizes : str or callable, optional
        ``sizes(**options) -> {"m": 7}``: sizes that neither the inputs nor an integer option give.
    dtypes : tuple of str
        The floating types that the functions take, best first.
    row_independent : bool
        Row i of y depends on row i of x and of per-sample args alone.
    deterministic : bool
        Equal inputs give equal results, to rounding.
    thread_safe : bool
        Where False, core takes one lock per distribution.
    writable_inputs : bool
        Hand the solver private writable copies.
    tolerance : float, optional
        The relative accuracy claimed for the derivatives, where it is not rounding.
    requires : tuple of str
        Requirements (PEP 508) beyond those of the light module.
    expected_failures : mapping of str to str
        Check id to the reason why it is known to fail.
    url, citation : str
        Where to read more; what to cite.
    api : int
        The version of this contract that the author wrote for.

    Raises
    ------
    SpecError
        Where the fields contradict each other; `ApiVersionError` for another contract.

    Notes
    -----
    Where an arg is declared differentiable, ``jacobian``, ``vjp`` and the pullback return a tuple:
    the entry for x, then one for *each* arg; what stands there for an arg that is not
    differentiable is ignored.
    """

    name: str
    mode: Mode | str
    summary: str
    x: Array
    args: tuple[Array, ...] = ()
    y: Array
    forward: Function
    jacobian: Function | None = None
    vjp: Function | None = None
    jvp: Function | None = None
    hvp: Function | None = None
    options: tuple[Option, ...] = ()
    example: Function | None = None
    sizes: Function | None = None
    dtypes: tuple[str, ...] = ("float64", "float32")
    row_independent: bool = True
    deterministic: bool = True
    thread_safe: bool = True
    writable_inputs: bool = False
    tolerance: float | None = None
    requires: tuple[str, ...] = ()
    expected_failures: Mapping[str, str] = field(default_factory=dict, hash=False)
    url: str = ""
    citation: str = ""
    api: int = 1

    def __post_init__(self) -> None:
        if self.api != API:
            raise ApiVersionError(
                f"{self.name}: written for api {self.api!r} of adeptml, this core speaks api {API}",
                is_newer=isinstance(self.api, int) and self.api > API,
            )
        self._freeze()
        self._check_name_and_mode()
        self._check_arrays()
        self._check_options()
        self._check_functions()
        self._check_sizes()
        self._check_promises()

    def _freeze(self) -> None:
        for name in ("args", "options", "dtypes", "requires"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list):
                raise SpecError(
                    f"{self.name}: {name}={value!r} is not a tuple (a single entry needs a comma)"
                )
            object.__setattr__(self, name, tuple(value))
        reasons = self.expected_failures
        if not isinstance(reasons, Mapping) or not all(
            isinstance(text, str) and text for item in reasons.items() for text in item
        ):
            raise SpecError(
                f"{self.name}: expected_failures={reasons!r} must map a check's id to the reason, "
                "both strings"
            )
        object.__setattr__(self, "expected_failures", dict(reasons))

    def _check_name_and_mode(self) -> None:
        if not (isinstance(self.name, str) and re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", self.name)):
            raise SpecError(
                f"the solver name {self.name!r} must be lower-case letters, digits and '-'"
            )
        if self.mode not in tuple(Mode):
            raise SpecError(
                f"{self.name}: mode={self.mode!r} is none of {', '.join(Mode)}."
                + did_you_mean(str(self.mode), Mode)
            )
        object.__setattr__(self, "mode", Mode(self.mode))
        _check_texts(self.name, summary=self.summary, url=self.url, citation=self.citation)
        if not self.summary.strip() or "\n" in self.summary:
            raise SpecError(f"{self.name}: summary={self.summary!r} must be one line of text")

    def _check_arrays(self) -> None:
        for label, array in (("x", self.x), ("y", self.y), *(("args", a) for a in self.args)):
            if not isinstance(array, Array):
                raise SpecError(f"{self.name}: {label} holds {array!r}, not an Array")
        for label, array in (("x", self.x), ("y", self.y)):
            if array.dtype is not None or array.batched is not None:
                raise SpecError(
                    f"{self.name}: {label} is floating and has the batch axis; drop dtype and "
                    "batched"
                )
        names = [array.name for array in self.inputs]
        if len(set(names)) < len(names):
            raise SpecError(f"{self.name}: two inputs share a name in {', '.join(names)}")

    def _check_options(self) -> None:
        taken = {array.name: "an input" for array in self.inputs}
        taken |= {"rng": "an argument of example", "batch": "an argument of example"}
        for option in self.options:
            if not isinstance(option, Option):
                raise SpecError(f"{self.name}: options holds {option!r}, not an Option")
            if option.name in taken:
                raise SpecError(
                    f"{self.name}: the option {option.name!r} bears the name of "
                    f"{taken[option.name]}"
                )
            taken[option.name] = "another option"

    def _check_functions(self) -> None:
        needed = FUNCTIONS[Mode(self.mode)]
        for role in ALL_FUNCTIONS:
            function = getattr(self, role)
            if function is None:
                if role in needed:
                    raise SpecError(
                        f"{self.name}: mode {self.mode} needs {role}=, which is missing"
                    )
                continue
            if role in ("jacobian", "vjp") and role not in needed:
                raise SpecError(
                    f"{self.name}: mode {self.mode} never calls {role}=; drop it or change the mode"
                )
            if not (callable(function) or _is_reference(function)):
                raise SpecError(
                    f"{self.name}: {role}={function!r} is neither 'module:attribute' nor callable"
                )

    def _check_sizes(self) -> None:
        """Check that every symbolic size is known before the solver runs."""
        options = {option.name: option for option in self.options}
        known = {size for array in self.inputs for size in array.shape}
        for array in (*self.inputs, self.y):
            for size in array.shape:
                if not isinstance(size, str):
                    continue
                option = options.get(size)
                if option is not None and option.type is not int:
                    raise SpecError(
                        f"{self.name}: the size {size!r} of {array.name} is an option that is no "
                        "int"
                    )
                if option is None and size not in known and self.sizes is None:
                    raise SpecError(
                        f"{self.name}: the size {size!r} of {array.name} is given by no input and "
                        "no integer option; declare sizes="
                    )

    def _check_promises(self) -> None:
        for flag in ("row_independent", "deterministic", "thread_safe", "writable_inputs"):
            value = getattr(self, flag)
            if not isinstance(value, bool):
                raise SpecError(f"{self.name}: {flag}={value!r} is neither True nor False")
        if self.mode == Mode.JACOBIAN and not self.row_independent:
            raise SpecError(
                f"{self.name}: a Jacobian of shape (batch, *y, *x) says that rows are "
                "independent; rows that couple need mode vjp or split_vjp"
            )
        if not self.dtypes or not all(dtype in FLOATING for dtype in self.dtypes):
            raise SpecError(
                f"{self.name}: dtypes={self.dtypes!r} must be some of {', '.join(FLOATING)}"
            )
        if self.tolerance is not None and not (_is_real(self.tolerance) and 0 < self.tolerance < 1):
            raise SpecError(
                f"{self.name}: tolerance={self.tolerance!r} is no relative accuracy between 0 and 1"
            )
        if not all(isinstance(line, str) and line.strip() for line in self.requires):
            raise SpecError(
                f"{self.name}: requires={self.requires!r} must hold requirement strings (PEP 508)"
            )

    def __repr__(self) -> str:
        """Return one line: a dict of all solvers is to be read in a notebook."""
        return f"<SolverSpec {self.name}: {self.mode}, {self.signature}>"

    @property
    def inputs(self) -> tuple[Array, ...]:
        """``(x, *args)``."""
        return (self.x, *self.args)

    @property
    def differentiable(self) -> tuple[bool, ...]:
        """For each of ``(x, *args)``, whether it has a cotangent."""
        return (True, *(arg.differentiable for arg in self.args))

    @property
    def signature(self) -> str:
        """``"(T0[n] K, k[n] W/m/K) -> T[n] K"``."""
        inputs = ", ".join(array.signature for array in self.inputs)
        return f"({inputs}) -> {self.y.signature}"

    def resolve_options(self, given: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Return every option's value: what was given, validated, else the default.

        Raises
        ------
        ConfigError
            For an unknown or missing option, a wrong type, a value out of bounds.
        """
        given = dict(given or {})
        declared = {option.name: option for option in self.options}
        for name in given:
            if name not in declared:
                listed = ", ".join(declared) or "none"
                raise ConfigError(
                    f"{self.name} has no option {name!r}.{did_you_mean(name, declared)} "
                    f"Its options: {listed}."
                )
        missing = [o.name for o in self.options if o.required and o.name not in given]
        if missing:
            example = ", ".join(f"{n!r}: ..." for n in missing)
            raise ConfigError(
                f"{self.name} needs a value for {', '.join(missing)}; set options={{{example}}}"
            )
        try:
            return {n: o.validate(given.get(n, o.default)) for n, o in declared.items()}
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None


def _is_reference(function: object) -> bool:
    """Tell whether `function` reads ``"package.module:attribute"``."""
    if not isinstance(function, str):
        return False
    module, colon, attribute = function.partition(":")
    parts = (*module.split("."), *attribute.split("."))
    return bool(colon) and all(part.isidentifier() for part in parts)


def check_second_order(value: object) -> str | None:
    """Return `value`, refused unless it is None or ``"differences"``."""
    if value is None or value == "differences":
        return value
    raise ConfigError(
        f"second_order={value!r} is neither None (second derivatives by the spec's hvp, or "
        "refused) nor 'differences'"
    )

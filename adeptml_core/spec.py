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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from typing import Any

from adeptml_core.errors import ApiVersionError, ConfigError, SpecError

__all__ = [
    "API",
    "Array",
    "Function",
    "Mode",
    "Option",
    "SolverSpec",
    "did_you_mean",
    "normalize_name",
]

API = 1
"""Version of the contract that this core speaks."""

FLOATING = ("float64", "float32", "float16")
EXACT = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

type_names = {bool: "bool", int: "int", float: "float", str: "str", tuple: "tuple"}

Function = str | Callable[..., Any]
"""``"module:attribute"``, resolved on first use, or a callable for a solver not packaged."""


class Mode(StrEnum):
    """How a solver differentiates; each is a way to obtain a pullback."""

    JACOBIAN = "jacobian"
    VJP = "vjp"
    SPLIT_VJP = "split_vjp"


def normalize_name(name: str) -> str:
    """Fold case, ``_`` and ``.`` as distribution names do: ``Heat_1D`` is ``heat-1d``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"``, or an empty string where nothing comes close."""
    close = get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _require(condition: object, message: str) -> None:
    if not condition:
        raise SpecError(message)


def _is_identifier(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)


def _is_real(value: object) -> bool:
    """Tell whether `value` is a real number: not a bool, not NaN."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and value == value


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
        Inclusive bounds, as a number or a tuple that broadcasts to the core shape. A promise: within
        them the result is finite and the derivative right.
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
        _require(_is_identifier(self.name), f"Array: the name {self.name!r} is no identifier")
        self._check_shape()
        self._check_fields()
        self._check_bounds()

    def _check_shape(self) -> None:
        is_tuple = isinstance(self.shape, tuple | list)
        _require(
            is_tuple,
            f"Array {self.name!r}: the shape is {self.shape!r}; write a tuple, as in ('n',)",
        )
        object.__setattr__(self, "shape", tuple(self.shape))
        for size in self.shape:
            fixed = isinstance(size, int) and not isinstance(size, bool) and size >= 1
            _require(
                fixed or _is_identifier(size),
                f"Array {self.name!r}: the size {size!r} is neither a positive int nor a name",
            )

    def _check_fields(self) -> None:
        where = f"Array {self.name!r}"
        _require(isinstance(self.unit, str), f"{where}: unit={self.unit!r} is not a string")
        _require(isinstance(self.doc, str), f"{where}: doc={self.doc!r} is not a string")
        _require(
            isinstance(self.differentiable, bool),
            f"{where}: differentiable={self.differentiable!r} is neither True nor False",
        )
        _require(
            self.batched in (None, True, False),
            f"{where}: batched={self.batched!r} is none of None, True, False",
        )
        _require(
            self.dtype is None or self.dtype in EXACT,
            f"{where}: dtype={self.dtype!r}. Leave it out for a floating array; "
            f"otherwise one of {', '.join(EXACT)}",
        )
        _require(
            self.dtype is None or not self.differentiable,
            f"{where}: a {self.dtype} array cannot be differentiable",
        )

    def _check_bounds(self) -> None:
        for label, bound in (("low", self.low), ("high", self.high)):
            if bound is not None:
                _check_bound(f"Array {self.name!r}: {label}", bound, self.shape)
        if _is_real(self.low) and _is_real(self.high):
            _require(
                self.low <= self.high,  # type: ignore[operator]
                f"Array {self.name!r}: low={self.low} is above high={self.high}",
            )

    @property
    def signature(self) -> str:
        """``"k[n] W/m/K"``: name, core shape, unit."""
        sizes = ",".join(str(size) for size in self.shape)
        shape = f"[{sizes}]" if self.shape else ""
        kind = f" {self.dtype}" if self.dtype else ""
        unit = f" {self.unit}" if self.unit not in ("1", "") else ""
        return f"{self.name}{shape}{kind}{unit}"


def _check_bound(where: str, bound: object, shape: tuple[int | str, ...]) -> None:
    """Refuse a bound that is no number, is NaN, or cannot broadcast to the core shape."""
    if not isinstance(bound, tuple):
        _require(_is_real(bound), f"{where}={bound!r} is not a number (nor a tuple of numbers)")
        return
    _require(shape and bound, f"{where}={bound!r} does not broadcast to the core shape {shape}")
    size = shape[len(shape) - _depth(bound)] if _depth(bound) <= len(shape) else None
    fits = size is not None and (len(bound) in (1, size) or isinstance(size, str))
    _require(fits, f"{where}={bound!r} does not broadcast to the core shape {shape}")
    for item in bound:
        _check_bound(where, item, shape[len(shape) - _depth(bound) + 1 :] or shape[-1:])


def _depth(bound: object) -> int:
    return 1 + max((_depth(item) for item in bound), default=0) if isinstance(bound, tuple) else 0


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
        _require(_is_identifier(self.name), f"{where}: the name is no identifier")
        _require(
            self.type in type_names,
            f"{where}: default={self.default!r}; write a bool, int, float, str, a tuple of these, "
            "or one of these types where the user must choose",
        )
        for label, bound in (("low", self.low), ("high", self.high)):
            _require(bound is None or _is_real(bound), f"{where}: {label}={bound!r} is no number")
        if self.choices is not None:
            _require(
                isinstance(self.choices, tuple | list) and self.choices,
                f"{where}: choices={self.choices!r} is not a tuple of values",
            )
            object.__setattr__(self, "choices", tuple(self._cast(c) for c in self.choices))
        if not self.required:
            object.__setattr__(self, "default", self._checked_default())

    def _checked_default(self) -> Any:
        try:
            return self.validate(self.default)
        except ConfigError as error:
            raise SpecError(f"the default of {error}") from error

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
        value = self._cast(value)
        for item in value if isinstance(value, tuple) else (value,):
            self._check_bounds(item)
        if self.choices is not None and value not in self.choices:
            listed = ", ".join(map(repr, self.choices))
            hint = did_you_mean(value, self.choices) if isinstance(value, str) else ""
            raise ConfigError(f"option {self.name!r} is {value!r}; it must be one of {listed}.{hint}")
        return value

    def _cast(self, value: object) -> Any:
        if self.type is not tuple:
            return _cast_scalar(self.name, value, self.type)
        if not isinstance(value, tuple | list):
            raise ConfigError(f"option {self.name!r} is {value!r}; it must be a tuple")
        default = () if self.required else self.default
        kinds = {type(item) for item in default}
        kind = kinds.pop() if len(kinds) == 1 else None
        return tuple(_cast_scalar(self.name, item, kind or type(item)) for item in value)

    def _check_bounds(self, item: Any) -> None:
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        if _is_real(item) and not low <= item <= high:
            allowed = f"{'' if self.low is None else self.low} .. {'' if self.high is None else high}"
            unit = "" if self.unit == "1" else f" {self.unit}"
            raise ConfigError(
                f"option {self.name!r} is {item!r}{unit}; it must lie in {allowed.strip()}"
            )


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
        return float(value)  # type: ignore[arg-type]
    expected = type_names.get(kind, "bool, int, float or str")
    raise ConfigError(f"option {name!r} is {value!r}; it must be a value of type {expected}")


FUNCTIONS: Mapping[Mode, tuple[str, ...]] = {
    Mode.JACOBIAN: ("forward", "jacobian"),
    Mode.VJP: ("forward", "vjp"),
    Mode.SPLIT_VJP: ("forward",),
}
"""The functions that each mode requires."""

ALL_FUNCTIONS = ("forward", "jacobian", "vjp", "jvp", "hvp", "example", "sizes")


@dataclass(frozen=True, kw_only=True)
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
                f"{self.name}: written for api {self.api!r} of adeptml, this core speaks api {API}"
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
            _require(
                isinstance(value, tuple | list),
                f"{self.name}: {name}={value!r} is not a tuple (a single entry needs a comma)",
            )
            object.__setattr__(self, name, tuple(value))
        _require(
            isinstance(self.expected_failures, Mapping)
            and all(isinstance(t, str) and t for kv in self.expected_failures.items() for t in kv),
            f"{self.name}: expected_failures maps a check's id to the reason, both strings",
        )
        object.__setattr__(self, "expected_failures", dict(self.expected_failures))

    def _check_name_and_mode(self) -> None:
        _require(
            isinstance(self.name, str) and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name),
            f"the solver name {self.name!r} must be lower-case letters, digits and '-'",
        )
        _require(
            self.mode in tuple(Mode),
            f"{self.name}: mode={self.mode!r} is none of {', '.join(Mode)}."
            + did_you_mean(str(self.mode), Mode),
        )
        object.__setattr__(self, "mode", Mode(self.mode))
        _require(
            isinstance(self.summary, str) and self.summary and "\n" not in self.summary,
            f"{self.name}: the summary must be one line of text",
        )

    def _check_arrays(self) -> None:
        for label, array in (("x", self.x), ("y", self.y), *(("args", a) for a in self.args)):
            _require(
                isinstance(array, Array), f"{self.name}: {label} holds {array!r}, not an Array"
            )
        for label, array in (("x", self.x), ("y", self.y)):
            _require(
                array.dtype is None and array.batched is None,
                f"{self.name}: {label} is floating and has the batch axis; drop dtype and batched",
            )
        names = [array.name for array in self.inputs]
        _require(
            len(set(names)) == len(names), f"{self.name}: two inputs share a name in {names}"
        )

    def _check_options(self) -> None:
        for option in self.options:
            _require(
                isinstance(option, Option), f"{self.name}: options holds {option!r}, not an Option"
            )
            _require(
                option.name not in ("rng", "batch"),
                f"{self.name}: an option cannot be called {option.name!r}: example takes that",
            )
        names = [array.name for array in self.inputs] + [option.name for option in self.options]
        _require(
            len(set(names)) == len(names),
            f"{self.name}: an option has the name of another option or of an input in {names}",
        )

    def _check_functions(self) -> None:
        needed = FUNCTIONS[Mode(self.mode)]
        for role in ALL_FUNCTIONS:
            function = getattr(self, role)
            _require(
                function is not None or role not in needed,
                f"{self.name}: mode {self.mode} needs {role}=, which is missing",
            )
            _require(
                function is None or role not in ("jacobian", "vjp") or role in needed,
                f"{self.name}: mode {self.mode} never calls {role}=; drop it or change the mode",
            )
            _require(
                function is None or callable(function) or _is_reference(function),
                f"{self.name}: {role}={function!r} is neither 'module:attribute' nor callable",
            )

    def _check_sizes(self) -> None:
        """Every symbolic size must be known before the solver runs."""
        options = {option.name: option for option in self.options}
        known = {size for array in self.inputs for size in array.shape}
        for array in (*self.inputs, self.y):
            for size in array.shape:
                if not isinstance(size, str):
                    continue
                option = options.get(size)
                _require(
                    option is None or option.type is int,
                    f"{self.name}: the size {size!r} of {array.name} is an option that is no int",
                )
                _require(
                    size in known or option is not None or self.sizes is not None,
                    f"{self.name}: the size {size!r} of {array.name} is given by no input and no "
                    "integer option; declare sizes=",
                )

    def _check_promises(self) -> None:
        for flag in ("row_independent", "deterministic", "thread_safe", "writable_inputs"):
            value = getattr(self, flag)
            _require(
                isinstance(value, bool), f"{self.name}: {flag}={value!r} is neither True nor False"
            )
        _require(
            self.row_independent or self.mode != Mode.JACOBIAN,
            f"{self.name}: a Jacobian of shape (batch, *y, *x) says that rows are independent; "
            "rows that couple need mode vjp or split_vjp",
        )
        _require(
            self.dtypes and all(d in FLOATING for d in self.dtypes),
            f"{self.name}: dtypes={self.dtypes!r} must be some of {', '.join(FLOATING)}",
        )
        _require(
            self.tolerance is None or (_is_real(self.tolerance) and 0 < self.tolerance < 1),
            f"{self.name}: tolerance={self.tolerance!r} is no relative accuracy between 0 and 1",
        )
        _require(
            all(isinstance(r, str) and r.strip() for r in self.requires),
            f"{self.name}: requires={self.requires!r} must hold requirement strings (PEP 508)",
        )

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

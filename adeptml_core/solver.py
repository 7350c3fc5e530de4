"""A solver that can be called: numpy in, numpy out, and a pullback beside the result.

Every mode is a way to obtain a pullback. At a point ``(x, *args)`` a solver with output
``y = f(x, *args)`` has, for a cotangent ``g`` of y,

    pullback(g) = (g @ dy/dx, g @ dy/dargs[0], ...)

and the three modes differ only in where it comes from:

=========== =================================================================
split_vjp   ``forward`` returned it, beside y
vjp         ``g -> vjp(x, g, *args)``
jacobian    ``g -> contract(g, jacobian(x, *args))``
=========== =================================================================

`Solver` makes that one face (`adeptml_core.linearizer`) out of a `SolverSpec`;
`adeptml_core.bare.RawSolver` makes it out of two bare functions. The operator
(`adeptml_core.autograd`) and the proof (`adeptml_core.conformance`) know nothing else.

Both stand guard in both directions. What goes in has the declared dtype and shape, is contiguous
and read-only. What comes out must have the declared shape and dtype and be real: a wrong shape that
happens to broadcast is a wrong gradient that nobody sees, so it is a `ContractError` here.
"""

import functools
import importlib
import itertools
import json
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn
from weakref import WeakValueDictionary

import numpy as np
from numpy import ndarray

from adeptml_core import registry
from adeptml_core.errors import (
    AdeptmlError,
    ContractError,
    InputError,
    PluginError,
    UnknownSolverError,
)
from adeptml_core.linearizer import AnyArray, Pullback, Shape, attribute, place
from adeptml_core.plans import Plan, Planner
from adeptml_core.spec import Array, Function, Mode, SolverSpec, check_second_order

__all__ = ["Solver", "identified", "named"]

PLANS_KEPT = 256  # shapes seen by one solver; a loader has two or three
INTEGRAL = "biu"
NO_OPTIONS: Mapping[str, Any] = {}
SEQUENCE = (tuple, list)  # `tuple | list` would be made anew at every call


class _Point:
    """Where a solver is linearised: guarded inputs ``(x, *args)``, the dtypes inside and outside.

    Made at every call, hence no dataclass: a frozen one costs four times as much.
    """

    __slots__ = ("dtype", "given", "inputs", "plan")

    def __init__(
        self,
        inputs: tuple[AnyArray, ...],
        plan: Plan,
        dtype: np.dtype[Any],
        given: np.dtype[Any],
    ) -> None:
        self.inputs = inputs
        self.plan = plan
        self.dtype = dtype
        self.given = given


class Solver:
    """A `SolverSpec` made callable, with fixed options.

    Parameters
    ----------
    spec : SolverSpec
        What the plugin declares.
    options : mapping, optional
        Values by name; validated against the declared options.
    second_order : ``"differences"``, optional
        Second derivatives by central differences of the pullback; by default they are refused,
        unless the spec declares ``hvp``.
    distribution, version : str
        Where the spec comes from.

    Raises
    ------
    ConfigError
        For an unknown or missing option, a wrong type, a value out of bounds.

    Notes
    -----
    The plugin's functions are imported at the first call, not here. An instance holds no state but
    caches, so that copies and threads may share it.

    Examples
    --------
    >>> from adeptml_core.plugin import Array, SolverSpec
    >>> cube = SolverSpec(
    ...     name="cube", mode="vjp", summary="x to the third",
    ...     x=Array("x", ("n",)), y=Array("y", ("n",)),
    ...     forward=lambda x: x**3, vjp=lambda x, g: 3 * x**2 * g,
    ... )
    >>> y, pullback = Solver(cube).linearize(np.array([[1.0, 2.0]]))
    >>> pullback(np.ones((1, 2)))
    (array([[ 3., 12.]]),)
    """

    def __init__(
        self,
        spec: SolverSpec,
        options: Mapping[str, object] | None = None,
        *,
        second_order: str | None = None,
        distribution: str = "",
        version: str = "",
    ) -> None:
        self.spec = spec
        self.options = spec.resolve_options(options)
        self.name = spec.name
        self.mode = Mode(spec.mode)
        self.second_order = check_second_order(second_order)
        self.distribution = distribution
        self.version = version
        self.identity = _identity(self)
        self.differentiable: tuple[bool, ...] | None = spec.differentiable
        self.keeps_pullback = self.mode is Mode.SPLIT_VJP
        self.deterministic = spec.deterministic
        self.row_independent = spec.row_independent
        self._copies_inputs = spec.writable_inputs
        self._is_thread_safe = spec.thread_safe
        self._first_dtype = np.dtype(spec.dtypes[0])
        self._dtypes = {np.dtype(name) for name in spec.dtypes}
        self._inputs = spec.inputs
        self._wanted = spec.differentiable
        self._padding = (None,) * len(spec.args)
        self._is_plain = not any(spec.differentiable[1:])  # derivatives need no tuple
        self._plans: dict[tuple[Shape, ...], Plan] = {}
        self._functions: dict[str, Callable[..., Any]] = {}

    def __repr__(self) -> str:
        """Name, mode and options."""
        return f"Solver({self.name!r}, mode={self.mode.value!r}, options={self.options!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        origin = self.second_order, self.distribution, self.version
        return _rebuilt, (self.spec, self.options, *origin)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Solver":
        return self  # nothing in it ever changes

    def arg_name(self, index: int) -> str:
        """Return the declared name of ``args[index]``."""
        return self.spec.args[index].name

    def forward(self, x: AnyArray, *args: Any) -> AnyArray:
        """Return y.

        Parameters
        ----------
        x : ndarray, shape (batch, *core), floating
        *args : array_like
            Each of its core shape (shared) or (batch, *core) (per sample).

        Returns
        -------
        ndarray, shape (batch, *y_core), dtype of x

        Raises
        ------
        InputError
            Where x or an arg does not fit its declaration.
        ContractError
            Where the result does not.
        SampleError
            Where the solver refuses a sample.
        """
        point = self._point(x, args)
        if not point.plan.y[0]:
            return np.zeros(point.plan.y, point.given)
        return self._returned_y(self._run_forward(point)[0], point)

    def linearize(self, x: AnyArray, *args: Any) -> tuple[AnyArray, Pullback]:
        """Return y and the pullback at ``(x, *args)``.

        Parameters and errors are those of `forward`.

        Returns
        -------
        y : ndarray, shape (batch, *y_core), dtype of x
        pullback : callable
            ``pullback(g) -> (dx, *dargs)``; g has y's shape, each cotangent the shape of its array
            (over a shared arg the batch is summed), in the dtype of x. None stands for an arg that
            is not differentiable. Linear; may be called any number of times.
        """
        point = self._point(x, args)
        if not point.plan.y[0]:
            return np.zeros(point.plan.y, point.given), self._zero_pullback(point)
        y, pullback = self._run_forward(point)
        return self._returned_y(y, point), self._guarded(point, pullback)

    def pullback_at(self, x: AnyArray, *args: Any) -> Pullback:
        """Return the pullback at ``(x, *args)``: in split mode by running forward again."""
        point = self._point(x, args)
        if not point.plan.y[0]:
            return self._zero_pullback(point)
        pullback = self._run_forward(point)[1] if self.keeps_pullback else None
        return self._guarded(point, pullback)

    def has(self, role: str) -> bool:
        """Tell whether the spec declares a function for that role (``"jvp"``, ``"hvp"``)."""
        return getattr(self.spec, role) is not None

    def shape_of_y(self, x: Shape, *args: Shape) -> Shape:
        """Return the shape that y will have for an x and args of these shapes.

        Nothing is run or kept, so that the sizes may be a tracer's symbols.
        """
        return Planner(self.spec, self.declared_sizes).plan((x, *args)).y

    def is_shared(self, index: int, ndim: int) -> bool:
        """Tell whether an ``args[index]`` of so many dimensions is shared by the batch."""
        return ndim == len(self.spec.args[index].shape)

    def jvp(self, x: AnyArray, dx: AnyArray, *args: Any) -> AnyArray:
        """Return the declared ``jvp(x, dx, *args)``: the tangent of y, shape (batch, *y_core)."""
        point = self._point(x, args)
        if not point.plan.y[0]:
            return np.zeros(point.plan.y, point.given)
        inputs = (point.inputs[0], self._tangent_of_x(dx, point), *point.inputs[1:])
        dy = self._call("jvp", self.function("jvp"), inputs, self.options)
        return self._returned_y(dy, point, "jvp")

    def hvp(self, x: AnyArray, g: AnyArray, v: AnyArray, *args: Any) -> AnyArray:
        """Return the declared ``hvp(x, grad_output, v, *args)``, shape of x."""
        point = self._point(x, args)
        if not point.plan.y[0]:
            return np.zeros(x.shape, point.given)
        g, v = self._cotangent_of_y(g, point), self._tangent_of_x(v, point)
        inputs = (point.inputs[0], g, v, *point.inputs[1:])
        result = self._call("hvp", self.function("hvp"), inputs, self.options)
        return self._cotangent("hvp", 0, result, point)

    def jacobians(self, y: Shape, x: AnyArray, *args: Any) -> tuple[AnyArray | None, ...]:
        """Return the Jacobians of y for x and each differentiable arg: (batch, *y_core, *core)."""
        point = self._point(x, args)
        cores = [self._core_of(index, shape) for index, shape in enumerate(point.plan.inputs)]
        if not point.plan.y[0]:
            shapes = [(*point.plan.y, *core) for core in cores]
            return tuple(
                np.zeros(shape, point.given) if wanted else None
                for shape, wanted in zip(shapes, self._wanted, strict=True)
            )
        found = self._jacobians(point)
        return tuple(None if J is None else self._given_back(J, point) for J in found)

    # -- the way in --

    def _tangent_of_x(self, dx: AnyArray, point: _Point) -> AnyArray:
        return _frozen(np.asarray(dx, dtype=point.dtype))

    def _point(self, x: AnyArray, given: tuple[Any, ...]) -> _Point:
        dtype = x.dtype
        if not given and (dtype is self._first_dtype or dtype in self._dtypes):  # hot: no loops
            only = (x.shape,)
            plan = self._plans.get(only) or self._planned(only)
            return _Point((_frozen(x),), plan, dtype, dtype)
        try:
            inputs = (x, *[np.asarray(arg) for arg in given])
        except ValueError as error:  # nested lists whose rows differ in length
            raise InputError(f"{self.name}: an arg is no array of numbers: {error}") from error
        shapes = tuple([value.shape for value in inputs])
        plan = self._plans.get(shapes) or self._planned(shapes)
        if dtype not in self._dtypes:
            dtype = self._working_dtype(dtype)
        admitted = [self._admitted(*pair, dtype) for pair in zip(self._inputs, inputs)]  # noqa: B905 - the plan has counted them
        for index in plan.spread:
            admitted[index] = _frozen(np.broadcast_to(admitted[index], plan.inputs[index]))
        return _Point(tuple(admitted), plan, dtype, x.dtype)

    def _working_dtype(self, given: np.dtype[Any]) -> np.dtype[Any]:
        """Return the declared dtype to compute in, for an x of dtype `given`."""
        if given.kind != "f":
            raise InputError(
                f"{self.name}: x ({self.spec.x.name}) is {given}; a solver's x is real and "
                "floating, or its gradient would be cut off. Convert it, e.g. x.double()."
            )
        if given == np.float16 and np.dtype("float32") in self._dtypes:
            return np.dtype("float32")
        return np.dtype(self.spec.dtypes[0])

    def _admitted(self, array: Array, value: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
        """Return `value` as the solver may see it: right dtype, contiguous, read-only."""
        wanted = dtype if array.dtype is None else np.dtype(array.dtype)
        if value.dtype != wanted:
            value = self._cast_input(array, value, wanted)
        return _frozen(value)

    def _cast_input(self, array: Array, value: AnyArray, wanted: np.dtype[Any]) -> AnyArray:
        """Cast losslessly, but for the precision of floating numbers."""
        integral = wanted.kind in INTEGRAL
        allowed = (INTEGRAL if wanted.kind in "iu" else "b") if integral else INTEGRAL + "f"
        if value.dtype.kind not in allowed:
            kind = f"{wanted} numbers" if integral else "real numbers"
            raise InputError(
                f"{self.name}: {array.name} is {value.dtype}, but the solver takes {kind}; "
                "convert it first, so that nothing is lost in silence."
            )
        try:
            with np.errstate(over="raise"):
                cast = value.astype(wanted)
        except FloatingPointError:
            cast = None
        if cast is None or (integral and not np.array_equal(cast, value)):
            raise InputError(
                f"{self.name}: {array.name} holds a value too large for {wanted}, in which the "
                f"solver computes here; give x as float64 or scale {array.name}."
            )
        return cast

    def _planned(self, shapes: tuple[Shape, ...]) -> Plan:
        if len(self._plans) >= PLANS_KEPT:
            self._plans.clear()
        plan = self._plans[shapes] = Planner(self.spec, self.declared_sizes).plan(shapes)
        return plan

    @functools.cached_property
    def declared_sizes(self) -> dict[str, int]:
        """Sizes from integer options and from ``sizes=``; asked once, at first need."""
        options = {o.name: self.options[o.name] for o in self.spec.options if o.type is int}
        if self.spec.sizes is None:
            return options
        sizes = self._call("sizes", self.function("sizes"), (), self.options)
        wrong = not isinstance(sizes, Mapping) or any(
            not isinstance(k, str) or isinstance(v, bool) or not isinstance(v, int | np.integer)
            for k, v in sizes.items()
        )
        if wrong:
            self._broken(
                "sizes", f"returned {sizes!r}, expected a dict of sizes", "{'m': 7}", sizes
            )
        return options | {name: int(size) for name, size in sizes.items()}

    # -- the plugin's functions --

    def function(self, role: str) -> Callable[..., Any]:
        """Return the plugin's function of that role (``"forward"``, ...), imported at first use.

        Raises
        ------
        PluginError
            The function is not where the spec says, or its module cannot be imported.
        """
        function = self._functions.get(role)
        if function is None:
            declared: Function = getattr(self.spec, role)
            function = declared if callable(declared) else self._imported(role, declared)
            self._functions[role] = function
        return function

    def _imported(self, role: str, reference: str) -> Callable[..., Any]:
        module, _, attribute = reference.partition(":")
        missing = registry.missing_requirements(self.spec)
        try:
            found: Any = importlib.import_module(module)
            for name in attribute.split("."):
                found = getattr(found, name)
        except AdeptmlError:
            raise
        except Exception as error:
            raise self._unusable(role, reference, error, missing) from error
        if not callable(found):
            raise self._unusable(
                role, reference, TypeError(f"{reference} is not callable"), missing
            )
        return found  # type: ignore[no-any-return]

    def _unusable(
        self, role: str, reference: str, error: Exception, missing: tuple[str, ...]
    ) -> PluginError:
        """Return the error for a function that cannot be had."""
        if isinstance(error, ImportError) and missing:
            code, message = "P102", f"{self.name} needs {', '.join(missing)}: {error}"
            mend = "pip install " + " ".join(f"'{line}'" for line in missing)
        else:
            code = "P103" if not isinstance(error, ModuleNotFoundError | AttributeError) else "P101"
            message = f"{self.name}: {role}={reference!r}: {type(error).__name__}: {error}"
            mend = f"the plugin's author: `adeptml plugins validate {self.name}`"
        return PluginError(
            message,
            code=code,
            distribution=self.distribution,
            version=self.version,
            entry_point=self.name,
            mend=mend,
        )

    def where(self, role: str) -> str:
        """Return ``"my_flow/solver.py:61"`` for the function of that role."""
        function = self._functions.get("forward" if role == "pullback" else role)
        return place(function) if function is not None else ""

    def _call(
        self,
        role: str,
        function: Callable[..., Any],
        arrays: tuple[AnyArray, ...],
        options: Mapping[str, Any],
    ) -> Any:
        if self._copies_inputs:
            arrays = tuple([array.copy() for array in arrays])
        try:
            if self._is_thread_safe:
                return function(*arrays, **options)
            with _lock(self.distribution or self.name):
                return function(*arrays, **options)
        except Exception as error:
            shapes = [array.shape for array in arrays]
            attribute(error, self.name, lambda: self._note_of(role, shapes))
            raise

    def _note_of(self, role: str, shapes: Sequence[Shape]) -> str:
        called = ", ".join(map(str, shapes))
        note = f"raised by the solver {self.name} in its {role}"
        return f"{note} ({self.where(role)}), called with shapes {called}"

    def _run_forward(self, point: _Point) -> tuple[Any, Callable[..., Any] | None]:
        result = self._call("forward", self.function("forward"), point.inputs, self.options)
        is_pair = isinstance(result, SEQUENCE)
        if self.mode is not Mode.SPLIT_VJP:
            if is_pair:
                hint = "If it returns (y, pullback), the mode is split_vjp."
                self._broken("forward", f"returned a {type(result).__name__}, expected y. {hint}")
            return result, None
        if not is_pair or len(result) != 2 or not callable(result[1]):
            got = f"{type(result).__name__} of {len(result)}" if is_pair else type(result).__name__
            self._broken("forward", f"returned a {got}; in mode split_vjp it returns (y, pullback)")
        return result[0], result[1]

    # -- the way out --

    def _returned_y(self, y: Any, point: _Point, role: str = "forward") -> AnyArray:
        if type(y) is not ndarray or (y.dtype is not point.dtype and y.dtype != point.dtype):
            y = self._real(role, self.spec.y.name, y, point.dtype)
        if y.shape != point.plan.y:
            expected = self._spelt(point.plan.y, self.spec.y.shape)
            hint = "One row of y for each row of x." if y.shape[:1] != point.plan.y[:1] else ""
            self._broken(
                role,
                f"returned shape {y.shape}, expected {expected}. {hint}".rstrip(),
                point.plan.y,
                y.shape,
            )
        checked: AnyArray = y
        return checked if point.given is point.dtype else self._given_back(checked, point, "y")

    def _guarded(self, point: _Point, split: Callable[..., Any] | None) -> Pullback:
        """Return the pullback at `point`, checked; `split` is what forward gave in split mode."""

        def pullback(g: AnyArray) -> tuple[AnyArray | None, ...]:
            g = self._cotangent_of_y(g, point)
            if split is not None:
                return self._cotangents(
                    "pullback", self._call("pullback", split, (g,), NO_OPTIONS), point
                )
            if self.mode is Mode.VJP:
                inputs = (point.inputs[0], g, *point.inputs[1:])
                result = self._call("vjp", self.function("vjp"), inputs, self.options)
                return self._cotangents("vjp", result, point)
            return self._contracted(self._jacobians(point), g, point)

        return pullback

    def _cotangent_of_y(self, g: AnyArray, point: _Point) -> AnyArray:
        if g.shape != point.plan.y:
            raise InputError(
                f"{self.name}: the cotangent has shape {g.shape}, y has {point.plan.y}"
            )
        return _frozen(g if g.dtype is point.dtype else g.astype(point.dtype, copy=False))

    def _zero_pullback(self, point: _Point) -> Pullback:
        """Return the pullback of an empty batch, which the solver never sees."""
        shapes = self._own_shapes(point)
        wanted = self.spec.differentiable

        def pullback(g: AnyArray) -> tuple[AnyArray | None, ...]:
            return tuple(
                np.zeros(s, point.given) if w else None for s, w in zip(shapes, wanted, strict=True)
            )

        return pullback

    def _own_shapes(self, point: _Point) -> list[Shape]:
        """Return the shapes in which x and the args were given."""
        shapes = list(point.plan.inputs)
        for index in point.plan.spread:
            shapes[index] = shapes[index][1:]
        return shapes

    def _entries(self, role: str, result: Any) -> tuple[Any, ...]:
        """Return what a derivative function gave as ``(dx, *dargs)``."""
        count = len(self._inputs)
        if isinstance(result, SEQUENCE):
            if len(result) == count or (self._is_plain and len(result) == 1):
                return tuple(result)
            got = f"returned {len(result)} entries"
        elif self._is_plain:
            return (result,)
        else:
            got = f"returned a single {type(result).__name__}"
        names = ", ".join(array.name for array in self.spec.inputs)
        self._broken(
            role,
            f"{got}, expected a tuple of {count}: one entry for each of {names} "
            "(None for what is not differentiable).",
            count,
            got,
        )

    def _cotangents(self, role: str, result: Any, point: _Point) -> tuple[AnyArray | None, ...]:
        # x alone, the hot case
        entry = result[0] if type(result) is tuple and len(result) == 1 else result
        if self._is_plain and type(entry) is ndarray:
            return (self._cotangent(role, 0, entry, point), *self._padding)
        entries = self._entries(role, result)
        if len(entries) == 1:
            return (self._cotangent(role, 0, entries[0], point), *self._padding)
        checked: list[AnyArray | None] = [None] * len(self._inputs)
        for index, entry in enumerate(entries):
            if self._wanted[index]:
                checked[index] = self._cotangent(role, index, entry, point)
        return tuple(checked)

    def _cotangent(self, role: str, index: int, entry: Any, point: _Point) -> AnyArray:
        value: AnyArray = entry
        dtype = point.dtype
        if type(entry) is not ndarray or (entry.dtype is not dtype and entry.dtype != dtype):
            value = self._real(role, self._inputs[index].name, entry, point.dtype)
        if value.shape != point.plan.inputs[index]:
            self._wrong_cotangent(role, index, value.shape, point)
        if index in point.plan.spread:
            value = np.asarray(value.sum(0))  # a 0-d arg's would be a scalar
        return value if point.given is point.dtype else self._given_back(value, point)

    def _given_back(self, value: AnyArray, point: _Point, what: str = "") -> AnyArray:
        """Return `value` in the dtype in which x was given; y must fit.

        A cotangent may overflow to infinity, as torch's own do in half precision: that is what a
        gradient scaler looks for.
        """
        if point.given is point.dtype or point.given == point.dtype:
            return value
        if what:
            return _narrowed(self.name, what, value, point.given)
        with np.errstate(over="ignore"):
            return value.astype(point.given)

    def _wrong_cotangent(self, role: str, index: int, got: Shape, point: _Point) -> NoReturn:
        array, expected = self.spec.inputs[index], point.plan.inputs[index]
        per_sample = len(expected) > len(array.shape)
        spelt = self._spelt(expected, array.shape, per_sample=per_sample)
        hint = f"It must return the cotangent of {array.name}"
        if not per_sample and got == (point.plan.y[0], *expected):
            hint += ", summed over the batch: the arg is shared"
        elif got == point.plan.y:
            x, y = self._sized(array, expected), self._sized(self.spec.y, got)
            hint += f" ({x}), not of {self.spec.y.name} ({y})"
        self._broken(
            role,
            f"returned shape {got} for {array.name}, expected {spelt}. {hint}.",
            expected,
            got,
        )

    def _jacobians(self, point: _Point) -> list[AnyArray | None]:
        """Run the declared Jacobian and return what it gave for each array, checked."""
        result = self._call("jacobian", self.function("jacobian"), point.inputs, self.options)
        found: list[AnyArray | None] = [None] * len(self._inputs)
        for index, entry in enumerate(self._entries("jacobian", result)):
            if self._wanted[index]:
                core = self._core_of(index, point.plan.inputs[index])
                found[index] = self._jacobian_of(self._inputs[index], entry, core, point)
        return found

    def _core_of(self, index: int, shape: Shape) -> Shape:
        return shape[1:] if len(shape) > len(self._inputs[index].shape) else shape

    def _contracted(
        self, jacobians: list[AnyArray | None], g: AnyArray, point: _Point
    ) -> tuple[AnyArray | None, ...]:
        """Contract g with the Jacobians: ``dx[b] = sum_y g[b, y] J[b, y, :]``; sum if shared."""
        flat = g.reshape(len(g), 1, -1)
        cotangents: list[AnyArray | None] = [None] * len(self._inputs)
        for index, jacobian in enumerate(jacobians):
            if jacobian is None:
                continue
            own = point.plan.inputs[index]
            core = self._core_of(index, own)
            rows = np.matmul(flat, jacobian.reshape(len(g), flat.shape[2], -1))
            rows = rows.reshape(len(g), *core)
            shared = len(own) == len(core) or index in point.plan.spread
            cotangents[index] = self._given_back(np.asarray(rows.sum(0)) if shared else rows, point)
        return tuple(cotangents)

    def _jacobian_of(self, array: Array, entry: Any, core: Shape, point: _Point) -> AnyArray:
        jacobian = self._real("jacobian", f"d{self.spec.y.name}/d{array.name}", entry, point.dtype)
        expected = (*point.plan.y, *core)
        if jacobian.shape != expected:
            spelt = self._spelt(expected, (*self.spec.y.shape, *array.shape))
            transposed = (point.plan.y[0], *core, *point.plan.y[1:])
            hint = (
                " Its axes are transposed: first y, then x." if jacobian.shape == transposed else ""
            )
            self._broken(
                "jacobian",
                f"returned shape {jacobian.shape} for {array.name}, expected {spelt}.{hint}",
                expected,
                jacobian.shape,
            )
        return jacobian

    def _real(self, role: str, what: str, value: Any, dtype: np.dtype[Any]) -> AnyArray:
        """Return `value` as an array, refused unless it has the dtype `dtype`."""
        if value is None:
            self._broken(role, f"returned None for {what}, expected an array", dtype, None)
        if isinstance(value, np.ma.MaskedArray):
            self._broken(role, f"returned a masked array for {what}; its mask would be lost")
        array = value if type(value) is np.ndarray else np.asarray(value)
        if array.dtype != dtype:
            hint = ""
            if array.dtype.kind == "c":
                hint = " Its imaginary part would be lost: return the real part if that is meant."
            elif array.dtype.kind == "f":
                hint = f" Cast it back (y.astype(x.dtype)) or declare dtypes=('{array.dtype}',)."
            self._broken(
                role,
                f"returned {array.dtype} for {what}, expected {dtype}.{hint}",
                dtype,
                array.dtype,
            )
        return array

    def _spelt(self, shape: Shape, core: tuple[int | str, ...], *, per_sample: bool = True) -> str:
        """Return ``"(8, 4) = (batch, n)"``."""
        names = [str(size) for size in core]
        symbols = ", ".join(["batch", *names] if per_sample else names)
        return f"{shape} = ({symbols})" if symbols != ", ".join(map(str, shape)) else str(shape)

    def _sized(self, array: Array, shape: Shape) -> str:
        """Return ``"n = 4"``: the sizes of the core, which comes last."""
        core = shape[len(shape) - len(array.shape) :]
        return ", ".join(
            f"{size} = {got}" if isinstance(size, str) else str(size)
            for size, got in zip(array.shape, core, strict=True)
        )

    def _broken(
        self, role: str, message: str, expected: object = None, got: object = None
    ) -> NoReturn:
        where = self.where(role)
        raise ContractError(
            f"{self.name} ({self.mode}): {role} {message} {where}".rstrip(),
            solver=self.name,
            mode=self.mode.value,
            where=f"{role} ({where})" if where else role,
            expected=expected,
            got=got,
        )


def _rebuilt(
    spec: SolverSpec,
    options: dict[str, Any],
    second_order: str | None,
    distribution: str,
    version: str,
) -> Solver:
    return Solver(
        spec, options, second_order=second_order, distribution=distribution, version=version
    )


_local: WeakValueDictionary[str, Solver] = WeakValueDictionary()
_local_numbers = itertools.count()


def _identity(solver: Solver) -> str:
    """Return the JSON by which a program finds the solver, in another process too.

    One that is not packaged has a number instead, good for this process.
    """
    if not solver.distribution:
        identity = f"{solver.name}#{next(_local_numbers)}"
        _local[identity] = solver
        return identity
    return json.dumps(
        {
            "solver": f"{solver.distribution}/{solver.name}",
            "version": solver.version,
            "options": solver.options,
            "second_order": solver.second_order,
        }
    )


@functools.lru_cache(maxsize=128)
def _packaged(identity: str) -> Solver:
    """Return the solver that a program calls `identity`, warning of another version."""
    wanted = json.loads(identity)
    name, version = wanted["solver"], wanted["version"]
    distribution, _, bare = name.partition("/")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in wanted["options"].items()}
    try:
        solver = named(name, options, second_order=wanted["second_order"])
    except UnknownSolverError as error:
        raise PluginError(
            f"this program calls the solver {bare} of {distribution} {version}, which is not "
            "installed",
            code="P102",
            distribution=distribution,
            version=version,
            entry_point=bare,
            mend=f"pip install '{distribution}=={version}'",
        ) from error
    if solver.version != version:
        warnings.warn(
            f"this program was made with {distribution} {version}; {solver.version} is installed, "
            "and its results may differ",
            UserWarning,
            stacklevel=2,
        )
    return solver


def identified(identity: str) -> Solver:
    """Return the solver that a compiled or exported program calls `identity`.

    Parameters
    ----------
    identity : str
        `Solver.identity`.

    Raises
    ------
    PluginError
        Its plugin is not installed here, or broken; or it was not packaged, and belongs to a
        process that is gone.

    Warns
    -----
    UserWarning
        The installed version is not the one that the program was made with.
    """
    if identity.startswith("{"):
        return _packaged(identity)
    solver = _local.get(identity)
    if solver is None:
        name = identity.partition("#")[0]
        raise PluginError(
            f"this program calls {name!r}, a solver that was not packaged: it lived in the process "
            "that made the program",
            code="P101",
            entry_point=name,
            mend="make it a plugin, with an entry point in the group adeptml.solvers, and export "
            "the program again",
        )
    return solver


def named(
    name: str,
    options: Mapping[str, object] | None = None,
    *,
    second_order: str | None = None,
) -> Solver:
    """Return the installed solver called `name`, ready to call.

    Parameters
    ----------
    name : str
        ``"heat1d"`` or ``"adeptml-heat1d/heat1d"``.
    options : mapping, optional
        Values by name.
    second_order : ``"differences"``, optional
        As of `Solver`.

    Raises
    ------
    UnknownSolverError, PluginError, ConfigError
        No such solver; a broken plugin; wrong options.
    """
    entry = registry.find(name)
    return Solver(
        registry.load(entry),
        options,
        second_order=second_order,
        distribution=entry.distribution,
        version=entry.version,
    )


# ---- small change --------------------------------------------------------------------------------

_locks: dict[str, threading.RLock] = {}


def _lock(distribution: str) -> threading.RLock:
    """Return the one re-entrant lock of a distribution whose solvers are not thread-safe."""
    return _locks.setdefault(distribution, threading.RLock())


def _frozen(array: AnyArray) -> AnyArray:
    """Return a C-contiguous, read-only view (or copy, where it must) of `array`."""
    flags = array.flags
    if flags.c_contiguous and not flags.writeable:
        return array
    if not flags.c_contiguous:
        array = np.asarray(array, order="C")  # not ascontiguousarray, which makes 0-d 1-d
    array = array.view()
    array.setflags(write=False)
    return array


def _narrowed(name: str, what: str, value: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
    """Cast a result back to the dtype in which x was given."""
    try:
        with np.errstate(over="raise"):
            return value.astype(dtype)
    except FloatingPointError:
        raise InputError(
            f"{name}: {what} holds values too large for {dtype}, the dtype of x; give x in a "
            "wider dtype."
        ) from None

import doctest
import math
import pickle
from typing import Any

import numpy as np
import pytest

from adeptml_core import spec as spec_module
from adeptml_core import table
from adeptml_core.errors import ApiVersionError, ConfigError, SpecError
from adeptml_core.plugin import API, Array, Mode, Option, SolverSpec


def make(**fields: Any) -> SolverSpec:
    """Return a sound spec with some fields replaced."""
    usual: dict[str, Any] = {
        "name": "cube",
        "mode": "vjp",
        "summary": "elementwise cube",
        "x": Array("x", ("n",)),
        "y": Array("y", ("n",)),
        "forward": "package.solver:forward",
        "vjp": "package.solver:vjp",
    }
    return SolverSpec(**(usual | fields))


# ---- arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "signature"),
    [
        (Array("k", ("n",), unit="W/m/K"), "k[n] W/m/K"),
        (Array("u", (3, "n")), "u[3,n]"),
        (Array("t", unit="s"), "t s"),
        (Array("mask", ("n",), dtype="bool"), "mask[n] bool"),
    ],
)
def test_an_array_signs_with_name_shape_and_unit(array: Array, signature: str) -> None:
    """The signature reads as in ``list``; pure numbers have no unit."""
    assert array.signature == signature


@pytest.mark.parametrize(
    ("shape", "bound"),
    [
        ((), 1.0),
        (("n",), -math.inf),
        (("n",), (1.0, 2.0)),
        ((2,), (1.0,)),
        ((2,), [1, np.float64(2.5)]),
        ((2, 3), (1.0, 2.0, 3.0)),
        ((2, 3), ((1.0,), (2.0,))),
        ((2, 3), ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))),
        (("m", 3), ((1.0, 2.0, 3.0),) * 7),
    ],
)
def test_bounds_broadcast_to_the_core_shape(shape: tuple[int | str, ...], bound: Any) -> None:
    """A number or a nested tuple (or list) that NumPy would broadcast is taken, as tuples."""
    array = Array("a", shape, low=bound)
    assert np.array_equal(np.array(array.low), np.array(bound))
    assert hash(array) == hash(Array("a", shape, low=array.low))


@pytest.mark.parametrize(
    ("shape", "bound", "message"),
    [
        ((), (1.0,), r"low=\(1.0,\) does not broadcast to the core shape \(\)"),
        ((2,), (1.0, 2.0, 3.0), "does not broadcast to the core shape"),
        ((2, 3), (1.0, 2.0), "does not broadcast to the core shape"),
        ((2,), ((1.0, 2.0),), "does not broadcast to the core shape"),
        ((2, 3), ((1.0, 2.0, 3.0),) * 3, "does not broadcast to the core shape"),
        ((2, 2), ((1.0, 2.0), (1.0,)), "neither a number nor an even tuple"),
        ((2, 2), ((1.0, 2.0), 1.0), "neither a number nor an even tuple"),
        ((2,), (1.0, math.nan), "neither a number nor an even tuple"),
        ((2,), (), "neither a number nor an even tuple"),
        ((2,), ("a", "b"), "neither a number nor an even tuple"),
        ((), math.nan, "neither a number nor an even tuple"),
        ((), True, "neither a number nor an even tuple"),
        ((), "0", "neither a number nor an even tuple"),
        ((), 1j, "neither a number nor an even tuple"),
    ],
)
def test_bounds_that_do_not_fit_are_refused(shape: Any, bound: Any, message: str) -> None:
    """A ragged, empty, complex or NaN bound, or one of the wrong shape, is the author's error."""
    with pytest.raises(SpecError, match=message):
        Array("a", shape, low=bound)


@pytest.mark.parametrize(
    ("shape", "low", "high", "fits"),
    [
        ((), 0.0, 0.0, True),
        ((), 1.0, 0.0, False),
        ((2,), (0.0, 5.0), (1.0, 5.0), True),
        ((2,), (0.0, 5.0), (1.0, 4.0), False),
        ((2,), 1.5, (1.0, 2.0), False),
        ((2,), (0.0, 3.0), 2.0, False),
        ((2, 2), ((0.0,), (3.0,)), (4.0, 2.0), False),
        ((2, 2), ((0.0,), (3.0,)), (4.0, 3.0), True),
        ((2, 2), (0.0, 3.0), ((4.0, 3.0), (4.0, 2.0)), False),
        (("n",), (0.0, 0.0), (1.0, 1.0, 1.0), False),
    ],
)
def test_low_is_below_high_in_every_entry(shape: Any, low: Any, high: Any, fits: bool) -> None:
    """The bounds are compared entry by entry as they broadcast."""
    if fits:
        assert Array("a", shape, low=low, high=high).high == high
        return
    with pytest.raises(SpecError, match=r"above high|do not broadcast to each other"):
        Array("a", shape, low=low, high=high)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "2k"}, "no identifier"),
        ({"name": "lambda"}, "no identifier"),
        ({"name": None}, "no identifier"),
        ({"shape": "n"}, r"write a tuple, as in \('n',\)"),
        ({"shape": (0,)}, "size 0 is neither"),
        ({"shape": (-1,)}, "size -1 is neither"),
        ({"shape": (True,)}, "size True is neither"),
        ({"shape": (2.0,)}, r"size 2\.0 is neither"),
        ({"shape": ("n+1",)}, "size 'n.1' is neither"),
        ({"unit": None}, "unit=None is not a string"),
        ({"doc": 3}, "doc=3 is not a string"),
        ({"differentiable": 1}, "neither True nor False"),
        ({"batched": "yes"}, "none of None, True, False"),
        ({"batched": 1}, "none of None, True, False"),
        ({"dtype": "float64"}, "Leave it out for a floating array"),
        ({"dtype": "complex128"}, "otherwise one of bool, int8"),
        ({"dtype": "int64", "differentiable": True}, "int64 array cannot be differentiable"),
    ],
)
def test_an_array_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    """Each wrong field is a SpecError that names the array and the value."""
    with pytest.raises(SpecError, match=message):
        Array(**({"name": "k"} | fields))


# ---- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "given", "value"),
    [
        (Option("t", 1.0), 2, 2.0),
        (Option("t", 1.0), np.float32(0.5), 0.5),
        (Option("t", float), math.inf, math.inf),
        (Option("n", 1), np.int64(3), 3),
        (Option("on", False), True, True),
        (Option("mesh", str), "a.msh", "a.msh"),
        (Option("ends", (0.0, 1.0)), [2, 3], (2.0, 3.0)),
        (Option("ends", (0, 0.5)), [2, 3], (2.0, 3.0)),
        (Option("ends", tuple), [2, "a", False], (2, "a", False)),
        (Option("ends", ()), [], ()),
        (Option("poles", 14, choices=(8, 14)), 8, 8),
        (Option("t", 1.0, low=0.0, high=2.0), 2, 2.0),
    ],
)
def test_options_are_cast_without_loss(option: Option, given: object, value: object) -> None:
    """Ints become floats, numpy scalars Python numbers, lists tuples; the result hashes."""
    validated = option.validate(given)
    assert validated == value
    assert type(validated) is type(value)
    assert hash(validated) == hash(value)


@pytest.mark.parametrize(
    ("option", "given", "message"),
    [
        (Option("t", 1.0), "1", "must be a value of type float"),
        (Option("t", 1.0), True, "must be a value of type float"),
        (Option("t", 1.0), math.nan, "must be a value of type float"),
        (Option("t", 1.0), None, "must be a value of type float"),
        (Option("n", 1), 1.0, "must be a value of type int"),
        (Option("n", 1), True, "must be a value of type int"),
        (Option("on", False), 1, "must be a value of type bool"),
        (Option("mesh", str), b"a", "must be a value of type str"),
        (Option("ends", (0.0,)), 1.0, "must be a tuple"),
        (Option("ends", (0.0,)), "01", "must be a tuple"),
        (Option("ends", ()), [(1,)], "must be a value of type bool, int, float or str"),
        (Option("ends", (0.0,), low=0.0), [1.0, -1.0], r"is -1\.0; it must be at least 0"),
        (Option("t", 1.0, unit="s", low=0.0), -1, r"is -1\.0 s; it must be at least 0 s"),
        (Option("t", 1.0, high=2.0), 3, r"it must be at most 2"),
        (Option("t", 1.0, low=0, high=2.5), 3, r"it must lie in 0 \.\. 2\.5"),
        (Option("t", 1.0, low=0), 10**400, "too large for a floating number"),
        (Option("t", 1, high=5), 10**400, "it must be at most 5"),
        (Option("s", "up", choices=("up", "down")), "dwon", r"one of 'up', 'down'\. Did you mean"),
    ],
)
def test_values_that_do_not_fit_are_refused(option: Option, given: object, message: str) -> None:
    """A wrong type, NaN, a value out of bounds or not among the choices is the user's error."""
    with pytest.raises(ConfigError, match=message):
        option.validate(given)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "time step"}, "no identifier"),
        ({"default": None}, "write a bool, int, float, str"),
        ({"default": [1]}, "write a bool, int, float, str"),
        ({"default": dict}, "write a bool, int, float, str"),
        ({"default": math.nan}, "contradicts itself"),
        ({"default": ((1,),)}, "contradicts itself"),
        ({"unit": 1}, "unit=1 is not a string"),
        ({"low": "0"}, "low='0' is no number"),
        ({"low": 2.0}, r"contradicts itself: option 't' is 1\.0; it must be at least 2"),
        ({"low": 2.0, "high": 1.0}, r"low=2\.0 is above high=1\.0"),
        ({"default": "a", "low": 0.0}, r"low=0\.0 bounds a str"),
        ({"default": True, "high": 0}, "high=0 bounds a bool"),
        ({"choices": ()}, r"choices=\(\) is not a tuple of values"),
        ({"choices": "abc"}, "choices='abc' is not a tuple of values"),
        ({"choices": (2.0,)}, r"is 1\.0; it must be one of 2\.0"),
        ({"choices": (1.0, "a")}, "'a'; it must be a value of type float"),
        ({"choices": (1.0, -1.0), "low": 0.0}, r"is -1\.0; it must be at least 0"),
    ],
)
def test_an_option_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    """The declaration is checked when it is made, default and choices included."""
    with pytest.raises(SpecError, match=message):
        Option(**({"name": "t", "default": 1.0} | fields))


def test_a_type_in_place_of_a_default_means_required() -> None:
    """A required option has a type and no default; its choices are checked all the same."""
    option = Option("scheme", str, choices=("up", "down"))
    assert option.required
    assert option.type is str
    assert not Option("t", 1.0).required


# ---- specs -------------------------------------------------------------------------------------


def test_a_spec_knows_its_inputs_and_signature() -> None:
    """Derived facts: inputs in order, which have cotangents, the one-line signature."""
    k = Array("k", ("n",), unit="W/m/K", differentiable=True)
    spec = make(args=[k, Array("steps", dtype="int64")])
    assert [array.name for array in spec.inputs] == ["x", "k", "steps"]
    assert spec.differentiable == (True, True, False)
    assert spec.signature == "(x[n], k[n] W/m/K, steps int64) -> y[n]"
    assert repr(spec) == f"<SolverSpec cube: vjp, {spec.signature}>"


def test_a_spec_is_a_value() -> None:
    """Equal specs are equal, hash alike, survive pickling, and cannot be changed."""
    spec = make(expected_failures={"float32": "single precision library"}, requires=["jax>=0.4"])
    twin = pickle.loads(pickle.dumps(spec))
    assert twin == spec
    assert hash(twin) == hash(spec)
    assert spec.mode is Mode.VJP
    assert spec.requires == ("jax>=0.4",)
    with pytest.raises(AttributeError):
        spec.name = "other"  # type: ignore[misc]


SIZED = Array("y", ("m",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Cube"}, "must be lower-case letters"),
        ({"name": "a--b"}, "must be lower-case letters"),
        ({"name": "cube\n"}, "must be lower-case letters"),
        ({"name": 3}, "must be lower-case letters"),
        ({"mode": "split-vjp"}, r"none of jacobian, vjp, split_vjp\. Did you mean 'split_vjp'"),
        ({"mode": None}, "mode=None is none of"),
        ({"summary": ""}, "must be one line of text"),
        ({"summary": "a\nb"}, "must be one line of text"),
        ({"summary": None}, "summary=None is not a string"),
        ({"url": None}, "url=None is not a string"),
        ({"x": "x"}, "x holds 'x', not an Array"),
        ({"args": ("k",)}, "args holds 'k', not an Array"),
        ({"args": Array("k")}, "is not a tuple"),
        ({"args": (Array("x"),)}, "two inputs share a name in x, x"),
        ({"x": Array("x", ("n",), batched=True)}, "drop dtype and batched"),
        ({"y": Array("y", ("n",), dtype="int64")}, "drop dtype and batched"),
        ({"options": (Array("t"),)}, "not an Option"),
        ({"options": (Option("t", 1.0), Option("t", 2.0))}, "'t' bears the name of another option"),
        ({"options": (Option("x", 1.0),)}, "'x' bears the name of an input"),
        ({"options": (Option("rng", 1),)}, "'rng' bears the name of an argument of example"),
        ({"vjp": None}, "mode vjp needs vjp="),
        ({"mode": "jacobian", "vjp": None}, "mode jacobian needs jacobian="),
        ({"mode": "split_vjp"}, "mode split_vjp never calls vjp="),
        ({"jacobian": "a:b"}, "mode vjp never calls jacobian="),
        ({"forward": "a.b"}, "neither 'module:attribute' nor callable"),
        ({"forward": "a b:c"}, "neither 'module:attribute' nor callable"),
        ({"forward": "a:"}, "neither 'module:attribute' nor callable"),
        ({"jvp": 3}, "jvp=3 is neither"),
        ({"y": SIZED}, "size 'm' of y is given by no input"),
        ({"y": SIZED, "options": (Option("m", 2.0),)}, "is an option that is no int"),
        ({"row_independent": 1}, "row_independent=1 is neither True nor False"),
        (
            {"mode": "jacobian", "jacobian": "a:b", "vjp": None, "row_independent": False},
            "rows that couple need mode vjp or split_vjp",
        ),
        ({"dtypes": ()}, "must be some of float64"),
        ({"dtypes": ("int64",)}, "must be some of float64"),
        ({"dtypes": "float64"}, "is not a tuple"),
        ({"tolerance": 0.0}, "no relative accuracy"),
        ({"tolerance": True}, "no relative accuracy"),
        ({"requires": "jax"}, "is not a tuple"),
        ({"requires": ("",)}, "requirement strings"),
        ({"expected_failures": ["float32"]}, "must map a check's id to the reason"),
        ({"expected_failures": {"float32": ""}}, "must map a check's id to the reason"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    """A wrong spec is an error at the author's desk, naming the solver and the value."""
    with pytest.raises(SpecError, match=message):
        make(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"y": SIZED, "options": (Option("m", 2),)},
        {"y": SIZED, "sizes": "package.solver:sizes"},
        {"y": SIZED, "args": (Array("points", ("m", 2)),)},
    ],
)
def test_every_size_has_a_source(fields: dict[str, Any]) -> None:
    """A symbolic size comes from an input, an integer option, or ``sizes=``."""
    assert make(**fields).y.shape == ("m",)


@pytest.mark.parametrize(("api", "is_newer"), [(API + 1, True), (API - 1, False), ("1", False)])
def test_another_contract_is_told_apart_first(api: Any, is_newer: bool) -> None:
    """A spec of another api may be wrong by our rules in every field: only the api is judged."""
    with pytest.raises(ApiVersionError, match="this core speaks api 1") as caught:
        make(api=api, mode="reverse")
    assert caught.value.is_newer is is_newer


def test_functions_may_be_callables() -> None:
    """A solver that is not packaged gives its functions themselves."""
    assert make(forward=math.sin, vjp=math.cos).forward is math.sin


# ---- options of a spec -------------------------------------------------------------------------


def test_options_resolve_to_all_values() -> None:
    """What was given is validated, the rest are defaults, in the order declared."""
    spec = make(options=(Option("t", 1.0), Option("n", 2), Option("mesh", str)))
    assert spec.resolve_options({"mesh": "a", "t": 3}) == {"t": 3.0, "n": 2, "mesh": "a"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"lenght": 1.0},
            "cube has no option 'lenght'. Did you mean 'length'. Its options: length",
        ),
        ({}, r"cube needs a value for mesh; set options=\{'mesh': \.\.\.\}"),
        ({"mesh": "a", "length": "b"}, "cube: option 'length' is 'b'"),
    ],
)
def test_options_that_do_not_resolve_are_refused(given: dict[str, Any], message: str) -> None:
    """Unknown, missing and unfitting options are errors that name solver and option."""
    spec = make(options=(Option("length", 1.0), Option("mesh", str)))
    with pytest.raises(ConfigError, match=message):
        spec.resolve_options(given)


@pytest.mark.parametrize("module", [spec_module, table])
def test_the_examples_in_docstrings_run(module: Any) -> None:
    """What a docstring shows is what happens."""
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0

"""What a hybrid model is made of, as data: networks, solvers by name, and who feeds whom.

A config holds no tensor and imports no torch. It checks itself completely when it is made, so that
a misspelt source, an unknown option or an activation that does not exist is an error on the line
that wrote it, not a `KeyError` in the first forward pass, and never a silent identity.

A config whose solvers are all named survives JSON and TOML: `HybridConfig.to_dict` leaves out what
is None, writes "all columns" as ``"all"``, infinities as ``"inf"``, and a module as
``{"module": name}``, to be handed back to `HybridConfig.from_dict`.
"""

import math
import numbers
import operator
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any

from adeptml_core import registry
from adeptml_core.errors import ConfigError
from adeptml_core.spec import Array, Mode, SolverSpec, check_second_order, did_you_mean

__all__ = [
    "ACTIVATIONS",
    "INPUT",
    "HybridConfig",
    "MLPConfig",
    "ModelConfig",
    "PhysicsConfig",
]

ACTIVATIONS = (
    "identity",
    "relu",
    "leakyrelu",
    "elu",
    "sigmoid",
    "tanh",
    "sin",
    "softplus",
    "swish",
)
"""Names of the activations that `MLPConfig` takes."""

INPUT = "Input"
"""The source that stands for the model's own input."""

ALL = "all"


def __getattr__(name: str) -> Any:
    """Give ``DEVICE`` to scripts that import it; results themselves go to the device of x."""
    if name == "DEVICE":
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ---- networks ----------------------------------------------------------------------------------


@dataclass
class MLPConfig:
    """A multilayer perceptron.

    Parameters
    ----------
    num_input_dim, num_hidden_dim, num_output_dim : int
        Widths.
    num_hidden_layers : int
        Number of hidden layers after the affine lift; may be 0.
    hidden_activation, output_activation : str
        One of `ACTIVATIONS`.

    Raises
    ------
    ConfigError
        For a width below 1, a negative number of layers, an unknown activation.

    Examples
    --------
    >>> MLPConfig(4, 16, 2, 2, "swish", "identity").num_output_dim
    2
    """

    num_input_dim: int
    num_hidden_dim: int
    num_output_dim: int
    num_hidden_layers: int
    hidden_activation: str
    output_activation: str

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise `ConfigError` where a field is wrong."""
        for name in ("num_input_dim", "num_hidden_dim", "num_output_dim", "num_hidden_layers"):
            least = 0 if name == "num_hidden_layers" else 1
            setattr(self, name, _integer(f"MLPConfig: {name}", getattr(self, name), least))
        for name in ("hidden_activation", "output_activation"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value in ACTIVATIONS):
                hint = did_you_mean(str(value), ACTIVATIONS)
                raise ConfigError(
                    f"MLPConfig: {name}={value!r} is unknown.{hint} "
                    f"One of {', '.join(ACTIVATIONS)}."
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the six fields, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "MLPConfig":
        """Return the config that `to_dict` wrote."""
        return cls(**_known_keys("MLPConfig", data, [f.name for f in fields(cls)], required=True))


def _integer(where: str, value: object, least: int) -> int:
    number = _index(value)
    if number is None or number < least:
        raise ConfigError(f"{where}={value!r} must be an integer of at least {least}")
    return number


def _index(value: Any) -> int | None:
    """Return `value` as an int, None where it is none (a bool is none either)."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _known_keys(
    where: str, data: Mapping[str, Any], known: Sequence[str], *, required: bool = False
) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected a table of settings, got {data!r}")
    for key in data:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}.{did_you_mean(str(key), known)}")
    missing = [key for key in known if key not in data]
    if required and missing:
        raise ConfigError(f"{where}: {', '.join(missing)} missing")
    return dict(data)


# ---- solvers -----------------------------------------------------------------------------------


@dataclass
class PhysicsConfig:
    """A physics solver: bare functions, or an installed solver by name.

    Parameters
    ----------
    forward_func : callable, optional
        ``forward_func(x, *args) -> y``; in split mode ``-> (y, pullback)``. Numpy in, numpy out.
    jacobian_func : callable, optional
        In jacobian mode ``jacobian_func(x, *args) -> (batch, out, in)``, in vjp mode
        ``jacobian_func(x, grad_output, *args) -> (batch, in)``; not used in split mode.
    use_vjp, use_split_vjp : bool
        The mode of the bare functions; split beats vjp, jacobian is the default.
    solver : str or SolverSpec, optional
        The name of an installed solver, or the spec of one that is not packaged. Exactly one of
        `forward_func` and `solver` is given.
    options : mapping, optional
        The solver's options by name; validated against their declarations.
    args : mapping, optional
        Constants for the solver's args by name; saved with the config.
    second_order : ``"differences"``, optional
        Second derivatives by central differences of the pullback. By default they are refused,
        unless the solver declares a rule (``hvp``).

    Raises
    ------
    ConfigError
        Both or neither of `forward_func` and `solver`; a missing derivative function; an option or
        arg that is unknown or does not fit.
    UnknownSolverError, PluginError
        No such solver is installed; its plugin is broken.
    """

    forward_func: Callable[..., Any] | None = None
    jacobian_func: Callable[..., Any] | None = None
    use_vjp: bool = False
    use_split_vjp: bool = False
    _: KW_ONLY
    solver: str | SolverSpec | None = None
    options: Mapping[str, Any] | None = None
    args: Mapping[str, Any] | None = None
    second_order: str | None = None

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise `ConfigError` where a field is wrong."""
        check_second_order(self.second_order)
        if (self.forward_func is None) == (self.solver is None):
            given = "neither" if self.solver is None else "both"
            raise ConfigError(
                "PhysicsConfig takes exactly one of forward_func (your own functions) and solver "
                f"(an installed solver's name); got {given}"
            )
        if self.solver is None:
            self._validate_functions()
        else:
            self._validate_solver()

    @property
    def mode(self) -> Mode:
        """How the solver differentiates."""
        if self.solver is not None:
            return Mode(self.spec.mode)
        if self.use_split_vjp:
            return Mode.SPLIT_VJP
        return Mode.VJP if self.use_vjp else Mode.JACOBIAN

    @property
    def spec(self) -> SolverSpec:
        """The declaration of the named solver."""
        if isinstance(self.solver, SolverSpec):
            return self.solver
        if not isinstance(self.solver, str):
            raise ConfigError(
                f"PhysicsConfig: solver={self.solver!r} is neither a name nor a SolverSpec"
            )
        return registry.get_solver(self.solver)

    def _validate_functions(self) -> None:
        for name in ("use_vjp", "use_split_vjp"):
            value = getattr(self, name)
            if isinstance(value, str) or value not in (True, False):
                raise ConfigError(f"PhysicsConfig: {name}={value!r} is neither True nor False")
        for name in ("forward_func", "jacobian_func"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                hint = ""
                if isinstance(function, str):
                    hint = f' For an installed solver write PhysicsConfig(solver="{function}").'
                raise ConfigError(f"PhysicsConfig: {name}={function!r} is not callable.{hint}")
        for name in ("options", "args"):
            if getattr(self, name):
                raise ConfigError(
                    f"PhysicsConfig: {name} go with solver=...; a bare forward_func takes its "
                    "extra arguments from phy_args"
                )
        if self.jacobian_func is None and self.mode is not Mode.SPLIT_VJP:
            signature = "(x, grad_output, *args)" if self.use_vjp else "(x, *args)"
            raise ConfigError(
                f"PhysicsConfig: jacobian_func is missing; mode {self.mode} needs "
                f"jacobian_func{signature}. (If forward_func returns (y, pullback), set "
                "use_split_vjp=True.)"
            )

    def _validate_solver(self) -> None:
        if self.jacobian_func is not None or self.use_vjp or self.use_split_vjp:
            raise ConfigError(
                "PhysicsConfig: a solver declares its mode and functions itself; drop "
                "jacobian_func, use_vjp and use_split_vjp"
            )
        spec = self.spec
        for name in ("options", "args"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise ConfigError(f"PhysicsConfig: {name}={value!r} must map names to values")
        values = spec.resolve_options(self.options)
        self.options = {name: values[name] for name in self.options or {}}
        declared = {array.name: array for array in spec.args}
        for name, value in (self.args or {}).items():
            _check_arg_name(f"PhysicsConfig(solver={spec.name!r})", spec, name)
            _check_constant(spec, declared[name], value)
        self.args = dict(self.args or {})

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"solver", "options", "args", "second_order"}``, for JSON and TOML.

        Raises
        ------
        ConfigError
            For bare functions and unpackaged specs: they have no name to write down.
        """
        if not isinstance(self.solver, str):
            what = "a bare forward_func" if self.solver is None else "a SolverSpec object"
            raise ConfigError(
                f"{what} has no name that could be written down; package the solver as a plugin "
                "and refer to it by name"
            )
        data: dict[str, Any] = {"solver": self.solver}
        for name in ("options", "args"):
            values = getattr(self, name)
            if values:
                data[name] = {key: _encoded(value) for key, value in values.items()}
        if self.second_order is not None:
            data["second_order"] = self.second_order
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PhysicsConfig":
        """Return the config that `to_dict` wrote."""
        known = ("solver", "options", "args", "second_order")
        data = _known_keys("PhysicsConfig", data, known)
        name = data.get("solver")
        if not isinstance(name, str):
            raise ConfigError(f"PhysicsConfig: solver={name!r} must be a solver's name")
        texts = {o.name for o in registry.get_solver(name).options if o.type is str}
        options = {
            key: value if key in texts else _decoded(value)
            for key, value in _mapping("options", data.get("options") or {}).items()
        }
        args = _mapping("args", data.get("args") or {})
        decoded = {key: _decoded(value) for key, value in args.items()}
        second_order = data.get("second_order")
        return cls(solver=name, options=options, args=decoded, second_order=second_order)


ModelConfig = MLPConfig | PhysicsConfig


def _check_arg_name(where: str, spec: SolverSpec, name: object) -> None:
    names = [array.name for array in spec.args]
    if name not in names:
        listed = ", ".join(names) or "none"
        hint = did_you_mean(str(name), names)
        if name == spec.x.name:
            hint = " That is its x, which the routing feeds."
        raise ConfigError(f"{where}: {spec.name} has no arg {name!r}.{hint} Its args: {listed}.")


def _check_constant(spec: SolverSpec, array: Array, value: object) -> None:
    where = f"PhysicsConfig(solver={spec.name!r}): args[{array.name!r}]"
    if getattr(value, "requires_grad", False):
        raise ConfigError(
            f"{where} requires grad, but a constant is never trained. Feed it from a member with "
            "arg_inputs, or give it in phy_args."
        )
    shape = _shape(where, value)
    core = shape if len(shape) == len(array.shape) else shape[1:]
    fits = len(shape) - len(array.shape) in (0, 1) and all(
        isinstance(size, str) or size == got for size, got in zip(array.shape, core, strict=True)
    )
    if not fits:
        raise ConfigError(
            f"{where} has shape {shape}; {array.name} has the core shape {array.shape}"
        )
    _check_entries(where, array, value)


def _check_entries(where: str, array: Array, value: Any) -> None:
    """Check that every entry is a number, and one that the arg's dtype holds."""
    entries = list(_entries(value))
    kinds = set(map(type, entries))
    if not all(issubclass(kind, numbers.Real) for kind in kinds):
        raise ConfigError(f"{where}={value!r} is no number, nor an array of numbers")
    try:
        has_nan = any(map(math.isnan, entries))
    except OverflowError:
        raise ConfigError(f"{where}={value!r} is too large for a floating number") from None
    if has_nan:
        raise ConfigError(f"{where}={value!r} is NaN, or holds it, which is no value")
    if array.dtype is None or not entries:
        return
    low, high = _limits(array.dtype)
    is_integral = all(issubclass(kind, numbers.Integral) for kind in kinds)
    if not is_integral or min(entries) < low or max(entries) > high:
        raise ConfigError(
            f"{where}={value!r} does not fit into {array.dtype}, the dtype of {array.name}"
        )


def _entries(value: Any) -> Iterator[Any]:
    """Yield the numbers in nested lists, arrays and tensors."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        for item in value:
            yield from _entries(item)
    else:
        yield value


def _limits(dtype: str) -> tuple[int, int]:
    """Return the least and the greatest value of ``"bool"``, ``"int8"``, ``"uint8"``, ..."""
    if dtype == "bool":
        return 0, 1
    bits = int(dtype.lstrip("uint"))
    return (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _shape(where: str, value: object) -> tuple[int, ...]:
    """Return the shape of a number, nested sequence, array or tensor, without numpy."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return tuple(shape)
    if isinstance(value, list | tuple):
        inner = {_shape(where, item) for item in value}
        if len(inner) > 1:
            raise ConfigError(f"{where}={value!r} is ragged: its rows differ in shape")
        return (len(value), *(inner.pop() if inner else ()))
    if not isinstance(value, numbers.Real):
        raise ConfigError(f"{where}={value!r} is no number, nor an array of numbers")
    return ()


def _encoded(value: Any) -> Any:
    """Return `value` as JSON and TOML have it: lists, numbers, ``"inf"``."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_encoded(item) for item in value]
    if isinstance(value, bool | int | str):
        return value
    number = float(value)  # a Fraction, for instance, is none to JSON
    return {math.inf: "inf", -math.inf: "-inf"}.get(number, number)


def _decoded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_decoded(item) for item in value]
    return float(value) if value in ("inf", "-inf") else value


# ---- the hybrid --------------------------------------------------------------------------------

Selector = list[int] | None
Routing = dict[str, dict[str, Any]]


@dataclass
class HybridConfig:
    """Networks and solvers, in the order in which they run, and who feeds whom.

    Parameters
    ----------
    models : mapping of str to MLPConfig, PhysicsConfig, str or torch.nn.Module
        A string is the name of an installed solver, with its default options. Members run in
        insertion order.
    model_inputs : mapping, optional
        ``{member: {source: columns}}``: what a member's x is made of. A source is ``"Input"`` or an
        earlier member; columns are a list of ints, or None for all. Sources are concatenated along
        dimension 1 in the order given. A member without an entry gets the previous output.
    arg_inputs : mapping, optional
        ``{member: {arg: {source: columns}}}``: what a named solver's args are made of. What is
        routed is flattened per sample, concatenated, and reshaped to the declared core shape.

    Raises
    ------
    ConfigError
        A member of an unknown kind; an unknown, later or own source; a misspelt member or arg;
        columns that are not a list of ints or do not exist; widths that do not fit; a trainable
        member that feeds an arg which is not differentiable.

    Warns
    -----
    UserWarning
        Where one named solver's y feeds another's x or arg, and the units differ.

    Examples
    --------
    >>> config = HybridConfig(
    ...     models={"lift": MLPConfig(4, 8, 3, 1, "tanh", "identity"),
    ...             "head": MLPConfig(5, 8, 1, 1, "tanh", "identity")},
    ...     model_inputs={"head": {"Input": [0, 1], "lift": None}},
    ... )
    >>> config.to_dict()["model_inputs"]
    {'head': {'Input': [0, 1], 'lift': 'all'}}
    """

    models: Mapping[str, Any]
    model_inputs: Mapping[str, Mapping[str, Any]] | None = None
    arg_inputs: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None
    _specs: dict[str, SolverSpec] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check everything again (fields may be set anew) and normalise the selectors."""
        self._validate_members()
        self.model_inputs = self._validated_model_inputs()
        self.arg_inputs = self._validated_arg_inputs()
        self._check_widths()
        self._warn_of_units()

    def spec_of(self, member: str) -> SolverSpec | None:
        """Return the spec of a member that is a named solver, else None."""
        return self._specs.get(member)

    # -- members --

    def _validate_members(self) -> None:
        if not isinstance(self.models, Mapping):
            raise ConfigError(f"HybridConfig: models={self.models!r} must map names to members")
        self._specs = {}
        for name, member in self.models.items():
            if not isinstance(name, str) or not name or "." in name:
                raise ConfigError(
                    f"HybridConfig: {name!r} cannot name a member: it must be text, without '.'"
                )
            if name == INPUT:
                raise ConfigError(
                    f"HybridConfig: a member cannot be called {INPUT!r}; that names the model's "
                    "own input"
                )
            spec = self._validated_member(name, member)
            if spec is not None:
                self._specs[name] = spec

    def _validated_member(self, name: str, member: object) -> SolverSpec | None:
        if isinstance(member, str):
            spec = registry.get_solver(member)
            spec.resolve_options()
            return spec
        if isinstance(member, MLPConfig | PhysicsConfig):
            member.validate()
            if isinstance(member, PhysicsConfig) and member.solver is not None:
                return member.spec
            return None
        if is_module(member):
            return None
        hint = ""
        if isinstance(member, type):
            hint = f" Give an instance: {member.__name__}(...)."
        elif isinstance(member, SolverSpec):
            hint = " Write PhysicsConfig(solver=...)."
        elif callable(member):
            hint = " For a solver's functions write PhysicsConfig(forward_func=...)."
        raise ConfigError(
            f"HybridConfig: member {name!r} is {member!r}, of type {type(member).__name__}; it "
            f"must be an MLPConfig, a PhysicsConfig, a solver's name or a torch.nn.Module.{hint}"
        )

    # -- routing --

    def _validated_model_inputs(self) -> Routing | None:
        if self.model_inputs is None:
            return None
        routed = _mapping("model_inputs", self.model_inputs)
        for member in routed:
            self._check_member("model_inputs", member)
        return {
            member: self._validated_sources(f"model_inputs[{member!r}]", member, sources)
            for member, sources in routed.items()
        }

    def _validated_arg_inputs(self) -> dict[str, Routing] | None:
        if self.arg_inputs is None:
            return None
        validated: dict[str, Routing] = {}
        for member, args in _mapping("arg_inputs", self.arg_inputs).items():
            where = f"arg_inputs[{member!r}]"
            self._check_member("arg_inputs", member)
            spec = self._specs.get(member)
            if spec is None:
                raise ConfigError(
                    f"{where}: only a solver given by name has declared args; {member!r} is a "
                    f"{type(self.models[member]).__name__}"
                )
            if member not in (self.model_inputs or {}):
                raise ConfigError(
                    f"{where}: {member!r} needs a model_inputs entry too, or the previous output "
                    f"would silently be its x ({spec.x.name}) as well"
                )
            validated[member] = {
                arg: self._validated_arg(where, member, spec, arg, sources)
                for arg, sources in _mapping(where, args).items()
            }
        return validated

    def _validated_arg(
        self, where: str, member: str, spec: SolverSpec, arg: str, sources: object
    ) -> dict[str, Selector]:
        _check_arg_name(where, spec, arg)
        where = f"{where}[{arg!r}]"
        selected = self._validated_sources(where, member, sources)
        array = next(array for array in spec.args if array.name == arg)
        for source in selected:
            if not array.differentiable and self._is_trainable(source):
                raise ConfigError(
                    f"{where}: {source!r} has parameters to train, but {spec.name} declares no "
                    f"derivative for {arg!r}: it would never train. Freeze {source!r}, or use a "
                    "solver that declares the arg differentiable."
                )
        return selected

    def _is_trainable(self, source: str) -> bool:
        member: Any = self.models.get(source)
        if is_module(member):
            return any(parameter.requires_grad for parameter in member.parameters())
        return isinstance(member, MLPConfig)

    def _check_member(self, where: str, member: object) -> None:
        if member not in self.models:
            raise ConfigError(
                f"{where}: there is no member {member!r}.{did_you_mean(str(member), self.models)} "
                f"Members: {', '.join(self.models) or 'none'}."
            )

    def _validated_sources(self, where: str, member: str, sources: object) -> dict[str, Selector]:
        given = _mapping(where, sources)
        if not given:
            raise ConfigError(
                f"{where} names no source; leave the entry out to take the previous output"
            )
        names = list(self.models)
        earlier = [INPUT, *names[: names.index(member)]]
        for source in given:
            if source not in earlier:
                raise ConfigError(f"{where}: {self._why_no_source(member, source, earlier)}")
        return {source: self._columns(where, source, s) for source, s in given.items()}

    def _why_no_source(self, member: str, source: object, earlier: list[str]) -> str:
        listed = f"Sources: {', '.join(map(repr, earlier))}."
        if source == member:
            return f"{member!r} cannot feed itself. {listed}"
        if source in self.models:
            return f"{source!r} runs after {member!r}; a source must come before. {listed}"
        return f"there is no source {source!r}.{did_you_mean(str(source), earlier)} {listed}"

    def _columns(self, where: str, source: str, selector: Any) -> Selector:
        columns = _normalised(f"{where}[{source!r}]", selector)
        width = self._width(source)
        for column in columns or ():
            if width is not None and not -width <= column < width:
                raise ConfigError(
                    f"{where}[{source!r}]: there is no column {column}; {source!r} has {width}"
                )
        return columns

    # -- what can be known of the values before they exist --

    def _width(self, source: str) -> int | None:
        """Return the number of columns of a source, where the config tells it."""
        member = self.models.get(source)
        return member.num_output_dim if isinstance(member, MLPConfig) else None

    def _check_widths(self) -> None:
        previous = INPUT
        for name, member in self.models.items():
            routed = (self.model_inputs or {}).get(name)
            sources = {previous: None} if routed is None else routed
            widths = [
                self._width(source) if columns is None else len(columns)
                for source, columns in sources.items()
            ]
            if isinstance(member, MLPConfig) and None not in widths:
                total = sum(width for width in widths if width is not None)
                if total != member.num_input_dim:
                    raise ConfigError(
                        f"HybridConfig: {name!r} takes {member.num_input_dim} columns, but "
                        f"{' and '.join(map(repr, sources))} give {total}"
                    )
            previous = name

    def _warn_of_units(self) -> None:
        previous = INPUT
        for name in self.models:
            spec = self._specs.get(name)
            if spec is not None:
                routed = (self.model_inputs or {}).get(name, {previous: None})
                self._warn_of_unit(name, spec.x, routed)
                for array in spec.args:
                    sources = (self.arg_inputs or {}).get(name, {}).get(array.name, {})
                    self._warn_of_unit(name, array, sources)
            previous = name

    def _warn_of_unit(self, member: str, array: Array, sources: Iterable[str]) -> None:
        for source in sources:
            spec = self._specs.get(source)
            if spec is not None and spec.y.unit != array.unit:
                warnings.warn(
                    f"{source!r} gives {spec.y.name} in {spec.y.unit}, but it feeds {array.name} "
                    f"of {member!r}, which is in {array.unit}",
                    UserWarning,
                    stacklevel=6,
                )

    # -- to and from data --

    def to_dict(self) -> dict[str, Any]:
        """Return the config as data that survives JSON and TOML.

        Raises
        ------
        ConfigError
            For a member made of bare functions.
        """
        data: dict[str, Any] = {
            "models": {name: self._member_to_dict(name, m) for name, m in self.models.items()}
        }
        if self.model_inputs is not None:
            data["model_inputs"] = {
                member: _sources_to_dict(sources) for member, sources in self.model_inputs.items()
            }
        if self.arg_inputs is not None:
            data["arg_inputs"] = {
                member: {arg: _sources_to_dict(sources) for arg, sources in args.items()}
                for member, args in self.arg_inputs.items()
            }
        return data

    def _member_to_dict(self, name: str, member: Any) -> Any:
        if isinstance(member, str):
            return member
        if is_module(member):
            return {"module": name}
        try:
            return member.to_dict()
        except ConfigError as error:
            raise ConfigError(f"member {name!r}: {error}") from None

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], modules: Mapping[str, Any] | None = None
    ) -> "HybridConfig":
        """Return the config that `to_dict` wrote.

        Parameters
        ----------
        data : mapping
            From `to_dict`, by way of JSON or TOML or not.
        modules : mapping of str to torch.nn.Module, optional
            The modules that stand as ``{"module": name}`` in `data`.

        Raises
        ------
        ConfigError
            For unknown keys, a module that is not given, or one that nobody asked for.
        """
        data = _known_keys("HybridConfig", data, ("models", "model_inputs", "arg_inputs"))
        given = _mapping("modules", modules or {})
        models = {
            name: _member_from_dict(name, member, given)
            for name, member in _mapping("models", data.get("models")).items()
        }
        if given:
            raise ConfigError(
                f"modules holds {', '.join(map(repr, given))}, which the config does not name"
            )
        return cls(models, data.get("model_inputs"), data.get("arg_inputs"))


def is_module(value: object) -> bool:
    """Tell whether `value` is a torch module, without importing torch: it would be here already."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _mapping(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {value!r} must be a mapping")
    return dict(value)


def _normalised(where: str, selector: Any) -> Selector:
    """Return a selector as None (all columns) or a list of ints."""
    if selector is None or (isinstance(selector, str) and selector == ALL):
        return None
    values = selector.tolist() if hasattr(selector, "tolist") else selector
    if _index(values) is not None:
        values = [values]
    columns = [_index(v) for v in values] if isinstance(values, list | tuple | range) else [None]
    if None in columns:
        raise ConfigError(
            f"{where}: {selector!r} selects no columns; write a list of ints, or None for all"
        )
    if not columns:
        raise ConfigError(f"{where}: an empty selection; write None for all columns")
    return [column for column in columns if column is not None]


def _sources_to_dict(sources: Mapping[str, Selector]) -> dict[str, Any]:
    return {source: ALL if c is None else list(c) for source, c in sources.items()}


def _member_from_dict(name: str, member: Any, modules: dict[str, Any]) -> Any:
    if isinstance(member, str):
        return member
    if not isinstance(member, Mapping):
        raise ConfigError(f"models[{name!r}]: {member!r} is neither a solver's name nor a table")
    if "module" in member:
        _known_keys(f"models[{name!r}]", member, ("module",))
        if name not in modules:
            raise ConfigError(
                f"member {name!r} is a module of your own; give it back: modules={{{name!r}: ...}}"
            )
        if not is_module(modules[name]):
            raise ConfigError(f"modules[{name!r}] is {modules[name]!r}, not a torch.nn.Module")
        return modules.pop(name)
    return PhysicsConfig.from_dict(member) if "solver" in member else MLPConfig.from_dict(member)

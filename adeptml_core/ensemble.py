"""The hybrid model: networks and solvers in one differentiable chain.

`HybridModel` reads its config once. Names become solvers and modules, selectors become slices, and
for each member there is a *step* that knows where its x comes from and, for a solver, where each of
its args comes from. Running the model is then a loop over the steps.

Where an arg of a named solver comes from, in this order of rank:

1. ``arg_inputs`` of the config: the outputs of other members, or ``phy_args`` of the call (both at
   once is an error);
2. the constants in ``PhysicsConfig(args=...)``.

An arg without a source is an error that names it, and so is one that nobody declared.
"""

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adeptml_core import checkpoint
from adeptml_core.autograd import apply
from adeptml_core.bare import RawSolver
from adeptml_core.configs import INPUT, HybridConfig, MLPConfig, PhysicsConfig, is_module
from adeptml_core.errors import ConfigError, InputError
from adeptml_core.linearizer import Linearizer
from adeptml_core.models import MLP, Physics, Physics_SplitVJP, Physics_VJP
from adeptml_core.solver import Solver, named
from adeptml_core.spec import Array, Mode, SolverSpec, did_you_mean

__all__ = ["HybridModel"]

PhysicsArgs = Sequence[Any] | Mapping[str, Any] | None
Values = dict[str, Tensor]

FACES: dict[Mode, Callable[..., Tensor]] = {
    Mode.JACOBIAN: Physics.apply,
    Mode.VJP: Physics_VJP.apply,
    Mode.SPLIT_VJP: Physics_SplitVJP.apply,
}


class HybridModel(nn.Module):
    """Networks and solvers in series, or wired as the config says, trained as one.

    Parameters
    ----------
    config : HybridConfig
        The members in the order in which they run, and the routing.

    Attributes
    ----------
    config : HybridConfig
    models_nn : ModuleDict
        The networks: built from `MLPConfig`, or the very modules that the config holds.
    models_physics : dict of str to callable
        The solvers. Bare functions have the face of their mode (`Physics.apply`, ...), a solver by
        name is ``(x, *args) -> Tensor``.

    Raises
    ------
    ConfigError
        Where the config contradicts itself; it is checked again here.

    Examples
    --------
    >>> from adeptml_core.configs import MLPConfig
    >>> config = HybridConfig(models={"net": MLPConfig(4, 8, 2, 1, "tanh", "identity")})
    >>> HybridModel(config)(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        if not isinstance(config, HybridConfig):
            raise ConfigError(f"HybridModel takes a HybridConfig, got {config!r}")
        config.validate()
        self.config = config
        self.models_nn = nn.ModuleDict()
        self.models_physics: dict[str, Callable[..., Tensor]] = {}
        self._steps: dict[str, _Network | _Bare | _Named] = {}
        for name, member in config.models.items():
            self._add(name, member)

    def _add(self, name: str, member: Any) -> None:
        route = _Route.of(self.config, name)
        if isinstance(member, MLPConfig) or is_module(member):
            self._add_network(name, MLP(member) if isinstance(member, MLPConfig) else member)
            self._steps[name] = _Network(route)
        elif isinstance(member, PhysicsConfig) and member.solver is None:
            functions = _function(member), member.jacobian_func
            bare = RawSolver(member.mode, *functions, name=name, second_order=member.second_order)
            self.models_physics[name] = FACES[member.mode]
            self._steps[name] = _Bare(route, bare)
        else:
            self._steps[name] = step = _Named.of(self.config, name, route)
            self.models_physics[name] = functools.partial(apply, step.solver)

    def _add_network(self, name: str, module: nn.Module) -> None:
        try:
            self.models_nn[name] = module
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"HybridConfig: {name!r} cannot name a network: {error.args[0]}"
            ) from None

    def forward(self, x: Tensor, phy_args: PhysicsArgs = None) -> Tensor:
        """Run the members in order and return the last one's output.

        Parameters
        ----------
        x : Tensor, shape (batch, ...)
            The model's input, ``"Input"`` in the routing.
        phy_args : sequence or mapping, optional
            A list goes to every solver: to bare functions as extra positional arguments, to a named
            solver as the args, in order, that nothing else feeds. A mapping gives each solver its
            own, ``{member: [q]}`` by position or ``{member: {"q": q}}`` by name.

        Returns
        -------
        Tensor
            The output of the last member; x itself where there are none.

        Raises
        ------
        ConfigError
            An arg of a solver has no source, two sources, or is unknown; columns do not exist.
        ContractError, InputError, SampleError
            From a solver.
        """
        outputs = self.run(x, phy_args)
        return next(reversed(outputs.values()), x)

    def run(self, x: Tensor, phy_args: PhysicsArgs = None) -> dict[str, Tensor]:
        """Return the output of every member, by name, in order.

        Parameters are those of `forward`. Useful to look inside, and to find out which member
        gave the first value that is not finite.
        """
        given = self._given(phy_args)
        values: Values = {INPUT: x}
        previous = INPUT
        for name, step in self._steps.items():
            if isinstance(step, _Network):
                given_x, network = step.route.for_network(values, previous), self.models_nn[name]
                try:
                    values[name] = network(given_x)
                except Exception as error:
                    _tell_of_network(error, name, network, given_x)
                    raise
            else:
                values[name] = step(values, previous, given.get(name))
            previous = name
        del values[INPUT]
        return values

    def _given(self, phy_args: Any) -> Mapping[str, Any]:
        """Return ``phy_args`` by member, after holding its names against the members."""
        if phy_args is None:
            return {}
        if isinstance(phy_args, Mapping):
            for name in phy_args:
                if name not in self.models_physics:
                    self._refuse_member(name)
            return phy_args
        _check_is_sequence("phy_args", phy_args)
        if not len(phy_args):
            return {}
        return dict.fromkeys(self.models_physics, phy_args)

    def _refuse_member(self, name: object) -> None:
        if name in tuple(self.models_nn):
            raise ConfigError(f"phy_args: {name!r} is a network; only solvers take args")
        hint = did_you_mean(str(name), self.models_physics)
        raise ConfigError(
            f"phy_args: there is no solver member {name!r}.{hint} "
            f"Solver members: {', '.join(self.models_physics) or 'none'}."
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as one file: config, weights, where its solvers come from.

        See `adeptml_core.checkpoint.save_model`, which does it.
        """
        checkpoint.save_model(self, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], modules: Mapping[str, nn.Module] | None = None
    ) -> "HybridModel":
        """Return the model that `save` wrote; `modules` are its own modules, by member.

        No code from the file is run. See `adeptml_core.checkpoint.load_model`, which does it.
        """
        return checkpoint.load_model(cls, path, modules)

    def extra_repr(self) -> str:
        """Name the solvers, which are no modules."""
        return "\n".join(
            f"({name}): {step.solver!r}"
            for name, step in self._steps.items()
            if not isinstance(step, _Network)
        )


def _function(config: PhysicsConfig) -> Callable[..., Any]:
    assert config.forward_func is not None  # its config was validated
    return config.forward_func


def _check_is_sequence(where: str, value: object) -> None:
    if isinstance(value, list | tuple):
        return
    hint = " A single arg is a list of one." if isinstance(value, Tensor) else ""
    raise ConfigError(
        f"{where} is of type {type(value).__name__}; it must be a list of args, or a mapping.{hint}"
    )


# ---- who feeds whom ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Some columns of one source, or all of them."""

    where: str
    source: str
    columns: list[int] | None
    _most: int = field(init=False)
    _least: int = field(init=False)
    _is_slice: bool = field(init=False)

    def __post_init__(self) -> None:
        most, least = max(self.columns or [0]) + 1, min(self.columns or [0])
        # A view where it does: its gradient is much cheaper than that of an index list.
        is_slice = least >= 0 and self.columns == list(range(least, most))
        for name, value in (("_most", most), ("_least", least), ("_is_slice", is_slice)):
            object.__setattr__(self, name, value)

    def of(self, tensor: Tensor) -> Tensor:
        """Return the columns of `tensor`, shape (batch, columns, ...)."""
        if self.columns is None:
            return tensor
        width = tensor.shape[1] if tensor.ndim > 1 else 0
        if self._most > width or self._least < -width:
            raise ConfigError(
                f"{self.where}[{self.source!r}]: there is no column "
                f"{self._most - 1 if self._most > width else self._least}; "
                f"{self.source!r} has the shape {tuple(tensor.shape)}"
            )
        if self._is_slice:
            return tensor[:, self._least : self._most]
        return tensor[:, self.columns]


@dataclass(frozen=True)
class _Route:
    """The sources of one array; none means the previous output."""

    sources: tuple[_Columns, ...]
    zero_d: frozenset[str] = field(default_factory=frozenset)  # solvers whose y is (batch,)

    @classmethod
    def of(cls, config: HybridConfig, member: str) -> "_Route":
        """Return the route to the x of `member`."""
        sources = (config.model_inputs or {}).get(member, {})
        return cls.through(config, f"model_inputs[{member!r}]", sources)

    @classmethod
    def through(cls, config: HybridConfig, where: str, sources: Mapping[str, Any]) -> "_Route":
        specs = {name: config.spec_of(name) for name in config.models}
        zero_d = frozenset(n for n, spec in specs.items() if spec and not spec.y.shape)
        return cls(tuple(_Columns(where, s, c) for s, c in sources.items()), zero_d)

    def parts(self, values: Values, previous: str) -> list[tuple[_Columns, Tensor]]:
        sources = self.sources or (_Columns("", previous, None),)
        return [(source, values[source.source]) for source in sources]

    def for_network(self, values: Values, previous: str) -> Tensor:
        """Return the x of a network: columns along dimension 1, concatenated."""
        parts = [
            source.of(tensor[:, None] if source.source in self.zero_d else tensor)
            for source, tensor in self.parts(values, previous)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def per_sample(self, values: Values, previous: str) -> Tensor:
        """Return what is routed, flattened per sample, shape (batch, columns)."""
        parts = [
            source.of(tensor.reshape(tensor.shape[0], -1))
            for source, tensor in self.parts(values, previous)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def sole(self, values: Values, previous: str) -> Tensor | None:
        """Return the source as it is, where there is one only and all of it is taken."""
        parts = self.parts(values, previous)
        return parts[0][1] if len(parts) == 1 and parts[0][0].columns is None else None


# ---- steps ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Network:
    """A module, which the model finds by name, so that it may be replaced."""

    route: _Route


def _tell_of_network(error: Exception, name: str, network: nn.Module, x: Tensor) -> None:
    """Add to an error what torch's words leave out: which network, and what it was given."""
    error.add_note(f"in network {name!r}, whose input has shape {tuple(x.shape)} and is {x.dtype}")
    own = {parameter.dtype for parameter in network.parameters()}
    if x.is_floating_point() and own and x.dtype not in own:
        listed = ", ".join(map(str, own))
        error.add_note(
            f"its parameters are {listed}: convert the data with .to({listed}), "
            f"or the model with .to({x.dtype})"
        )


@dataclass(frozen=True)
class _Bare:
    """Bare functions: extra positional arguments, no rules."""

    route: _Route
    solver: Linearizer

    def __call__(self, values: Values, previous: str, given: Any) -> Tensor:
        if given is None:
            given = ()
        _check_is_sequence(f"phy_args of {self.solver.name!r} (bare functions)", given)
        return apply(self.solver, self.route.for_network(values, previous), *given)


@dataclass(frozen=True)
class _Named:
    """A solver by name: x and args reshaped to what it declares."""

    member: str
    route: _Route
    solver: Solver
    arg_routes: Mapping[str, _Route]
    constants: Mapping[str, Tensor]

    @classmethod
    def of(cls, config: HybridConfig, member: str, route: _Route) -> "_Named":
        declared = config.models[member]
        if isinstance(declared, str):
            declared = PhysicsConfig(solver=declared)
        routed = (config.arg_inputs or {}).get(member, {})
        return cls(
            member,
            route,
            _solver(declared),
            {
                arg: _Route.through(config, f"arg_inputs[{member!r}][{arg!r}]", sources)
                for arg, sources in routed.items()
            },
            {arg: _constant(declared.spec, arg, v) for arg, v in (declared.args or {}).items()},
        )

    @property
    def spec(self) -> SolverSpec:
        return self.solver.spec

    def __call__(self, values: Values, previous: str, given: Any) -> Tensor:
        sizes = dict(_declared_sizes(self.solver))
        x = self._x(values, previous, sizes)
        sources = {**self.constants, **self._by_name(given)}
        for arg, route in self.arg_routes.items():
            array = next(a for a in self.spec.args if a.name == arg)
            sources[arg] = self._routed(array, route, values, x.shape[0], sizes)
        missing = [array.name for array in self.spec.args if sources.get(array.name) is None]
        if missing:
            raise ConfigError(self._no_source(missing))
        return apply(self.solver, x, *[sources[array.name] for array in self.spec.args])

    # -- x --

    def _x(self, values: Values, previous: str, sizes: dict[str, int]) -> Tensor:
        array = self.spec.x
        self._check_batched(values, previous)
        sole = self.route.sole(values, previous)
        if sole is None or sole.ndim != 1 + len(array.shape):
            sole = self._reshaped(array, self.route.per_sample(values, previous), sizes)
        for size, got in zip(array.shape, sole.shape[1:], strict=True):
            if isinstance(size, str):
                sizes.setdefault(size, got)
        return sole

    def _check_batched(self, values: Values, previous: str) -> None:
        for source, value in self.route.parts(values, previous):
            if not (isinstance(value, Tensor) and value.ndim):
                got = "has no batch axis" if isinstance(value, Tensor) else f"is {value!r}"
                raise InputError(
                    f"model {self.member!r} (solver {self.solver.name}): {source.source!r}, which "
                    f"feeds {self.spec.x.name}, {got}; it must be a tensor of shape (batch, ...)"
                )

    # -- args --

    def _by_name(self, given: Any) -> Mapping[str, Any]:
        """Return what the call gives, by the arg's name."""
        if given is None:
            return {}
        if isinstance(given, Mapping):
            for arg in given:
                self._check_given(arg)
            return given
        _check_is_sequence(f"phy_args of {self.member!r}", given)
        fed = {*self.arg_routes, *self.constants}
        waiting = [array.name for array in self.spec.args if array.name not in fed]
        if len(given) != len(waiting):
            raise ConfigError(
                f"model {self.member!r} (solver {self.solver.name}): phy_args has {len(given)} "
                f"entries for {len(waiting)} args without another source "
                f"({', '.join(waiting) or 'none'}). Give them by name: "
                f"phy_args={{{self.member!r}: {{...}}}}."
            )
        return dict(zip(waiting, given, strict=True))

    def _check_given(self, arg: object) -> None:
        names = [array.name for array in self.spec.args]
        where = f"phy_args of {self.member!r} (solver {self.solver.name})"
        if arg not in names:
            raise ConfigError(
                f"{where}: there is no arg {arg!r}.{did_you_mean(str(arg), names)} "
                f"Its args: {', '.join(names) or 'none'}."
            )
        if arg in self.arg_routes:
            raise ConfigError(f"{where}: {arg!r} is fed by arg_inputs already")

    def _routed(
        self, array: Array, route: _Route, values: Values, batch: int, sizes: dict[str, int]
    ) -> Tensor:
        """Return an arg that other members feed: shared, or one for each sample."""
        sole = route.sole(values, INPUT)
        if sole is not None and self._is_shared(array, sole, batch, sizes):
            return sole
        if sole is not None and sole.ndim == 1 + len(array.shape):
            return sole
        return self._reshaped(array, route.per_sample(values, INPUT), sizes)

    def _is_shared(self, array: Array, sole: Tensor, batch: int, sizes: dict[str, int]) -> bool:
        """Tell whether `sole` has exactly the core's shape, and cannot be meant per sample."""
        core = [sizes.get(size) if isinstance(size, str) else size for size in array.shape]
        fits = sole.ndim == len(core) and all(
            size in (None, got) for size, got in zip(core, sole.shape, strict=True)
        )
        if not fits:
            return False
        width = math.prod(sole.shape[1:])
        known = math.prod(size for size in core if size is not None)
        per_sample = (
            len(core) > 1 and None in core and sole.shape[0] == batch and width % known == 0
        )
        if per_sample and batch > 1:
            raise ConfigError(
                f"model {self.member!r} (solver {self.solver.name}): what is routed to "
                f"{array.name} has the shape {tuple(sole.shape)}, which reads as one value of core "
                f"shape {array.shape}, and as {batch} flattened samples. Give it the shape "
                "(batch, *core) to say which."
            )
        return True

    def _reshaped(self, array: Array, flat: Tensor, sizes: Mapping[str, int]) -> Tensor:
        """Return `flat`, shape (batch, columns), as (batch, *core)."""
        core = [sizes.get(size, -1) if isinstance(size, str) else size for size in array.shape]
        known = math.prod([size for size in core if size != -1])
        fits = flat.shape[1] == known if -1 not in core else flat.shape[1] % known == 0
        if core.count(-1) > 1 or not fits or not flat.shape[1]:
            raise ConfigError(
                f"model {self.member!r} (solver {self.solver.name}): {flat.shape[1]} columns are "
                f"routed to {array.name}, which do not fit its core shape {array.shape}"
                + (f" with {self._sizes(array, sizes)}" if self._sizes(array, sizes) else "")
            )
        return flat.reshape(flat.shape[0], *core)

    def _sizes(self, array: Array, sizes: Mapping[str, int]) -> str:
        known = [s for s in array.shape if isinstance(s, str) and s in sizes]
        return ", ".join(f"{size} = {sizes[size]}" for size in known)

    def _no_source(self, missing: list[str]) -> str:
        listed = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        verb, noun = ("have", "args") if len(missing) > 1 else ("has", "arg")
        them = "them" if len(missing) > 1 else "it"
        example = f"{{{self.member!r}: {{{missing[0]!r}: ...}}}}"
        return (
            f"model {self.member!r} (solver {self.solver.name}): {noun} {listed} {verb} no source. "
            f"Give {them} in phy_args={example}, in PhysicsConfig(args=...), or feed {them} from a "
            "member with arg_inputs."
        )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _declared_sizes(solver: Solver) -> tuple[tuple[str, int], ...]:
    """Return the sizes; asked of the solver while torch traces, not in the program."""
    return tuple(solver.declared_sizes.items())


def _solver(config: PhysicsConfig) -> Solver:
    if isinstance(config.solver, str):
        return named(config.solver, config.options, second_order=config.second_order)
    return Solver(config.spec, config.options, second_order=config.second_order)


def _constant(spec: SolverSpec, arg: str, value: Any) -> Tensor:
    """Return a private tensor of a constant, which its config has checked.

    By way of numpy, in the arg's own dtype: torch would read a list of Python numbers in its
    default dtype, float32, and a third of the digits would be gone.
    """
    array = next(a for a in spec.args if a.name == arg)
    dtype = np.dtype(array.dtype or "float64")
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    return torch.from_numpy(np.array(value, dtype))

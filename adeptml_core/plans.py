"""What the shapes of one call imply: every size, and every shape that the result must have.

Worked out once for each set of shapes, with an error that names the array and who says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from adeptml_core.errors import ContractError, InputError
from adeptml_core.linearizer import Shape
from adeptml_core.spec import Array, SolverSpec

__all__ = ["Plan", "Planner"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the shapes of one call imply; worked out once for each set of shapes."""

    y: Shape
    inputs: tuple[Shape, ...]  # x and the args, as the solver sees them
    spread: tuple[int, ...]  # inputs that core repeats for each sample (batched=True, shared)
    sizes: Mapping[str, int]


class Planner:
    """Works out, from the shapes of one call, every size and every expected shape."""

    def __init__(self, spec: SolverSpec, declared: Mapping[str, int]) -> None:
        self.name = spec.name
        self.spec = spec
        self.sizes = dict(declared)
        self.origin = dict.fromkeys(declared, "the options")

    def plan(self, shapes: tuple[Shape, ...]) -> Plan:
        """Return the plan for an x and args of these shapes; raise where they do not fit."""
        x, *args = shapes
        self._check_count(len(args))
        if len(x) != 1 + len(self.spec.x.shape):
            self._refuse(self.spec.x, x, "(batch, *core)", " Add the batch axis: x[None]")
        batch = x[0]
        self._bind(self.spec.x, x, x[1:])
        inputs, spread = [x], []
        for index, (array, shape) in enumerate(zip(self.spec.args, args, strict=True), start=1):
            per_sample = self._is_per_sample(array, shape, batch)
            core = shape[1:] if per_sample else shape
            self._bind(array, shape, core)
            must_spread = array.batched is True and not per_sample
            if must_spread:
                spread.append(index)
            inputs.append((batch, *core) if must_spread else shape)
        y = tuple(s if isinstance(s, int) else self._size(s) for s in self.spec.y.shape)
        return Plan((batch, *y), tuple(inputs), tuple(spread), self.sizes)

    def _check_count(self, count: int) -> None:
        if count != len(self.spec.args):
            names = ", ".join(array.name for array in self.spec.args) or "none"
            raise InputError(
                f"{self.name} takes {len(self.spec.args)} args after x ({names}), got {count}"
            )

    def _is_per_sample(self, array: Array, shape: Shape, batch: int) -> bool:
        extra = len(shape) - len(array.shape)
        if extra not in (0, 1):
            self._refuse(array, shape, "its core shape, or (batch, *core)")
        if extra and array.batched is False:
            self._refuse(array, shape, "its core shape", " It is shared by the batch")
        if extra and shape[0] != batch:
            self._refuse(array, shape, f"batch = {batch} first, as in x")
        return bool(extra)

    def _bind(self, array: Array, shape: Shape, core: Shape) -> None:
        """Let `core` define the sizes of `array`, or hold it against those known."""
        for size, got in zip(array.shape, core, strict=True):
            known = size if isinstance(size, int) else self.sizes.setdefault(size, got)
            if isinstance(size, str):
                self.origin.setdefault(size, array.name)
            if known != got:
                why = (
                    f" with {size} = {known} by {self.origin[size]}"
                    if isinstance(size, str)
                    else ""
                )
                self._refuse(array, shape, f"{self._allowed(array)}{why}")

    def _size(self, name: str) -> int:
        if name not in self.sizes:
            raise ContractError(
                f"{self.name}: sizes returned nothing for {name!r}, a size of {self.spec.y.name}",
                solver=self.name,
                mode=str(self.spec.mode),
                where="sizes",
                expected=name,
                got=sorted(self.sizes),
            )
        return self.sizes[name]

    def _allowed(self, array: Array) -> str:
        """Return the shapes that the contract allows, as a reader writes them."""
        core, per_sample = self._core(array), f"({', '.join(map(str, ('batch', *array.shape)))})"
        if array is self.spec.x:
            return per_sample
        return core if array.batched is False else f"{core} or {per_sample}"

    def _core(self, array: Array) -> str:
        return f"({', '.join(map(str, array.shape))}{',' if len(array.shape) == 1 else ''})"

    def _refuse(self, array: Array, got: Shape, expected: str, hint: str = "") -> NoReturn:
        core = self._core(array)
        raise InputError(
            f"{self.name}: {array.name} has shape {got}, expected {expected}, where its core "
            f"shape is {core}.{hint}".rstrip()
        )

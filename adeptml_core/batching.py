"""A node under ``vmap``: its axis folded into the solver's batch, or a loop.

Where rows are independent a vmapped call is one call of a larger batch: ``(vmapped, batch, ...)``
becomes ``(rows, ...)``. A shared arg that varies, or whose cotangent is asked for, is spread over
the rows first, and its cotangents are summed again for each of the vmapped values. Where rows
depend on each other, or an arg cannot be spread, the node runs once for each value.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adeptml_core.linearizer import Linearizer, wanted
from adeptml_core.solver import Solver

__all__ = ["Apply", "Batched"]

Apply = Callable[[Sequence[Any], Sequence[Any]], tuple[Tensor, ...]]


class Batched:
    """One node under vmap: the point z, and other tensors that belong to it.

    Parameters
    ----------
    info
        torch's, with ``batch_size``.
    solver : Linearizer
    point, dims
        x and the args, and where their vmapped axes are (None: nowhere).
    others, other_dims
        Cotangents and tangents, likewise.
    sums : bool
        Whether the node returns cotangents of the args.
    are_tangents : bool
        Whether the first of `others` are tangents of x and the args; elsewhere all have a batch.
    """

    def __init__(
        self,
        info: Any,
        solver: Linearizer,
        point: Sequence[Any],
        dims: Sequence[int | None],
        others: Sequence[Any] = (),
        other_dims: Sequence[int | None] = (),
        *,
        sums: bool = False,
        are_tangents: bool = False,
    ) -> None:
        self.size = info.batch_size
        self.solver = solver
        self.point, self.dims = point, dims
        self.others, self.other_dims = others, other_dims
        self.sums, self.are_tangents = sums, are_tangents
        self.is_at_one_point = all(dim is None for dim in dims)
        self.shared = [
            isinstance(solver, Solver) and solver.is_shared(i, arg.ndim - (dim is not None))
            for i, (arg, dim) in enumerate(zip(point[1:], dims[1:], strict=True))
        ]

    def run(self, apply: Apply) -> tuple[Tensor, ...]:
        """Return the node's results, vmapped axis first."""
        must_loop = self.is_at_one_point and self.solver.keeps_pullback
        if must_loop or not self._can_fold():
            return self._loop(apply)
        self.is_at_one_point = False  # the folded batch is another point
        return self._fold(apply)

    def _can_fold(self) -> bool:
        if not isinstance(self.solver, Solver) or not self.solver.row_independent:
            return False
        always_shared = (array.batched is False for array in self.solver.spec.args)
        moved = self._spreads()
        return not any(a and m for a, m in zip(always_shared, moved, strict=True))

    def _spreads(self) -> list[bool]:
        """Tell which shared args must become per-sample ones: those that vary, or are summed."""
        assert isinstance(self.solver, Solver)
        wanted = self.solver.spec.differentiable[1:]
        gives = self.sums or self.are_tangents
        return [
            shared and (dim is not None or (gives and is_wanted))
            for shared, dim, is_wanted in zip(self.shared, self.dims[1:], wanted, strict=True)
        ]

    def _loop(self, apply: Apply) -> tuple[Tensor, ...]:
        def at(values: Sequence[Any], dims: Sequence[int | None], i: int) -> list[Any]:
            pairs = zip(values, dims, strict=True)
            return [v if dim is None else v.select(dim, i) for v, dim in pairs]

        results = [
            apply(at(self.point, self.dims, i), at(self.others, self.other_dims, i))
            for i in range(self.size)
        ]
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))

    def _fold(self, apply: Apply) -> tuple[Tensor, ...]:
        spreads = [False, *self._spreads()]
        x, dim = self.point[0], self.dims[0]
        rows = x.shape[0] if dim is None else x.movedim(dim, 0).shape[1]
        keeps = [False, *(shared and not s for shared, s in zip(self.shared, spreads[1:]))]  # noqa: B905
        fold = _Fold(self.size, rows)
        point = [
            z if kept else fold.into(z, dim, spread)
            for z, dim, spread, kept in zip(self.point, self.dims, spreads, keeps, strict=True)
        ]
        n = len(spreads) if self.are_tangents else 0
        places = [*spreads[:n], *(False for _ in self.others[n:])]
        others = [
            None if t is None else fold.into(t, dim, spread)
            for t, dim, spread in zip(self.others, self.other_dims, places, strict=True)
        ]
        results = apply(point, others)
        if not self.sums:
            return tuple(fold.out_of(result) for result in results)
        was_shared = [
            spread
            for spread, is_wanted in zip(spreads, wanted(self.solver, len(point)), strict=True)
            if is_wanted
        ]
        return tuple(
            fold.out_of(r).sum(1) if shared else fold.out_of(r)
            for r, shared in zip(results, was_shared)  # noqa: B905 - an hvp gives x alone
        )


class _Fold:
    """The vmapped axis and the batch as one axis: (vmapped, batch, ...) <-> (rows, ...)."""

    def __init__(self, size: int, batch: int) -> None:
        self.size = size
        self.batch = batch

    def into(self, tensor: Tensor, dim: int | None, is_shared: bool) -> Tensor:
        """Return `tensor` with both axes in one; a shared one is repeated for each row."""
        size = self.size
        tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        if is_shared:
            tensor = tensor[:, None].expand(self.size, self.batch, *tensor.shape[1:])
        return tensor.reshape(self.size * self.batch, *tensor.shape[2:])

    def out_of(self, rows: Tensor) -> Tensor:
        """Return the two axes apart again."""
        return rows.reshape(self.size, self.batch, *rows.shape[1:])

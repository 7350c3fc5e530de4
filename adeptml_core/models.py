"""Networks, and the three faces of the operator that take bare functions.

`Physics`, `Physics_VJP` and `Physics_SplitVJP` keep the names and positional orders that scripts
rely on. They differ in where the pullback comes from and in nothing else, so each is one line over
`adeptml_core.autograd.apply`. Solvers with a name need none of them: `adeptml_core.solve`.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from adeptml_core.autograd import apply
from adeptml_core.bare import RawSolver
from adeptml_core.configs import MLPConfig
from adeptml_core.spec import Mode

__all__ = ["ACTIVATIONS", "MLP", "Physics", "Physics_SplitVJP", "Physics_VJP"]

Function = Callable[..., Any]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "leakyrelu": nn.LeakyReLU(),
    "elu": nn.ELU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "sin": torch.sin,
    "softplus": nn.Softplus(),
    "swish": nn.SiLU(),
}


class MLP(nn.Module):
    """A multilayer perceptron: an affine lift, hidden layers, an affine head.

    Parameters
    ----------
    config : MLPConfig
        Widths, number of hidden layers, activations.

    Notes
    -----
    With ``s`` the hidden activation and ``o`` that of the output::

        h = linear_in(x)                      # no activation here
        h = s(layers[i](h))                   # for each hidden layer
        y = o(linear_out(h))

    Names and order of the parameters are those of checkpoints in circulation.

    Examples
    --------
    >>> MLP(MLPConfig(2, 8, 1, 2, "tanh", "identity"))(torch.zeros(5, 2)).shape
    torch.Size([5, 1])
    """

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        config.validate()
        hidden = config.num_hidden_dim
        self.config = config
        # The order of registration is that of checkpoints (and of an optimizer's state), the order
        # of creation that of the random draws: a seed gives the weights that it always gave.
        self.layers = nn.ModuleList()
        self.linear_in = nn.Linear(config.num_input_dim, hidden)
        self.layers.extend(nn.Linear(hidden, hidden) for _ in range(config.num_hidden_layers))
        self.linear_out = nn.Linear(hidden, config.num_output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output, shape (batch, num_output_dim)."""
        hidden_activation = ACTIVATIONS[self.config.hidden_activation]
        h = self.linear_in(x)
        for layer in self.layers:
            h = hidden_activation(layer(h))
        return ACTIVATIONS[self.config.output_activation](cast(Tensor, self.linear_out(h)))


class Physics:
    """A solver with a full Jacobian."""

    @staticmethod
    def apply(
        x: Tensor, forward_fun: Function, jacobian_fun: Function, args: Sequence[Any] | None = None
    ) -> Tensor:
        """Return the solver's result, differentiable in x.

        Parameters
        ----------
        x : Tensor, shape (batch, in)
        forward_fun : callable
            ``forward_fun(x, *args) -> y``; numpy in, numpy out; y has shape (batch, out).
        jacobian_fun : callable
            ``jacobian_fun(x, *args)``, shape (batch, out, in).
        args : sequence, optional
            Extra positional arguments of both functions; they get no gradient.

        Returns
        -------
        Tensor, shape (batch, out), dtype and device of x
        """
        return apply(RawSolver(Mode.JACOBIAN, forward_fun, jacobian_fun), x, *(args or ()))


class Physics_VJP:
    """A solver with a vector-Jacobian product of its own."""

    @staticmethod
    def apply(
        x: Tensor, forward_fun: Function, jacobian_fun: Function, args: Sequence[Any] | None = None
    ) -> Tensor:
        """Return the solver's result, differentiable in x.

        As `Physics.apply`, but for ``jacobian_fun(x, grad_output, *args)``, which returns the
        cotangent of x, shape (batch, in).
        """
        return apply(RawSolver(Mode.VJP, forward_fun, jacobian_fun), x, *(args or ()))


class Physics_SplitVJP:
    """A solver whose forward pass returns its pullback."""

    @staticmethod
    def apply(x: Tensor, forward_fun: Function, args: Sequence[Any] | None = None) -> Tensor:
        """Return the solver's result, differentiable in x.

        As `Physics.apply`, but ``forward_fun(x, *args)`` returns ``(y, pullback)``, where
        ``pullback(grad_output)`` returns ``(dx, *_)``: what `jax.vjp` gives.
        """
        return apply(RawSolver(Mode.SPLIT_VJP, forward_fun), x, *(args or ()))

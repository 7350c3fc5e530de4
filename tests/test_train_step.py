"""`train_step`: one batch, or an error and nothing has changed."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from adeptml_core.configs import HybridConfig, MLPConfig, PhysicsConfig
from adeptml_core.ensemble import HybridModel
from adeptml_core.errors import ConfigError, NonFiniteError, SampleError
from adeptml_core.train_utils import train_step
from adeptml_core.training.batches import Batch
from adeptml_core.training.step import Step, _AreFinite


class Affine(nn.Module):
    """A stand-in for a hybrid model; keeps what it was called with."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, outputs)
        self.calls: list[tuple[object, bool, bool]] = []

    def forward(self, x: Tensor, phy_args: object = None) -> Tensor:
        self.calls.append((phy_args, self.training, torch.is_grad_enabled()))
        return self.linear(x)


def data(outputs: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, generator=generator), torch.randn(4, outputs, generator=generator)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


# ---- what upstream does --------------------------------------------------------------------------


def test_signature_is_upstreams() -> None:
    """The names, the order and the defaults are those that scripts rely on."""
    signature = inspect.signature(train_step)
    defaults = {n: p.default for n, p in signature.parameters.items()}
    empty = inspect.Parameter.empty
    assert defaults == {
        "model": empty,
        "optimizer": empty,
        "loss_fn": empty,
        "scheduler": None,
        "grad_clip": None,
    }
    assert list(signature.parameters) == list(defaults)


def test_returns_the_loss_before_the_update() -> None:
    """A float that equals the loss of the untouched model, to the bit."""
    model = Affine()
    x, y = data()
    expected = F.mse_loss(model(x), y).item()
    loss = train_step(model, sgd(model), nn.MSELoss())(x, y, [])
    assert isinstance(loss, float)
    assert loss == expected
    assert F.mse_loss(model(x), y).item() < expected


def test_updates_as_a_hand_written_loop() -> None:
    """Ten steps with Adam, a schedule and clipping give the bits of the plain loop."""
    ours, plain = Affine(), Affine()
    x, y = data()

    def parts(model: nn.Module) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.StepLR]:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)

    optimizer, scheduler = parts(ours)
    step = train_step(ours, optimizer, nn.MSELoss(), scheduler, grad_clip=0.3)
    for _ in range(10):
        step(x, y, None)
    optimizer, scheduler = parts(plain)
    for _ in range(10):
        optimizer.zero_grad()
        F.mse_loss(plain(x), y).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.3)
        optimizer.step()
        scheduler.step()
    assert_same(weights(ours), weights(plain))


def test_scheduler_steps_once_a_batch() -> None:
    """After three batches a StepLR(1, 0.5) has halved the rate three times."""
    model = Affine()
    optimizer = sgd(model, lr=0.8)
    step = train_step(
        model, optimizer, nn.MSELoss(), torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    )
    for _ in range(3):
        step(*data(), [])
    assert optimizer.param_groups[0]["lr"] == 0.8 / 8


def test_test_mode_changes_nothing() -> None:
    """With test=True there is a loss, no gradient, no update, no step of the scheduler."""
    model = Affine()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    before = weights(model)
    x, y = data()
    loss = train_step(model, optimizer, nn.MSELoss(), scheduler)(x, y, [], test=True)
    assert loss == F.mse_loss(model(x), y).item()
    assert_same(weights(model), before)
    assert model.linear.weight.grad is None
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert model.calls[0] == ([], False, False)


def test_test_mode_gives_every_submodule_its_own_mode_back() -> None:
    """A frozen BatchNorm stays frozen, and the test batch leaves no trace in the other one."""
    model = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": nn.BatchNorm1d(3), "c": nn.Linear(3, 1)})
    model["b"].eval()

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor, phy_args: object = None) -> Tensor:
            return model["c"](model["b"](model["a"](x)))

    normed = Normed()
    before = weights(normed)
    train_step(normed, sgd(normed), nn.MSELoss())(*data(), [], test=True)
    assert_same(weights(normed), before)
    assert [m.training for m in (normed, model["a"], model["b"])] == [True, True, False]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], []),
        (None, None),
        ((1.0,), [1.0]),
        ({"heat": [1.0]}, {"heat": [1.0]}),
        ([{"heat": [1.0]}], {"heat": [1.0]}),
    ],
    ids=["none", "None", "tuple", "mapping", "mapping in a list"],
)
def test_args_are_phy_args(args: object, expected: object) -> None:
    """A list is passed on, a dict that stands alone *is* phy_args."""
    model = Affine()
    train_step(model, sgd(model), nn.MSELoss())(*data(), args)
    assert model.calls[0][0] == expected


@pytest.mark.parametrize("args", [1.0, [1.0, {"heat": []}], "ab"])
def test_odd_args_are_refused(args: object) -> None:
    """A number, a text, a dict among others: each is a clear error."""
    model = Affine()
    with pytest.raises(ConfigError, match="train_step: "):
        train_step(model, sgd(model), nn.MSELoss())(*data(), args)


def test_forward_hooks_fire() -> None:
    """The model is called, not its forward method."""
    model = Affine()
    seen = []
    model.register_forward_hook(lambda *_: seen.append(True))
    train_step(model, sgd(model), nn.MSELoss())(*data(), [])
    assert seen == [True]


# ---- losses --------------------------------------------------------------------------------------


def difference(y_pred: Tensor, y: Tensor) -> Tensor:
    return ((y_pred - y) ** 2).mean()


def scaled_difference(y_pred: Tensor, y: Tensor) -> Tensor:
    return ((2 * y_pred - y / 3) ** 2).mean()


@pytest.mark.parametrize(
    "loss_fn", [nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), difference, scaled_difference]
)
@pytest.mark.parametrize(
    ("y_pred", "y"), [((4,), (4, 1)), ((4, 1), (4,)), ((4, 2), (4, 1)), ((4, 1, 3), (4, 3))]
)
def test_broadcasting_is_refused(
    loss_fn: nn.Module, y_pred: tuple[int, ...], y: tuple[int, ...]
) -> None:
    """A loss that spreads output or target over the other is an error, torch's own or not."""

    class Shaped(Affine):
        def forward(self, x: Tensor, phy_args: object = None) -> Tensor:
            return super().forward(x).sum() * torch.ones(y_pred)

    model = Shaped()
    before = weights(model)
    with pytest.raises(ConfigError, match="broadcasts the output of shape") as caught:
        train_step(model, sgd(model), loss_fn)(data()[0], torch.zeros(y), [])
    assert str(y_pred) in str(caught.value)
    assert str(y) in str(caught.value)
    assert_same(weights(model), before)


def gaussian(y_pred: Tensor, y: Tensor) -> Tensor:
    mean, log_variance = y_pred[:, :1], y_pred[:, 1:]
    return (log_variance + (mean - y) ** 2 / log_variance.exp()).mean()


def centred(y_pred: Tensor, y: Tensor) -> Tensor:
    return ((y_pred - y_pred.mean(1, keepdim=True)) ** 2).mean() + y.mean()


@pytest.mark.parametrize(
    ("loss_fn", "outputs", "y"),
    [
        (nn.CrossEntropyLoss(), 3, torch.tensor([0, 2, 1, 1])),
        (nn.CrossEntropyLoss(), 4, torch.tensor([0, 2, 1, 1])),
        (nn.CrossEntropyLoss(), 3, torch.full((4, 3), 1 / 3)),
        (gaussian, 2, torch.zeros(4, 1)),
        (centred, 2, torch.zeros(4, 1)),
        (lambda y_pred, y: difference(y_pred.squeeze(1), y), 1, torch.zeros(4)),
    ],
    ids=[
        "classes",
        "as many classes as rows",
        "probabilities",
        "mean and variance",
        "centred",
        "squeezed",
    ],
)
def test_shapes_that_differ_on_purpose_are_legal(loss_fn: object, outputs: int, y: Tensor) -> None:
    """Classes, a head with mean and variance, a loss that squeezes: nothing is broadcast there."""
    model = Affine(outputs)
    before = weights(model)
    step = train_step(model, sgd(model), loss_fn)
    assert math.isfinite(step(data()[0], y, []))
    assert math.isfinite(step(data()[0], y, [], test=True))
    assert not torch.equal(weights(model)[0], before[0])


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda y_pred, y: (y_pred - y) ** 2, r"returned shape \(4, 1\)"),
        (lambda y_pred, y: 1.0, "returned a float"),
        (lambda y_pred, y: ((y_pred - y) ** 2).mean().detach(), "does not depend on any parameter"),
    ],
    ids=["no reduction", "a float", "detached"],
)
def test_a_loss_that_cannot_train_is_refused(loss_fn: object, message: str) -> None:
    """No scalar, no tensor, no graph: each says so."""
    model = Affine()
    with pytest.raises(ConfigError, match=message):
        train_step(model, sgd(model), loss_fn)(*data(), [])


def test_an_optimizer_of_another_model_is_refused() -> None:
    """Where no parameter of the optimizer gets a gradient, nothing would be trained."""
    model = Affine()
    with pytest.raises(ConfigError, match="parameters of this model"):
        train_step(model, sgd(Affine()), nn.MSELoss())(*data(), [])


# ---- what is not finite --------------------------------------------------------------------------


def test_a_nan_in_the_data_leaves_the_parameters_alone() -> None:
    """The error names the row; parameters, buffers and Adam's moments stay."""
    model = Affine()
    optimizer = torch.optim.Adam(model.parameters())
    x, y = data()
    step = train_step(model, optimizer, nn.MSELoss())
    step(x, y, [])
    before, moments = weights(model), copy.deepcopy(optimizer.state_dict())
    x[2, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"loader gave an x .*first at row 2") as caught:
        step(x, y, [])
    assert caught.value.row == 2
    assert_same(weights(model), before)
    for got, expected in zip(
        optimizer.state_dict()["state"].values(), moments["state"].values(), strict=True
    ):
        assert_same(list(got.values()), list(expected.values()))


def test_buffers_are_put_back() -> None:
    """BatchNorm sees the NaN in forward; its running mean does not keep it."""

    class Normed(Affine):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor, phy_args: object = None) -> Tensor:
            return self.linear(self.norm(x))

    model = Normed()
    before = weights(model)
    x, y = data()
    with pytest.raises(NonFiniteError):
        train_step(model, sgd(model), nn.MSELoss())(x * math.inf, y, [])
    assert_same(weights(model), before)


def hybrid(forward_func: object, jacobian_func: object) -> HybridModel:
    torch.manual_seed(0)
    return HybridModel(
        HybridConfig(
            models={
                "law": MLPConfig(3, 4, 3, 1, "tanh", "identity"),
                "flow": PhysicsConfig(forward_func, jacobian_func, use_vjp=True),
                "sum": nn.Linear(3, 1),
            }
        )
    )


def test_the_guilty_solver_and_row_are_named() -> None:
    """The first member whose result is not finite is the one to look at, not those after it."""

    def forward(x: np.ndarray) -> np.ndarray:
        y = 2 * x
        y[1, 2] = np.nan
        return y

    model = hybrid(forward, lambda x, g: 2 * g)
    with pytest.raises(NonFiniteError, match=r"the output of .*'flow'.*first at row 1") as caught:
        train_step(model, sgd(model), nn.MSELoss())(*data(), [])
    assert caught.value.member == "flow"
    assert caught.value.row == 1


def test_a_pullback_that_is_not_finite_is_named() -> None:
    """The loss is finite, one gradient is not: the update does not happen."""

    def vjp(x: np.ndarray, g: np.ndarray) -> np.ndarray:
        dx = 2 * g
        dx[3, 0] = np.inf
        return dx

    model = hybrid(lambda x: 2 * x, vjp)
    before = weights(model)
    for grad_clip in (None, 1.0):
        step = train_step(model, sgd(model), nn.MSELoss(), grad_clip=grad_clip)
        with pytest.raises(NonFiniteError, match=r"derivative of .*'flow'.*row 3") as caught:
            step(*data(), [])
        assert (caught.value.member, caught.value.row) == ("flow", 3)
        assert_same(weights(model), before)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda y_pred, y: torch.log(y - 100).mean() + y_pred.mean(), "loss_fn, .*at row 0"),
        (lambda y_pred, y: (y_pred * 0).abs().sqrt().mean(), "derivative of loss_fn"),
    ],
    ids=["its value", "its derivative"],
)
def test_a_loss_function_that_is_not_finite_is_named(loss_fn: object, message: str) -> None:
    """Where data, members and outputs are finite, the loss function itself is the cause."""
    model = hybrid(lambda x: 2 * x, lambda x, g: 2 * g)
    with pytest.raises(NonFiniteError, match=message):
        train_step(model, sgd(model), loss_fn)(*data(), [])


def test_the_search_leaves_the_random_state_alone() -> None:
    """Dropout draws again while the cause is looked for; the next batch must not notice."""

    class Noisy(Affine):
        def forward(self, x: Tensor, phy_args: object = None) -> Tensor:
            return F.dropout(self.linear(x)) * math.nan

    model = Noisy()
    torch.manual_seed(3)
    model(data()[0])
    expected = torch.rand(1)
    torch.manual_seed(3)
    with pytest.raises(NonFiniteError):
        train_step(model, sgd(model), nn.MSELoss())(*data(), [])
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("measures_norm", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_gradient_that_is_not_finite_gets_through(
    measures_norm: bool, bad: float, dtype: torch.dtype
) -> None:
    """Measured or only looked at, in any dtype, and again after one was found."""
    model = nn.Linear(3, 2).to(dtype)
    model.bias.register_hook(lambda g: g + torch.tensor([0.0, bad if spoilt else 0.0], dtype=dtype))
    step = Step(Called(model), torch.optim.SGD(model.parameters(), 0.1), nn.MSELoss())
    step.measures_norm = measures_norm
    batch = Batch(torch.rand(4, 3, dtype=dtype), torch.rand(4, 2, dtype=dtype), None)
    for spoilt in (False, True, False, True):
        before = [p.detach().clone() for p in model.parameters()]
        if spoilt:
            with pytest.raises(NonFiniteError, match="the gradient of this batch"):
                step.train(batch)
        else:
            step.train(batch)
        same = [torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
        assert all(same) is spoilt


def test_looking_leaves_the_gradients_alone() -> None:
    """To the bit, the smallest numbers too."""
    gradients = [torch.tensor([1e-45, -0.0, 3.4e38]), torch.rand(5, dtype=torch.float64)]
    before = [g.clone() for g in gradients]
    assert _AreFinite()(gradients)
    assert all(torch.equal(g, b) for g, b in zip(gradients, before, strict=True))
    assert gradients[0][1].signbit()


def test_sparse_gradients_are_looked_at_by_their_norm() -> None:
    """What the fused call cannot take is measured instead."""
    model = nn.Embedding(5, 2, sparse=True)
    step = Step(Called(model), torch.optim.SGD(model.parameters(), 0.1), nn.MSELoss())
    step.measures_norm = False
    step.train(Batch(torch.tensor([1, 3]), torch.zeros(2, 2), None))
    assert math.isfinite(step.gradient_norm)


class Called(nn.Module):
    """A module of x alone, called as a hybrid model is."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, phy_args: object = None) -> Tensor:
        return self.inner(x)


def test_a_norm_that_overflows_is_no_error() -> None:
    """Gradients of 1e30 are finite in float32 though their squares are not."""
    model = Affine()
    loss_fn = lambda y_pred, y: 1e30 * y_pred.mean()  # noqa: E731
    train_step(model, sgd(model, lr=1e-30), loss_fn)(*data(), [])
    assert all(torch.isfinite(w).all() for w in weights(model))


# ---- closures ------------------------------------------------------------------------------------


def test_lbfgs_gets_its_closure() -> None:
    """LBFGS solves a linear regression in a few steps; the loss is that before the update."""
    model = Affine().double()
    x = data()[0].double()
    y = x.sum(1, keepdim=True)
    expected = F.mse_loss(model(x), y).item()
    step = train_step(
        model,
        torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe"),
        nn.MSELoss(),
    )
    assert step(x, y, []) == expected
    assert step(x, y, [], test=True) < 1e-10


def test_a_line_search_that_fails_is_undone() -> None:
    """A solver that refuses a trial point leaves parameters and history where the step began."""
    model = Affine()
    optimizer = torch.optim.LBFGS(model.parameters())
    x, y = data()
    step = train_step(model, optimizer, nn.MSELoss())
    step(x, y, [])
    before, history = weights(model), copy.deepcopy(optimizer.state_dict())
    calls = []

    def refusing(y_pred: Tensor, y: Tensor) -> Tensor:
        calls.append(True)
        if len(calls) == 3:
            raise SampleError(0, "too hot")
        return F.mse_loss(y_pred, y) + 0.1 * y_pred.abs().mean()

    with pytest.raises(SampleError):
        train_step(model, optimizer, refusing)(x, y, [])
    assert len(calls) == 3
    assert_same(weights(model), before)
    state, expected = (s["state"][0] for s in (optimizer.state_dict(), history))
    assert state["n_iter"] == expected["n_iter"]
    assert_same(state["old_dirs"], expected["old_dirs"])


def test_clipping_a_line_search_is_refused() -> None:
    """Clipping would change the function under the search."""
    model = Affine()
    with pytest.raises(ConfigError, match="line search"):
        train_step(model, torch.optim.LBFGS(model.parameters()), nn.MSELoss(), grad_clip=1.0)


# ---- settings ------------------------------------------------------------------------------------


def test_plateau_is_refused_at_once() -> None:
    """A single batch has no epoch whose loss the scheduler could be given."""
    model = Affine()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(ConfigError, match="after each epoch"):
        train_step(model, optimizer, nn.MSELoss(), scheduler)


@pytest.mark.parametrize("grad_clip", [0, -1.0, math.nan, "1", True])
def test_a_grad_clip_that_stops_training_is_refused(grad_clip: object) -> None:
    """Zero would train nothing, in silence."""
    model = Affine()
    with pytest.raises(ConfigError, match="grad_clip="):
        train_step(model, sgd(model), nn.MSELoss(), grad_clip=grad_clip)

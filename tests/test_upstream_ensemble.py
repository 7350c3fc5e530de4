"""The hybrid model's part of the table of behaviours: what scripts rely on, and what is cured."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import adeptml_core
from adeptml_core.configs import ACTIVATIONS, HybridConfig, MLPConfig, PhysicsConfig
from adeptml_core.ensemble import HybridModel
from adeptml_core.errors import ConfigError
from adeptml_core.models import ACTIVATIONS as FUNCTIONS
from adeptml_core.models import MLP, Physics_SplitVJP, Physics_VJP

Array = NDArray[np.float64]
DATA = Path(__file__).parent / "data"


def square(x: Array, *args: Any) -> Array:
    return x**2 + sum(args)


def square_vjp(x: Array, g: Array, *args: Any) -> Array:
    return 2 * x * g


def square_split(x: Array, *args: Any) -> Any:
    return square(x, *args), lambda g: (2 * x * g,)


def square_jacobian(x: Array, *args: Any) -> Array:
    return 2 * x[:, :, None] * np.eye(x.shape[1], dtype=x.dtype)


SQUARE = PhysicsConfig(square, square_vjp, True)
NET = MLPConfig(3, 5, 3, 1, "tanh", "identity")


class Recorder(nn.Module):
    """Passes x on and remembers it."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x


# ---- to keep -------------------------------------------------------------------------------------


def test_configs_keep_their_fields() -> None:
    """Names and positional orders are those that scripts use."""
    names = {c: [f.name for f in dataclasses.fields(c)] for c in (MLPConfig, PhysicsConfig)}
    assert names[MLPConfig] == [
        "num_input_dim",
        "num_hidden_dim",
        "num_output_dim",
        "num_hidden_layers",
        "hidden_activation",
        "output_activation",
    ]
    assert names[PhysicsConfig][:4] == [
        "forward_func",
        "jacobian_func",
        "use_vjp",
        "use_split_vjp",
    ]
    required = [f.default is dataclasses.MISSING for f in dataclasses.fields(MLPConfig)]
    assert required == [True] * 6
    config = HybridConfig({"net": NET}, {"net": {"Input": None}})
    assert (list(config.models), config.model_inputs) == (["net"], {"net": {"Input": None}})


def test_mlp_is_an_affine_lift_then_layers_then_a_head() -> None:
    """No activation after linear_in; one after each layer; the output's own at the end."""
    net = MLP(MLPConfig(2, 4, 1, 2, "sin", "softplus"))
    x = torch.randn(5, 2)
    h = net.linear_in(x)
    for layer in net.layers:
        h = torch.sin(layer(h))
    expected = nn.functional.softplus(net.linear_out(h))
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)


def test_mlp_without_hidden_layers() -> None:
    """L = 0 is lift and head alone."""
    net = MLP(MLPConfig(2, 4, 1, 0, "relu", "identity"))
    x = torch.randn(5, 2)
    torch.testing.assert_close(net(x), net.linear_out(net.linear_in(x)), rtol=0, atol=0)
    assert list(net.state_dict()) == [
        "linear_in.weight",
        "linear_in.bias",
        "linear_out.weight",
        "linear_out.bias",
    ]


def test_a_seed_gives_the_weights_that_it_gave() -> None:
    """The layers draw from torch's generator in the order lift, hidden, head."""
    torch.manual_seed(0)
    net = MLP(MLPConfig(3, 4, 2, 1, "relu", "sin"))
    torch.manual_seed(0)
    for layer in (net.linear_in, net.layers[0], net.linear_out):
        fresh = nn.Linear(layer.in_features, layer.out_features)
        torch.testing.assert_close(layer.weight, fresh.weight, rtol=0, atol=0)


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_checkpoints_of_upstream_load_and_predict_the_same(version: str) -> None:
    """A state_dict written by adeptml 2.0 or 2.1 fits, and gives that version's predictions."""
    model = HybridModel(
        HybridConfig(
            models={
                "lift": MLPConfig(3, 5, 4, 2, "swish", "sin"),
                "physics": PhysicsConfig(square, square_vjp, True),
                "own": nn.Linear(4, 2),
                "head": MLPConfig(5, 4, 1, 0, "leakyrelu", "softplus"),
            },
            model_inputs={"head": {"own": None, "Input": [0, -1, 0]}},
        )
    ).double()
    state = torch.load(DATA / f"adeptml-{version}-model.pt", weights_only=True)
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state)
    recorded = torch.load(DATA / f"adeptml-{version}-prediction.pt", weights_only=True)
    torch.testing.assert_close(model(recorded["x"]), recorded["y"], rtol=1e-14, atol=1e-15)


def test_members_are_where_scripts_look_for_them() -> None:
    """Networks in models_nn, the very modules given; solvers in the dict models_physics."""
    own = nn.Linear(3, 3)
    model = HybridModel(HybridConfig({"own": own, "phy": SQUARE, "net": NET}))
    assert model.models_nn["own"] is own
    assert isinstance(model.models_nn["net"], MLP)
    assert model.models_physics == {"phy": Physics_VJP.apply}
    assert all(key.startswith("models_nn.") for key in model.state_dict())


def test_split_beats_vjp() -> None:
    """use_split_vjp=True makes use_vjp irrelevant."""
    config = PhysicsConfig(square_split, None, True, True)
    model = HybridModel(HybridConfig({"phy": config}))
    assert model.models_physics == {"phy": Physics_SplitVJP.apply}
    x = torch.randn(2, 3, requires_grad=True)
    model(x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_members_run_in_insertion_order() -> None:
    """Without routing each member gets the output of the one before."""
    model = HybridModel(HybridConfig({"a": nn.Linear(3, 4), "b": nn.Linear(4, 2), "phy": SQUARE}))
    x = torch.randn(5, 3)
    expected = model.models_nn["b"](model.models_nn["a"](x)) ** 2
    torch.testing.assert_close(model(x), expected)


def test_no_members_return_x() -> None:
    """An empty model is the identity."""
    x = torch.randn(2, 3)
    assert HybridModel(HybridConfig({}))(x) is x


def test_routing_concatenates_in_dict_order() -> None:
    """Columns along dimension 1; None is all, a list those, negative and repeated ones too."""
    own, sink = nn.Linear(3, 4), Recorder()
    routing = {"sink": {"own": None, "Input": [2, -3, 2]}}
    model = HybridModel(HybridConfig({"own": own, "sink": sink}, routing))
    x = torch.randn(5, 3)
    model(x)
    torch.testing.assert_close(sink.seen, torch.cat([own(x), x[:, [2, 0, 2]]], dim=1))


def test_routing_carries_gradients() -> None:
    """Slices and lists of columns give x the gradient of what was taken."""
    model = HybridModel(HybridConfig({"s": Recorder()}, {"s": {"Input": [1, 2, 2]}}))
    x = torch.randn(5, 4, requires_grad=True)
    model(x).sum().backward()
    assert (x.grad == torch.tensor([0.0, 1.0, 2.0, 0.0])).all()


def test_a_list_of_args_goes_to_every_solver_and_to_no_network() -> None:
    """As positional extras; None and [] mean none."""
    model = HybridModel(HybridConfig({"a": SQUARE, "net": nn.Identity(), "b": SQUARE}))
    x = torch.ones(2, 3)
    assert (model(x, [torch.tensor(1.0), 2.0]) == (1 + 3) ** 2 + 3).all()
    assert (model(x) == 1).all()
    assert (model(x, phy_args=[]) == 1).all()


def test_deepcopy_is_independent() -> None:
    """A copy predicts the same, and its weights are its own."""
    model = HybridModel(HybridConfig({"net": NET, "phy": SQUARE}))
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3)
    before = model(x)
    torch.testing.assert_close(twin(x), before, rtol=0, atol=0)
    with torch.no_grad():
        twin.models_nn["net"].linear_in.weight.zero_()
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["HybridModel", "train", "configs", "models", "ensemble"])
def test_names_at_the_top(name: str) -> None:
    """What scripts import from the package is there."""
    assert getattr(adeptml_core, name) is not None
    assert name in dir(adeptml_core)


def test_device_is_there_for_scripts() -> None:
    """`configs.DEVICE` is a torch device; results do not depend on it."""
    from adeptml_core.configs import DEVICE  # type: ignore[attr-defined]

    assert isinstance(DEVICE, torch.device)


def test_forward_hooks_fire() -> None:
    """Members and model are called, not their forward methods."""
    model = HybridModel(HybridConfig({"net": NET}))
    fired = []
    model.models_nn["net"].register_forward_hook(lambda *_: fired.append("net"))
    model.register_forward_hook(lambda *_: fired.append("model"))
    model(torch.zeros(1, 3))
    assert fired == ["net", "model"]


# ---- not to carry over ---------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [0, [0], (0,), range(1), np.array([0]), torch.tensor([0])])
def test_selectors_of_one_column(zero: Any) -> None:
    """0, [0], an array and a tensor all mean column 0, not all columns."""
    sink = Recorder()
    HybridModel(HybridConfig({"s": sink}, {"s": {"Input": zero}}))(torch.arange(6.0).view(2, 3))
    assert sink.seen.tolist() == [[0.0], [3.0]]


@pytest.mark.parametrize(
    "nothing", [[], (), torch.tensor([]), True, [True, False], [0.5], "first", {0}, slice(2)]
)
def test_selectors_of_nothing(nothing: Any) -> None:
    """An empty, boolean or otherwise strange selector is refused."""
    with pytest.raises(ConfigError, match=r"model_inputs\['s'\]\['Input'\]"):
        HybridConfig({"s": Recorder()}, {"s": {"Input": nothing}})


@pytest.mark.parametrize("columns", [[3], [-4], [0, 7]])
def test_columns_that_do_not_exist(columns: list[int]) -> None:
    """In forward, where the width of the input is known; a slice would be cut short in silence."""
    model = HybridModel(HybridConfig({"s": Recorder()}, {"s": {"Input": columns}}))
    with pytest.raises(ConfigError, match="no column"):
        model(torch.zeros(2, 3))


def test_columns_that_a_network_does_not_have() -> None:
    """At construction, where the config knows the width."""
    with pytest.raises(ConfigError, match="there is no column 3; 'net' has 3"):
        HybridConfig({"net": NET, "s": Recorder()}, {"s": {"net": [3]}})


@pytest.mark.parametrize(
    "member", [{}, 3, lambda x: x, nn.Linear, None, NET.to_dict()], ids=lambda m: type(m).__name__
)
def test_members_of_unknown_kind(member: Any) -> None:
    """A dict, lambda, class or None is no identity."""
    with pytest.raises(ConfigError, match="member 'odd'"):
        HybridConfig({"odd": member})


def test_a_string_that_is_no_solver() -> None:
    """A string is a solver's name, so a wrong one is an unknown solver."""
    with pytest.raises(LookupError, match="no solver is called 'nonsense'"):
        HybridConfig({"odd": "nonsense"})


def test_misspelt_destination() -> None:
    """With the name that was probably meant."""
    with pytest.raises(ConfigError, match=r"no member .nett.\. Did you mean 'net'"):
        HybridConfig({"net": NET}, {"nett": {"Input": None}})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("inptu", "no source 'inptu'"),
        ("input", "Did you mean 'Input'"),
        ("b", "'b' cannot feed itself"),
        ("c", "'c' runs after 'b'"),
    ],
)
def test_unknown_own_and_later_sources(source: str, message: str) -> None:
    """At construction, not as a bare KeyError in forward."""
    members = {name: nn.Identity() for name in "abc"}
    with pytest.raises(ConfigError, match=message):
        HybridConfig(members, {"b": {source: None}})


def test_a_member_called_input() -> None:
    """It would overwrite the model's input."""
    with pytest.raises(ConfigError, match="'Input'"):
        HybridConfig({"Input": NET})


@pytest.mark.parametrize("name", ["", "a.b", 3])
def test_names_that_no_module_can_have(name: Any) -> None:
    """State-dict keys are joined with dots."""
    with pytest.raises(ConfigError, match="cannot name a member"):
        HybridConfig({name: NET})


def test_a_network_called_like_a_method() -> None:
    """`ModuleDict` refuses such names, and we say whose they are."""
    with pytest.raises(ConfigError, match="'keys' cannot name a network"):
        HybridModel(HybridConfig({"keys": NET}))


def test_an_empty_route() -> None:
    """No source is no x."""
    with pytest.raises(ConfigError, match="names no source"):
        HybridConfig({"net": NET}, {"net": {}})


def test_widths_that_do_not_fit() -> None:
    """Where the config knows both widths it holds them against each other."""
    with pytest.raises(ConfigError, match="'b' takes 4 columns, but 'a' give 3"):
        HybridConfig({"a": NET, "b": MLPConfig(4, 2, 1, 1, "relu", "relu")})


@pytest.mark.parametrize("field", ["hidden_activation", "output_activation"])
def test_unknown_activation(field: str) -> None:
    """At construction, with the one that was probably meant; and again when changed later."""
    with pytest.raises(ConfigError, match=f"{field}='swsh' is unknown. Did you mean 'swish'"):
        dataclasses.replace(NET, **{field: "swsh"})
    changed = copy.copy(NET)
    setattr(changed, field, "swsh")
    with pytest.raises(ConfigError, match="swsh"):
        MLP(changed)


@pytest.mark.parametrize("value", [None, ["swish"], np.array(["swish", "relu"])])
def test_activations_that_are_no_name(value: Any) -> None:
    """Lists and arrays of names as well."""
    with pytest.raises(ConfigError, match="hidden_activation"):
        dataclasses.replace(NET, hidden_activation=value)


@pytest.mark.parametrize("field", ["use_vjp", "use_split_vjp"])
def test_flags_that_are_no_flags(field: str) -> None:
    """``use_vjp="no"`` is not True."""
    with pytest.raises(ConfigError, match=f"{field}='no' is neither True nor False"):
        PhysicsConfig(square, square_vjp, **{field: "no"})


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_input_dim", 0), ("num_hidden_layers", -1), ("num_output_dim", 2.0)],
)
def test_impossible_widths(field: str, value: Any) -> None:
    """Widths are positive integers, layers may be 0."""
    with pytest.raises(ConfigError, match=field):
        dataclasses.replace(NET, **{field: value})


def test_every_activation_has_a_function() -> None:
    """The names that configs take are those that networks know."""
    assert set(ACTIVATIONS) == set(FUNCTIONS)


def test_missing_derivative_function() -> None:
    """At construction, not in the first backward."""
    for use_vjp, signature in ((False, r"\(x, \*args\)"), (True, r"\(x, grad_output, \*args\)")):
        with pytest.raises(ConfigError, match=f"jacobian_func is missing.*{signature}"):
            PhysicsConfig(square, use_vjp=use_vjp)


def test_functions_that_are_not_callable() -> None:
    """A solver's name in the place of a function gets the line that was meant."""
    with pytest.raises(ConfigError, match=r'PhysicsConfig\(solver="heat1d"\)'):
        PhysicsConfig("heat1d", square_vjp)


@pytest.mark.parametrize("phy_args", [torch.ones(2, 3), 3.0, "q"])
def test_args_that_are_no_list(phy_args: Any) -> None:
    """A single tensor is not read as a list of its rows."""
    model = HybridModel(HybridConfig({"phy": SQUARE}))
    with pytest.raises(ConfigError, match="must be a list of args"):
        model(torch.zeros(2, 3), phy_args)


def test_two_solvers_with_args_of_their_own() -> None:
    """A mapping gives each member its own list."""
    model = HybridModel(HybridConfig({"a": SQUARE, "b": SQUARE}))
    result = model(torch.ones(2, 3), {"a": [1.0], "b": [5.0, 6.0]})
    assert (result == (1 + 1) ** 2 + 11).all()


@pytest.mark.parametrize(
    ("phy_args", "message"),
    [({"c": []}, "no solver member 'c'"), ({"net": []}, "'net' is a network")],
)
def test_args_for_members_that_take_none(phy_args: Any, message: str) -> None:
    """Args for a network or for nobody are not ignored."""
    model = HybridModel(HybridConfig({"net": nn.Identity(), "phy": SQUARE}))
    with pytest.raises(ConfigError, match=message):
        model(torch.ones(2, 3), phy_args)

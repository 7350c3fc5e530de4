"""Hostile memory and the rarer ways that torch calls: right, or refused by name."""

import functools
import warnings

import numpy as np
import operator_table as table
import pytest
import torch
from test_transforms import assert_same, called, some
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from twins import W, plain, with_args

from adeptml_core import transforms
from adeptml_core.autograd import apply
from adeptml_core.bare import RawSolver
from adeptml_core.errors import HigherOrderError, InputError
from adeptml_core.plugin import Array, SolverSpec
from adeptml_core.solver import Solver
from adeptml_core.spec import Mode
from adeptml_core.tensors import SMALL

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")

every_mode = pytest.mark.parametrize("mode", table.MODES)
LARGE = (2, SMALL)  # where results are adopted without a copy


def solver_of(mode, **fields):
    """Return a solver of vectors."""
    declared = {
        "name": "hostile",
        "summary": "one",
        "x": Array("x", ("n",)),
        "y": Array("y", ("n",)),
    }
    return Solver(SolverSpec(**(declared | {"mode": mode} | fields)))


# ---- memory --------------------------------------------------------------------------------------


def test_a_cotangent_that_the_solver_holds_is_copied():
    """A buffer that its pullback reuses changes no gradient that torch has."""
    buffer = np.zeros(LARGE)

    def pullback(g):
        np.multiply(g, 2, out=buffer)
        return (buffer,)

    x = some(*LARGE).requires_grad_()
    f = called(solver_of("split_vjp", forward=lambda x: (x * 2, pullback)))
    (first,) = torch.autograd.grad(f(x).sum(), x)
    torch.autograd.grad(f(x).sum() * 3, x)
    assert_same(first, torch.full_like(first, 2))


def test_a_cotangent_that_nobody_holds_is_not_copied():
    """The healthy twin: its memory is the solver's own."""
    places = []

    def vjp(x, g):
        dx = 2 * g
        places.append(dx.__array_interface__["data"][0])  # .ctypes may hold on to it
        return dx

    x = some(*LARGE).requires_grad_()
    f = called(solver_of("vjp", forward=lambda x: x * 2, vjp=vjp))
    (dx,) = torch.autograd.grad(f(x).sum(), x)
    assert dx.data_ptr() == places[0]


def test_a_pullback_may_return_its_cotangent():
    """The gradient is no view of what torch gave."""
    f = called(solver_of("split_vjp", forward=lambda x: (x * 1, lambda g: (g,))))
    x, g = some(*LARGE).requires_grad_(), some(*LARGE, seed=1)
    (dx,) = torch.autograd.grad(f(x), x, g)
    dx.zero_()
    assert_same(g, some(*LARGE, seed=1))


@pytest.mark.parametrize("wrap", [list, tuple, lambda k: [np.array(k)]])
def test_lists_of_args_are_private(wrap):
    """A list has no version for torch to watch: what was given at forward counts."""
    values = [1.0, 2.0, 3.0]
    k = wrap(values)

    def scaled(x, k):
        return x * np.reshape(np.asarray(k), 3)

    solver = RawSolver(Mode.VJP, scaled, lambda x, g, k: scaled(g, k))
    x = some(2, 3).requires_grad_()
    y = apply(solver, x, k)
    if isinstance(k, list):
        k[0] *= 100
    assert_same(torch.autograd.grad(y.sum(), x), torch.tensor(values).double().expand(2, 3))


@every_mode
@pytest.mark.parametrize("create_graph", [False, True])
def test_saved_tensors_that_may_be_changed(mode, create_graph):
    """Torch gives back the old x; so must a pullback that reads it."""
    f = called(plain.solver(mode))
    x = some(4, 3).requires_grad_()
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        z = x * 1
        y = f(z)
        z.mul_(7)
        (dx,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=create_graph)
    assert_same(dx, table.backward(plain.torch, x)[0])


@every_mode
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_saved_elsewhere_or_computed_again(mode, reentrant):
    """save_on_cpu, and both kinds of checkpoint."""
    f = called(with_args.solver(mode))
    z = table.leaves((some(4, 3), some(3, seed=1), some(seed=2)))
    if reentrant is None:
        with torch.autograd.graph.save_on_cpu():
            y = table.loss(f)(*z)
    else:
        y = checkpoint(table.loss(f), *z, use_reentrant=reentrant)
    y.backward()
    assert_same([v.grad for v in z], table.backward(with_args.torch, *z))


# ---- what a tensor does not tell -----------------------------------------------------------------


def times(x, k):
    return x * k, lambda g: (g * k,)


@pytest.mark.parametrize("declared", [True, False])
def test_undeclared_args_warn_at_every_level(declared):
    """Under vmap an arg does not tell that an outer grad wants it."""
    solver = RawSolver(Mode.SPLIT_VJP, times, name="hostile")
    if declared:
        solver = solver_of("split_vjp", args=(Array("k", ("n",)),), forward=times)
    transforms._warned.clear()
    x, k = table.stacked(some(2, 3)), table.stacked(some(3))
    with pytest.warns(UserWarning, match="declares no derivative"):
        found = grad(lambda k: vmap(called(solver))(x, k).sum())(k)
    assert_same(found, torch.zeros_like(k))


def test_bare_functions_refuse_tangents_of_args():
    """Forward mode would lose them in silence."""
    f = called(RawSolver(Mode.SPLIT_VJP, times))
    x, k = some(2, 3), some(3)
    with pytest.raises(HigherOrderError, match=r"reached args\[0\]"):
        jvp(lambda k: f(x, k), (k,), (k,))
    with forward_ad.dual_level(), pytest.raises(HigherOrderError, match=r"reached args\[0\]"):
        f(x, forward_ad.make_dual(k, k))


def test_bare_functions_are_batched_over_their_args():
    """A loop, with the args that are no tensors beside."""
    solver = RawSolver(
        Mode.SPLIT_VJP,
        lambda x, scale, k: (x**2 * scale["by"] * k, lambda g: (2 * x * g * scale["by"] * k,)),
        second_order="differences",
    )

    def f(x, k):
        return apply(solver, x, {"by": 3.0}, k)

    def twin(x, k):
        return 3 * x**2 * k

    x, k = some(2, 3), table.stacked(some(3))
    assert_same(*(vmap(grad(table.loss(g)), in_dims=(None, 0))(x, k) for g in (f, twin)))
    found, expected = (hessian(table.loss(g))(x, k[0]) for g in (f, twin))
    assert_same(found, expected, rtol=1e-8, atol=1e-8)


def hvp(x, g, v, a, s):
    """Return the second derivative of `with_args` in x."""
    return -np.reshape(s, (-1, 1)) * np.sin(x * a) * a * a * v * (g @ W.T)


def test_what_an_hvp_lacks_is_refused_in_forward_mode():
    """The derivative along x of an arg's cotangent; that of x's own is given."""
    spec = with_args.spec("vjp", hvp=hvp)
    f = called(Solver(spec))
    x, a, s = some(4, 3), some(3, seed=1), some(seed=2)
    gradient = grad(table.loss(f), argnums=0)
    expected = jacfwd(grad(table.loss(with_args.torch), argnums=0))(x, a, s)
    assert_same(jacfwd(gradient)(x, a, s), expected)
    with pytest.raises(HigherOrderError, match="not of the args"):
        jacfwd(grad(table.loss(f), argnums=1))(x, a, s)


@every_mode
@pytest.mark.parametrize("product", ["hvp", "vhp"])
def test_hessian_products(mode, product):
    """`torch.autograd.functional`: hvp differentiates a second derivative along its vector."""
    f, x = called(plain.solver(mode, "differences")), some(4, 3)
    run = getattr(torch.autograd.functional, product)
    found, expected = (run(table.loss(g), x, torch.cos(x)) for g in (f, plain.torch))
    assert_same(found, expected, rtol=1e-8, atol=1e-9)


# ---- recorded, or without memory -----------------------------------------------------------------


@every_mode
@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
def test_make_fx_records_the_solver(mode, tracing):
    """With its backward; numpy's result would stand in the graph as a constant."""
    f, x = called(plain.solver(mode)), some(4, 3)
    graph = make_fx(functools.partial(table.backward, f), tracing_mode=tracing)(x)
    assert_same(graph(2 * x), table.backward(plain.torch, 2 * x))


def test_make_fx_refuses_what_it_cannot_record():
    """Bare functions, and torch.func."""
    x = some(4, 3)
    bare = RawSolver(Mode.VJP, lambda x: x**2, lambda x, g: 2 * x * g)
    for f in (called(bare), grad(table.loss(called(plain.solver("vjp"))))):
        with pytest.raises(InputError, match="constant of the graph"):
            make_fx(f)(x)


def test_tensors_without_memory_are_refused():
    """Each by its kind."""
    f, x = called(plain.solver("vjp")), some(4, 3)
    for given, kind in (
        (x.to("meta"), "on meta"),
        (x.to_sparse(), "sparse_coo"),
        (x.to(torch.float8_e4m3fn), "float8"),
    ):
        with pytest.raises(InputError, match=kind):
            f(given)


@every_mode
def test_the_old_vmap_is_refused(mode):
    """With the name of what serves instead."""
    f, x = called(plain.solver(mode)), some(4, 3)
    with pytest.raises(InputError, match=r"use torch\.func"):
        torch.autograd.functional.jacobian(f, x, vectorize=True)


@pytest.mark.parametrize("dtype", [">f8", np.longdouble])
def test_arrays_that_torch_lacks_come_through_transforms(dtype):
    """As they do in plain calls."""
    f, x = called(with_args.solver("vjp")), some(4, 3)
    a = np.arange(3.0).astype(dtype)
    found = grad(lambda x: f(x, a, 2.0).sum())(x)
    twin = with_args.torch
    z, two = torch.arange(3.0).double(), torch.tensor(2.0).double()
    assert_same(found, grad(lambda x: twin(x, z, two).sum())(x))
    with pytest.raises(InputError, match="no array of numbers"):
        grad(lambda x: f(x, None, 2.0).sum())(x)


# ---- devices, half and autocast ------------------------------------------------------------------


class Elsewhere(torch.Tensor):
    """A stand-in for a tensor of an accelerator, where none is: it tells that it is not on the CPU.

    What is asked of a device is that values are fetched from it and results sent back to it by
    ``to``; every call of that is noted.
    """

    @property
    def is_cpu(self):
        return False


@pytest.fixture
def sent(monkeypatch):
    """Note what is sent to a device."""
    noted = []
    to = torch.Tensor.to

    def noting(self, *args, **kwargs):
        if "device" in kwargs:
            noted.append((kwargs["device"], kwargs["dtype"]))
        return to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", noting)
    return noted


@every_mode
def test_results_are_sent_to_the_device_of_x(mode, sent):
    """Values and gradients, of x and of the args, plain and under torch.func."""
    f = called(with_args.solver(mode))
    x, a, s = (z.as_subclass(Elsewhere) for z in (some(4, 3), some(3, seed=1), some(seed=2)))
    place = (torch.device("cpu"), torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f(x, a, s)
    assert sent == [place]
    sent.clear()
    z = [v.detach().clone().requires_grad_() for v in (x, a, s)]
    assert all(isinstance(v, Elsewhere) for v in z)
    y = f(*z)
    assert sent == [place]
    found = torch.autograd.grad(y.as_subclass(torch.Tensor).pow(2).sum(), z)
    assert sent == [place] * 4
    expected = table.backward(with_args.torch, some(4, 3), some(3, seed=1), some(seed=2))
    assert_same([g.as_subclass(torch.Tensor) for g in found], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_mode
def test_half_in_and_out(mode, dtype):
    """Backward too: each gradient in the dtype of its tensor."""
    f = called(with_args.solver(mode))
    x, a, s = some(4, 3).to(dtype), some(3, seed=1).float(), some(seed=2)
    leaves = [z.clone().requires_grad_() for z in (x, a, s)]
    y = f(*leaves)
    found = torch.autograd.grad(y.float().pow(2).sum(), leaves)
    assert (y.dtype, [g.dtype for g in found]) == (dtype, [z.dtype for z in leaves])
    wide = table.backward(with_args.torch, x.double(), a.double(), s)
    tolerance = 30 * torch.finfo(dtype).eps
    assert_same([g.double() for g in found], wide, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("inside", [False, True])
@every_mode
def test_autocast(mode, inside):
    """A network in bfloat16 before the solver; backward inside the region and outside."""
    torch.manual_seed(0)
    net, f = torch.nn.Linear(3, 3), called(plain.solver(mode))
    x = some(4, 3).float()

    def gradients(f):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = net(x)
            y = f(z)
            loss = y.float().pow(2).mean()
            if inside:
                return z, y, torch.autograd.grad(loss, list(net.parameters()))
        return z, y, torch.autograd.grad(loss, list(net.parameters()))

    z, y, found = gradients(f)
    assert (z.dtype, y.dtype) == (torch.bfloat16, torch.bfloat16)
    assert [g.dtype for g in found] == [torch.float32] * 2
    expected = torch.autograd.grad(plain.torch(net(x)).pow(2).mean(), list(net.parameters()))
    assert_same(found, expected, rtol=0.05, atol=0.02)

"""Right solvers that are hard to judge: none may fail, and hardly any may stay undecided."""

import threading

import numpy as np

from adeptml_core.plugin import Array, Option

from .healthy import N, draws, spec


def linear():
    """No second derivative, so slopes of remainders mean nothing."""
    matrix = np.random.default_rng(1).standard_normal((N, N))
    return spec(
        "linear",
        forward=lambda x: x @ matrix.T.astype(x.dtype),
        vjp=lambda x, g: g @ matrix.astype(x.dtype),
        example=draws((N,)),
    )


def constant():
    """No derivative at all: relative errors divide by zero."""
    return spec(
        "constant",
        forward=lambda x: np.full_like(x, 3.0),
        vjp=lambda x, g: np.zeros_like(x),
        example=draws((N,)),
    )


def partly_constant():
    """Half of the outputs do not depend on x."""

    def forward(x):
        y = np.full_like(x, 7.0)
        y[:, ::2] = np.sin(x[:, ::2])
        return y

    def vjp(x, g):
        dx = np.zeros_like(x)
        dx[:, ::2] = np.cos(x[:, ::2]) * g[:, ::2]
        return dx

    return spec("partly-constant", forward=forward, vjp=vjp, example=draws((N,)))


def scaled():
    """Inputs of 1e-6 and 1e6 side by side: no absolute step serves both."""
    units = np.array([1e-6, 1.0, 1e6, 1e-3, 1e3, 1.0])

    def forward(x):
        return np.exp(-((x / units.astype(x.dtype)) ** 2))

    def vjp(x, g):
        u = units.astype(x.dtype)
        return -2 * x / u**2 * forward(x) * g

    return spec(
        "scaled",
        forward=forward,
        vjp=vjp,
        example=lambda rng, batch: (units * rng.standard_normal((batch, 6)),),
    )


def scaled_outputs():
    """Outputs from 1e-6 to 1e6."""
    units = np.array([1e-6, 1.0, 1e6, 1e-3, 1e3, 1.0])
    return spec(
        "scaled-outputs",
        forward=lambda x: np.sin(x) * units.astype(x.dtype),
        vjp=lambda x, g: np.cos(x) * units.astype(x.dtype) * g,
        example=draws((6,)),
    )


def float32_only():
    """Declares float32 alone."""
    return spec(
        "float32-only",
        dtypes=("float32",),
        forward=lambda x: np.sin(x).cumsum(axis=1, dtype=x.dtype),
        vjp=lambda x, g: np.cos(x) * g[:, ::-1].cumsum(axis=1, dtype=x.dtype)[:, ::-1],
        example=draws((N,)),
    )


def newton(stop=1e-8):
    """``y + y^3 = x`` by a few Newton steps until the change is below `stop`; exact adjoint."""

    def forward(x):
        y = np.zeros_like(x)
        for _ in range(60):
            change = (y + y**3 - x) / (1 + 3 * y**2)
            y = y - change
            if np.abs(change).max() < stop:
                break
        return y

    return spec(
        "newton",
        forward=forward,
        vjp=lambda x, g: g / (1 + 3 * forward(x) ** 2),
        example=draws((N,)),
    )


def fixed_point():
    """A contraction iterated until it moves by less than 1e-8 (in float32: 1e-6), row by row."""

    def forward(x):
        y = np.zeros_like(x)
        active = np.ones(len(x), bool)
        stop = 1e-8 if x.dtype == np.float64 else 1e-6
        for _ in range(200):
            new = np.cos(0.7 * y) / 2 + x
            moved = np.abs(new - y).max(axis=1) > stop
            y[active] = new[active]
            active &= moved
            if not active.any():
                break
        return y

    return spec(
        "fixed-point",
        forward=forward,
        vjp=lambda x, g: g / (1 + 0.35 * np.sin(0.7 * forward(x))),
        example=draws((N,)),
    )


def near_kink():
    """Relu with the example 1e-5 away from its kink."""

    def example(rng, batch):
        sign = rng.choice([-1.0, 1.0], (batch, N))
        return (1e-5 * sign * rng.uniform(0.5, 2, (batch, N)),)

    return spec(
        "near-kink",
        forward=lambda x: np.maximum(x, 0),
        vjp=lambda x, g: (x > 0) * g,
        example=example,
    )


def relu_layer():
    """Kinks everywhere, at no point in particular."""
    weights = np.random.default_rng(3).standard_normal((N, 12))
    outward = np.random.default_rng(4).standard_normal((12, 3))

    def forward(x):
        return np.maximum(x @ weights.astype(x.dtype), 0) @ outward.astype(x.dtype)

    def vjp(x, g):
        w, o = weights.astype(x.dtype), outward.astype(x.dtype)
        return ((g @ o.T) * (x @ w > 0)) @ w.T

    return spec("relu-layer", y=Array("y", (3,)), forward=forward, vjp=vjp, example=draws((N,)))


def offset():
    """Values around 1e6 that vary by 1."""
    return spec(
        "offset",
        dtypes=("float64",),
        forward=lambda x: np.sin(x - 1e6),
        vjp=lambda x, g: np.cos(x - 1e6) * g,
        example=lambda rng, batch: (1e6 + rng.standard_normal((batch, N)),),
    )


def kelvin():
    """Temperatures: 300 with a spread of 1, in float32 too."""
    return spec(
        "kelvin",
        x=Array("T", ("n",), unit="K", low=0.0),
        forward=lambda x: 1e-8 * x**4,
        vjp=lambda x, g: 4e-8 * x**3 * g,
        example=lambda rng, batch: (300 + rng.standard_normal((batch, N)),),
    )


def narrow():
    """Bounds that are narrow, and not representable in float32."""
    return spec(
        "narrow",
        x=Array("x", ("n",), low=0.1, high=0.1000001),
        dtypes=("float64",),
        forward=lambda x: x**0.5,
        vjp=lambda x, g: g / (2 * np.sqrt(x)),
        example=lambda rng, batch: (rng.uniform(0.1, 0.1000001, (batch, N)),),
    )


def bounded_in_float32():
    """A bound of 0.1, which float32 rounds to the wrong side."""

    def forward(x):
        if (np.asarray(x, np.float64) < 0.1).any() or (np.asarray(x, np.float64) > 0.7).any():
            raise ValueError("out of bounds")
        return np.log(x)

    return spec(
        "bounded-in-float32",
        x=Array("x", ("n",), low=0.1, high=0.7),
        forward=forward,
        vjp=lambda x, g: g / x,
        example=lambda rng, batch: (rng.uniform(0.2, 0.6, (batch, N)),),
    )


def no_example():
    """Bounds alone, two symbolic sizes, an option for a size."""
    return spec(
        "no-example",
        x=Array("x", ("n", "m"), low=-1.0, high=1.0),
        args=(Array("a", ("m",), low=0.5, high=2.0, differentiable=True, batched=True),),
        y=Array("y", ("n", "k")),
        options=(Option("k", 3, low=1),),
        forward=lambda x, a, k: np.repeat((x**2 * a[:, None]).sum(-1, keepdims=True), k, -1),
        vjp=lambda x, g, a, k: (
            2 * x * a[:, None] * g.sum(-1, keepdims=True),
            (x**2 * g.sum(-1, keepdims=True)).sum(1),
        ),
    )


def normalised():
    """Rows that couple, as declared: divided by the norm of the whole batch."""

    def forward(x):
        return x / np.sqrt((x**2).sum())

    def vjp(x, g):
        size = np.sqrt((x**2).sum())
        return g / size - x * (g * x).sum() / size**3

    return spec("normalised", row_independent=False, forward=forward, vjp=vjp, example=draws((N,)))


def dithered():
    """Hidden randomness of 1e-9, as declared."""
    noise = np.random.default_rng()

    def forward(x):
        return (np.sin(x) * (1 + 1e-9 * noise.standard_normal(x.shape))).astype(x.dtype)

    return spec(
        "dithered",
        deterministic=False,
        forward=forward,
        vjp=lambda x, g: np.cos(x) * g,
        example=draws((N,)),
    )


def wide():
    """4096 dimensions, coupled to their neighbours."""

    def forward(x):
        return np.sin(x) + 0.5 * np.roll(x, 1, axis=1) ** 2

    def vjp(x, g):
        return np.cos(x) * g + np.roll(g, -1, axis=1) * x

    return spec("wide", forward=forward, vjp=vjp, example=draws((4096,)))


def plane():
    """A 2-D core: five-point Laplacian with a reaction."""

    def laplacian(x):
        p = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        return p[:, 2:, 1:-1] + p[:, :-2, 1:-1] + p[:, 1:-1, 2:] + p[:, 1:-1, :-2] - 4 * x

    return spec(
        "plane",
        x=Array("u", ("n", "m")),
        y=Array("v", ("n", "m")),
        forward=lambda x: x + 0.1 * laplacian(x) - 0.05 * x**3,
        vjp=lambda x, g: g + 0.1 * laplacian(g) - 0.15 * x**2 * g,
        example=draws((7, 5)),
    )


def oscillating():
    """Two hundred periods in the spread of the data."""
    return spec(
        "oscillating",
        dtypes=("float64",),
        forward=lambda x: np.sin(1200 * x),
        vjp=lambda x, g: 1200 * np.cos(1200 * x) * g,
        example=draws((N,)),
    )


def scalar():
    """A single number in, a single number out, 0-d core."""
    return spec(
        "scalar",
        x=Array("x"),
        y=Array("y"),
        args=(Array("a", differentiable=True),),
        forward=lambda x, a: x**2 * a,
        vjp=lambda x, g, a: (
            2 * x * a * g,
            x**2 * g if np.ndim(a) else np.asarray((x**2 * g).sum()),
        ),
        example=lambda rng, batch: (rng.standard_normal(batch), rng.standard_normal()),
    )


def shared_mesh():
    """An arg that is always shared, and differentiable."""

    def vjp(x, g, w):
        return g @ w, np.einsum("bi,bj->ij", g, x)

    return spec(
        "shared-mesh",
        args=(Array("w", ("n", "n"), differentiable=True, batched=False),),
        forward=lambda x, w: x @ w.T,
        vjp=vjp,
        example=lambda rng, batch: (rng.standard_normal((batch, 4)), rng.standard_normal((4, 4))),
    )


def integer_arg():
    """An integer arg that selects, and a bool arg that switches."""

    def forward(x, which, on):
        return np.where(on[:, None], np.take_along_axis(x, which, axis=1) ** 2, x)

    def vjp(x, g, which, on):
        dx = np.zeros_like(x)
        taken = 2 * np.take_along_axis(x, which, axis=1) * g
        for row, (w, t) in enumerate(zip(which, taken, strict=True)):
            np.add.at(dx[row], w, t)
        return np.where(on[:, None], dx, g)

    return spec(
        "integer-arg",
        args=(
            Array("which", ("n",), dtype="int64", batched=True),
            Array("on", dtype="bool", batched=True),
        ),
        forward=forward,
        vjp=vjp,
        example=lambda rng, batch: (
            rng.standard_normal((batch, 4)),
            rng.integers(0, 4, (batch, 4)),
            rng.random(batch) < 0.5,
        ),
    )


def writes_as_declared():
    """Works in place on its inputs, and says so."""

    def forward(x):
        np.sin(x, out=x)
        return np.array(x)

    def vjp(x, g):
        np.cos(x, out=x)
        g *= x
        return np.array(g)

    return spec(
        "writes-as-declared",
        writable_inputs=True,
        forward=forward,
        vjp=vjp,
        example=draws((N,)),
    )


def one_at_a_time():
    """A shared work array, and declared so."""
    work = np.zeros((4096, N))

    def forward(x):
        part = work[: len(x)]
        part[...] = x
        part *= part
        return part.astype(x.dtype)

    return spec(
        "one-at-a-time",
        thread_safe=False,
        forward=forward,
        vjp=lambda x, g: 2 * x * g,
        example=draws((N,)),
    )


def reads_its_result():
    """A pullback that reads the y it returned, as it may."""

    def forward(x):
        y = np.exp(x)
        return y, lambda g: y * g

    return spec("reads-its-result", mode="split_vjp", forward=forward, example=draws((N,)))


def keeps_a_pool():
    """A pool of threads, made once and kept, and a cache that is right."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(2)
    cache = {}
    lock = threading.Lock()

    def forward(x):
        key = x.tobytes(), x.dtype.str, x.shape
        with lock:
            known = cache.get(key)
        if known is None:
            known = np.concatenate(list(pool.map(np.sin, np.array_split(x, 2))))
            with lock:
                cache[key] = known
        return np.array(known)

    return spec(
        "keeps-a-pool", forward=forward, vjp=lambda x, g: np.cos(x) * g, example=draws((N,))
    )


def loose(tolerance=1e-3):
    """An adjoint that is off by 3e-4, and claims no more than 1e-3."""
    return spec(
        "loose",
        tolerance=tolerance,
        forward=lambda x: x**3,
        vjp=lambda x, g: 3 * x**2 * g * (1 + 3e-4 * np.cos(7 * x)),
        example=draws((N,)),
    )


def adaptive():
    """A sum with as many terms as the value needs: jumps of 1e-10 where their number changes."""

    def terms(x):
        return np.ceil(6 + 2 * np.abs(x)).astype(int)

    def forward(x):
        y, term = np.zeros_like(x), np.ones_like(x)
        for k in range(1, 60):
            y = y + term
            term = np.where(k < 6 + 2 * np.abs(x) + 14, term * x / k, 0)
        return y

    return spec(
        "adaptive",
        dtypes=("float64",),
        forward=forward,
        vjp=lambda x, g: np.exp(x) * g,
        example=draws((N,)),
    )


def interpolation():
    """A table read linearly: a kink at every node, right in between."""
    nodes = np.linspace(-6, 6, 25)
    table = np.sin(nodes) + nodes**2

    def vjp(x, g):
        cell = np.clip(np.searchsorted(nodes, x, side="right") - 1, 0, len(nodes) - 2)
        slope = (np.diff(table) / np.diff(nodes))[cell]
        inside = (x >= nodes[0]) & (x <= nodes[-1])
        return (np.where(inside, slope, 0) * g).astype(x.dtype)

    return spec(
        "interpolation",
        x=Array("x", ("n",), low=-6.0, high=6.0),
        forward=lambda x: np.interp(x, nodes, table).astype(x.dtype),
        vjp=vjp,
        example=lambda rng, batch: (rng.uniform(-5, 5, (batch, N)),),
    )


def single_inside():
    """Works in float32 inside, both ways, whatever it is given."""

    def single(x):
        return np.sin(x.astype("float32")).astype(x.dtype)

    def vjp(x, g):
        return (np.cos(x.astype("float32")) * g.astype("float32")).astype(x.dtype)

    return spec("single-inside", forward=single, vjp=vjp, example=draws((N,)))


def stiff():
    """Decay with rates over ten decades, each component its own."""
    rates = 10.0 ** np.linspace(-5, 5, N)
    return spec(
        "stiff",
        forward=lambda x: x * np.exp(-rates).astype(x.dtype) + (x**2) * 1e-3,
        vjp=lambda x, g: g * (np.exp(-rates).astype(x.dtype) + 2e-3 * x),
        example=draws((N,)),
    )


def chaotic():
    """A logistic map iterated 25 times: a derivative of 1e6, rounding errors to match."""

    def run(x):
        y, slope = x, np.ones_like(x)
        for _ in range(25):
            slope = slope * 3.9 * (1 - 2 * y)
            y = 3.9 * y * (1 - y)
        return y, slope

    return spec(
        "chaotic",
        x=Array("x", ("n",), low=0.01, high=0.99),
        dtypes=("float64",),
        forward=lambda x: run(x)[0],
        vjp=lambda x, g: run(x)[1] * g,
        example=lambda rng, batch: (rng.uniform(0.2, 0.8, (batch, N)),),
    )


def positive():
    """Defined for positive numbers only, which only the example tells."""

    def forward(x):
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sqrt(x) * np.log(x)

    def vjp(x, g):
        with np.errstate(invalid="ignore", divide="ignore"):
            return g * (np.log(x) / 2 + 1) / np.sqrt(x)

    return spec(
        "positive",
        forward=forward,
        vjp=vjp,
        example=lambda rng, batch: (rng.uniform(0.5, 2, (batch, N)),),
    )


def refuses():
    """Raises where a matrix built from x is singular or x is negative, outside its bounds."""

    def forward(x):
        if (x <= 0).any():
            raise ValueError("not positive")
        return 1 / x

    return spec(
        "refuses",
        x=Array("x", ("n",), low=0.25, high=4.0),
        forward=forward,
        vjp=lambda x, g: -g / x**2,
        example=lambda rng, batch: (rng.uniform(0.5, 2, (batch, N)),),
    )


def limiter():
    """Minmod: where all its arguments vanish it has a slope along every line, and no derivative."""

    def parts(x):
        a, b = x - np.roll(x, 1, 1), np.roll(x, -1, 1) - x
        return a, b, a * b > 0, np.abs(a) < np.abs(b)

    def forward(x):
        a, b, same, first = parts(x)
        return x - 0.3 * np.where(same, np.where(first, a, b), 0)

    def vjp(x, g):
        _, _, same, first = parts(x)
        da, db = -0.3 * np.where(same & first, g, 0), -0.3 * np.where(same & ~first, g, 0)
        return g + da - np.roll(da, -1, 1) + np.roll(db, 1, 1) - db

    return spec("limiter", forward=forward, vjp=vjp, example=draws((10,)))


def yield_stress():
    """A dead zone: most outputs do not move at all until a threshold, and then at once."""
    return spec(
        "yield-stress",
        forward=lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
        vjp=lambda x, g: (np.abs(x) > 0.5) * g,
        example=draws((N,)),
    )


def noisy_both_ways():
    """Noise of 1e-6 in value and gradient, as declared: small cotangents drown in it."""
    noise = np.random.default_rng()

    def forward(x):
        return (np.sin(x) + 1e-6 * noise.standard_normal(x.shape)).astype(x.dtype)

    def vjp(x, g):
        return (np.cos(x) * g + 1e-6 * noise.standard_normal(x.shape)).astype(x.dtype)

    return spec(
        "noisy-both-ways", deterministic=False, forward=forward, vjp=vjp, example=draws((N,))
    )


def periodic_box():
    """Positions wrapped into a box: they jump, their derivative does not."""
    return spec(
        "periodic-box",
        forward=lambda x: np.mod(3 * x, 1.0),
        vjp=lambda x, g: 3 * g,
        example=draws((N,)),
    )


def eigenvalues():
    """Eigenvalues of a symmetric matrix, which have no derivative where two meet."""

    def symmetric(x):
        return (x + np.swapaxes(x, 1, 2)) / 2

    def vjp(x, g):
        vectors = np.linalg.eigh(symmetric(x))[1]
        return np.einsum("bik,bk,bjk->bij", vectors, g, vectors)

    return spec(
        "eigenvalues",
        x=Array("M", ("n", "n")),
        forward=lambda x: np.linalg.eigvalsh(symmetric(x)),
        vjp=vjp,
        example=draws((4, 4)),
    )


def permeable():
    """Permeabilities over seven decades beside pressures of 1e6, in SI units."""

    def forward(x, k):
        return -k / 1e-3 * np.diff(x, axis=1) / 0.1

    def vjp(x, g, k):
        dx = np.zeros_like(x)
        flux = -k / 1e-4 * g
        dx[:, 1:] += flux
        dx[:, :-1] -= flux
        return dx, -np.diff(x, axis=1) / 1e-4 * g

    return spec(
        "permeable",
        x=Array("p", (6,), unit="Pa", low=0.0, high=1e8),
        y=Array("u", (5,), unit="m/s"),
        args=(
            Array("k", (5,), unit="m^2", low=1e-16, high=1e-9, differentiable=True, batched=True),
        ),
        forward=forward,
        vjp=vjp,
        example=lambda rng, batch: (
            1e6 * rng.uniform(0.5, 1.5, (batch, 6)),
            10 ** rng.uniform(-13, -11, (batch, 5)),
        ),
    )


def near_singular():
    """A linear solve of condition 1e8."""
    rng = np.random.default_rng(4)
    left, right = (np.linalg.qr(rng.standard_normal((N, N)))[0] for _ in range(2))
    matrix = left @ np.diag(10.0 ** np.linspace(0, -8, N)) @ right
    return spec(
        "near-singular",
        dtypes=("float64",),
        forward=lambda x: np.linalg.solve(matrix, x.T).T.copy(),
        vjp=lambda x, g: np.linalg.solve(matrix.T, g.T).T.copy(),
        example=draws((N,)),
    )


AWKWARD = {
    factory.__name__.replace("_", " "): factory
    for factory in (
        linear,
        constant,
        partly_constant,
        scaled,
        scaled_outputs,
        float32_only,
        newton,
        fixed_point,
        near_kink,
        relu_layer,
        offset,
        kelvin,
        narrow,
        bounded_in_float32,
        no_example,
        normalised,
        dithered,
        wide,
        plane,
        oscillating,
        scalar,
        shared_mesh,
        integer_arg,
        writes_as_declared,
        one_at_a_time,
        reads_its_result,
        keeps_a_pool,
        loose,
        adaptive,
        interpolation,
        single_inside,
        stiff,
        chaotic,
        positive,
        refuses,
        limiter,
        yield_stress,
        noisy_both_ways,
        periodic_box,
        eigenvalues,
        permeable,
        near_singular,
    )
}

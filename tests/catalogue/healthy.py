"""Right solvers, small and ordinary: what every defect of the catalogue is a slip in.

Each factory takes ``slip``: None gives the healthy twin, a name gives the solver with that one
mistake in it, and nothing else changed.
"""

import numpy as np

from adeptml_core.plugin import Array, Option, SolverSpec

N = 6


def draws(*shapes, low=None):
    """Return an example that draws normal arrays (or uniform above `low`), all per sample."""

    def example(rng, batch, **options):
        if low is not None:
            return tuple(low + rng.uniform(0.2, 1.5, (batch, *shape)) for shape in shapes)
        return tuple(rng.standard_normal((batch, *shape)) for shape in shapes)

    return example


def spec(name, **fields):
    """Return a spec with the fields that most of the catalogue shares."""
    fields.setdefault("mode", "vjp")
    fields.setdefault("x", Array("x", ("n",)))
    fields.setdefault("y", Array("y", ("n",)))
    fields.setdefault("summary", "of the catalogue")
    return SolverSpec(name=name, **fields)


def spring(slip=None, **changed):
    """Damped oscillator in closed form: ``y = exp(-c t) cos(k x)``, arg c, option t."""
    seen = {}

    def decay(c, t):
        if slip == "cache-ignores-options":
            return np.exp(-c * seen.setdefault("t", t))
        return np.exp(-c * t)

    def forward(x, c, t):
        return np.exp(-c * t) * np.cos(2 * x)

    def vjp(x, g, c, t):
        dx = -2 * decay(c, t) * np.sin(2 * x) * g
        dc = -t * np.exp(-c * t) * np.cos(2 * x) * g
        if c.ndim < x.ndim:
            dc = dc.mean(axis=0) if slip == "averaged" else dc.sum(axis=0)
        if slip == "sign":
            dx = -dx
        elif slip == "chain-factor":
            dx = dx / 2
        elif slip == "dt-factor":
            dc = dc / t
        elif slip == "default-options-only":
            dc = dc / t * 1.7
        elif slip == "zero":
            dc = 0 * dc
        elif slip == "batch-above-16" and len(x) > 16:
            dx[16:] = dx[:-16]
        elif slip == "per-batch":
            dx = dx / len(x)
        elif slip == "float32-inside":
            dx = dx.astype("float32").astype(x.dtype)
        elif slip == "float32-returned":
            dx = dx.astype("float32")
        elif slip == "clipped":
            dx = dx * min(1.0, 30.0 / np.sqrt((g**2).sum()))
        elif slip == "nan-gradient":
            dx = dx + np.sqrt(-1.0 - 0 * x)
        return dx, dc

    return spec(
        "spring",
        args=(Array("c", ("n",), differentiable=True),),
        options=(Option("t", 1.7, low=1e-6),),
        forward=forward,
        vjp=vjp,
        example=lambda rng, batch, t: (rng.standard_normal((batch, N)), rng.uniform(0, 1, (N,))),
        **changed,
    )


def _laplacian(k):
    """Return ``-d/dx k d/dx`` on n cells with fixed ends, for a batch of k: (batch, n, n)."""
    between = (k[:, :-1] + k[:, 1:]) / 2
    left = np.concatenate([k[:, :1], between], axis=1)
    right = np.concatenate([between, k[:, -1:]], axis=1)
    matrix = np.zeros((*k.shape, k.shape[1]), k.dtype)
    cells = np.arange(k.shape[1])
    matrix[:, cells, cells] = left + right
    matrix[:, cells[1:], cells[:-1]] = -between
    matrix[:, cells[:-1], cells[1:]] = -between
    return matrix


def rod(slip=None, **changed):
    """One implicit step of heat conduction: ``(1 + dt A(k)) y = x``, with its adjoint."""

    def system(k, dt):
        return np.eye(k.shape[1], dtype=k.dtype) + dt * _laplacian(k)

    def forward(x, k, dt):
        return np.linalg.solve(system(k, dt), x[..., None])[..., 0]

    def vjp(x, g, k, dt):
        y = forward(x, k, dt)
        if slip == "frozen-coefficients":
            return forward(g, np.ones_like(k), dt), np.zeros_like(k)
        lam = np.linalg.solve(system(k, dt), g[..., None])[..., 0]
        # A(k) y depends on k through the faces between cells: d/dk of -lam . dt A(k) y.
        ends = np.zeros((len(x), 1), x.dtype)
        jump = np.diff(np.concatenate([ends, y, ends], axis=1), axis=1)
        tilt = np.diff(np.concatenate([ends, lam, ends], axis=1), axis=1)
        flux = dt * jump * tilt
        dk = -(flux[:, :-1] + flux[:, 1:]) / 2
        dk[:, 0] -= flux[:, 0] / 2
        dk[:, -1] -= flux[:, -1] / 2
        dx = np.array(lam)
        if slip == "boundary-rows":
            dk[:, 0] += flux[:, 0] / 2
            dk[:, -1] += flux[:, -1] / 2
        elif slip == "boundary-input":
            dx[:, 0] = 0
        elif slip == "missing-term":
            dk = -flux[:, :-1] / 2
        elif slip == "explicit-adjoint":
            dx = g - dt * (_laplacian(k) @ g[..., None])[..., 0]
        return dx, dk

    return spec(
        "rod",
        args=(Array("k", ("n",), low=1e-3, high=50.0, differentiable=True, batched=True),),
        options=(Option("dt", 0.1, low=1e-6),),
        forward=forward,
        vjp=vjp,
        example=lambda rng, batch, dt: (
            rng.standard_normal((batch, N)),
            rng.uniform(0.5, 2, (batch, N)),
        ),
        **changed,
    )


def network(slip=None, n=8, **changed):
    """A dense layer with its Jacobian: ``y = tanh(W x)``, W not symmetric."""
    weights = np.random.default_rng(5).standard_normal((n, n)) / np.sqrt(n)
    buffer = {}

    def forward(x):
        return np.tanh(x @ weights.T.astype(x.dtype))

    def jacobian(x):
        slope = 1 - forward(x) ** 2
        result = slope[:, :, None] * weights.astype(x.dtype)
        if slip == "transpose":
            return np.swapaxes(result, 1, 2).copy()
        if slip == "entry":
            result[:, 2, 5] *= 1.5
        elif slip == "entry-sign":
            result[:, n // 2, n // 3] *= -1
        elif slip == "reused-jacobian":
            kept = buffer.setdefault((x.shape, x.dtype), result)
            kept[...] = result
            return kept
        return result

    return spec(
        "network",
        mode="jacobian",
        forward=forward,
        jacobian=jacobian,
        example=draws((n,)),
        **changed,
    )


def shift(slip=None, **changed):
    """``y = x + c``, whose gradients are the cotangent itself: tempting to hand it on as it is."""

    def forward(x, c):
        return x + c if slip != "returns-input" or c.any() else x

    def vjp(x, g, c):
        if slip == "returns-cotangent":
            return g, np.array(g)
        if slip == "one-array-twice":
            dx = np.array(g)
            return dx, dx
        return np.array(g), np.array(g)

    return spec(
        "shift",
        args=(Array("c", ("n",), differentiable=True, batched=True),),
        forward=forward,
        vjp=vjp,
        example=lambda rng, batch: (rng.standard_normal((batch, N)), np.zeros((batch, N))),
        **changed,
    )


def cubic(slip=None, **changed):
    """Elementwise in split mode: ``y = k x^3``, the pullback made by the forward."""
    state = {"calls": 0}
    bag = {}
    noise = np.random.default_rng(11)

    def forward(x, k):
        state["x"], state["k"] = x, k
        state["calls"] += 1
        y = k * x**3
        first = bag.setdefault(x.shape, np.array(x))
        if slip == "random":
            y = y + (1e-6 * noise.standard_normal(y.shape)).astype(y.dtype)
        elif slip == "counter":
            y = y * (1 + 1e-9 * state["calls"])
        elif slip == "reused-buffer":
            out = bag.setdefault(("y", x.shape, x.dtype), np.empty_like(y))
            out[...] = y
            y = out
        elif slip == "prints":
            print("solving ...")
        elif slip == "seterr":
            np.seterr(all="ignore")
        elif slip == "seeds":
            np.random.seed(0)
        total = np.zeros_like(x)
        made = {"count": 0}

        def pullback(g):
            point, scale = (state["x"], state["k"]) if slip == "late-binding" else (x, k)
            if slip == "cached-by-shape":
                point = first.astype(x.dtype)
            if point.shape != g.shape:
                point = point[: len(g)]
            dx = 3 * scale * point**2 * g
            dk = x**3 * g
            made["count"] += 1
            if slip == "accumulates":
                total[...] += dx
                dx = np.array(total)
            elif slip == "once" and made["count"] > 1:
                dx = 0 * dx
            elif slip == "writes-cotangent":
                g *= 2
            elif slip == "writes-x-by-force":
                view = x.base if x.base is not None else x
                view.flags.writeable = True
                view[0] += 1e-3
            elif slip == "cotangent-clipped":
                dx = np.clip(dx, -50, 50)
            elif slip == "writes-y":
                y[...] = 0
            elif slip == "keeps-buffer":
                out = bag.setdefault(("dx", g.shape, g.dtype), np.empty_like(dx))
                out[...] = dx
                dx = out
            if slip == "swapped":
                return dk, dx
            return dx, dk

        return y, pullback

    return spec(
        "cubic",
        mode="split_vjp",
        args=(Array("k", ("n",), differentiable=True, batched=True),),
        forward=forward,
        example=draws((N,), (N,)),
        **changed,
    )

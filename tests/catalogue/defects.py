"""The public catalogue of defects: which check finds each, with which diagnosis.

``DEFECTS[name] = (make, check ids, diagnoses)``: ``make(None)`` would be the healthy twin's
factory.
"""

import threading
import time
from typing import NamedTuple

import numpy as np

from adeptml_core.plugin import Array, Option

from .healthy import N, cubic, draws, network, rod, shift, spec, spring


class Defect(NamedTuple):
    """A solver with one mistake: what it fails, and how that is explained."""

    make: object
    check: str
    diagnosis: str


def slip(factory, name):
    """Return a maker of the solver with that slip; ``maker(None)`` is its healthy twin."""
    return lambda slipped=name, **changed: factory(slipped, **changed)


# ---- solvers with a defect of their own ---------------------------------------------------------


def coupled(slipped="norm", **changed):
    """Elementwise square root; or divided by a norm over the batch, forward and gradient alike."""

    def forward(x):
        scale = np.sqrt((x**2).mean()) if slipped == "norm" else 1.0
        return x * np.abs(x) / scale

    def vjp(x, g):
        if slipped != "norm":
            return 2 * np.abs(x) * g
        scale = np.sqrt((x**2).mean())
        return 2 * np.abs(x) * g / scale - (g * x * np.abs(x)).sum() * x / (x.size * scale**3)

    return spec("coupled", forward=forward, vjp=vjp, example=draws((N,)), **changed)


def far_term(slipped="far", **changed):
    """``y = x^2 + 3 max(x - 4, 0)^2``: the second term matters far from the example only."""

    def forward(x):
        return x**2 + 3 * np.maximum(x - 4, 0) ** 2

    def vjp(x, g):
        far = 0 if slipped == "far" else 6 * np.maximum(x - 4, 0)
        return (2 * x + far) * g

    return spec(
        "far-term",
        x=Array("x", ("n",), low=-10.0, high=10.0),
        forward=forward,
        vjp=vjp,
        example=draws((N,)),
        **changed,
    )


def log_mean(slipped="equal", **changed):
    """The logarithmic mean of neighbours, whose derivative is 0/0 where they are equal."""

    def parts(x):
        a, b = x[:, :-1], x[:, 1:]
        r = np.log(b / a)
        near = np.abs(r) < 1e-3
        safe = np.where(near, 1.0, r)
        mean = np.where(near, np.sqrt(a * b) * (1 + r**2 / 24), (b - a) / safe)
        return a, b, r, near, mean

    def forward(x):
        return parts(x)[-1]

    def vjp(x, g):
        a, b, r, near, mean = parts(x)
        with np.errstate(all="ignore"):
            da = (mean / a - 1) / r
            db = (1 - mean / b) / r
        if slipped != "equal":
            root = np.sqrt(a * b)
            series = root * (1 + r**2 / 24), root * r / 12
            da = np.where(near, (series[0] / 2 - series[1]) / a, da)
            db = np.where(near, (series[0] / 2 + series[1]) / b, db)
        dx = np.zeros_like(x)
        dx[:, :-1] += da * g
        dx[:, 1:] += db * g
        return dx

    return spec(
        "log-mean",
        x=Array("x", (N,), low=0.1, high=10.0),
        y=Array("y", (N - 1,)),
        dtypes=("float64",),
        forward=forward,
        vjp=vjp,
        example=lambda rng, batch: (rng.uniform(0.5, 3, (batch, N)),),
        **changed,
    )


def overflows(slipped="overflow", **changed):
    """``log(1 + exp(a x))``, which overflows at the bound it declares unless written well."""

    def forward(x):
        if slipped == "overflow":
            with np.errstate(all="ignore"):
                return np.log(1 + np.exp(x))
        return np.logaddexp(0, x)

    def vjp(x, g):
        return g * 0.5 * (1 + np.tanh(x / 2))

    return spec(
        "overflows",
        x=Array("x", ("n",), low=-1000.0, high=1000.0),
        forward=forward,
        vjp=vjp,
        example=draws((N,)),
        **changed,
    )


def threaded(slipped="shared-work", **changed):
    """A sum of powers in a work array, shared by all threads or of each call's own."""
    shared = np.zeros((512, N))

    def powers(x):
        work = shared[: len(x)] if slipped == "shared-work" and len(x) <= 512 else np.empty_like(x)
        work[...] = x
        for _ in range(6):
            time.sleep(0)  # gives way, as any solver in C does
            work *= 1 + 0.1 * np.tanh(x)
        return np.array(work, x.dtype)

    def vjp(x, g):
        t = np.tanh(x)
        return g * (powers(x) / np.where(x == 0, 1, x) + x * 0.6 * (1 + 0.1 * t) ** 5 * (1 - t**2))

    return spec("threaded", forward=powers, vjp=vjp, example=draws((N,)), **changed)


def tangent(slipped="jvp-factor", **changed):
    """``y = sin x`` with a jvp of its own."""

    def jvp(x, dx):
        return (2 if slipped == "jvp-factor" else 1) * np.cos(x) * dx

    return spec(
        "tangent",
        forward=np.sin,
        vjp=lambda x, g: np.cos(x) * g,
        jvp=jvp,
        example=draws((N,)),
        **changed,
    )


def curvature(slipped="hvp-sign", **changed):
    """``y = sin x`` with an hvp of its own."""

    def hvp(x, g, v):
        return (1 if slipped == "hvp-sign" else -1) * np.sin(x) * g * v

    return spec(
        "curvature",
        forward=np.sin,
        vjp=lambda x, g: np.cos(x) * g,
        hvp=hvp,
        example=draws((N,)),
        **changed,
    )


def leaves_threads(slipped="thread", **changed):
    """A solver that starts a thread in every call, and forgets to end it."""

    def forward(x):
        if slipped == "thread":
            threading.Thread(target=time.sleep, args=(3.0,), daemon=True).start()
        return np.sin(x)

    return spec(
        "leaves-threads",
        forward=forward,
        vjp=lambda x, g: np.cos(x) * g,
        example=draws((N,)),
        **changed,
    )


def single_precision(slipped="overflow", **changed):
    """Right in float64; in float32 a constant of 1e50 is too large."""

    def forward(x):
        with np.errstate(all="ignore"):
            big = x.dtype.type(1e50) if slipped == "overflow" else x.dtype.type(1e5)
            return (x * big) / big

    return spec(
        "single-precision",
        forward=forward,
        vjp=lambda x, g: g * 1,
        example=draws((N,)),
        **changed,
    )


def coarse_in_float32(slipped="cancellation", **changed):
    """``(1 - cos x) / x^2``, by cancellation, which float32 does not survive."""

    def forward(x):
        if slipped == "cancellation":
            return (1 - np.cos(x)) / x**2
        return 2 * (np.sin(x / 2) / x) ** 2

    def vjp(x, g):
        return g * (x**3 / 180 - x / 12)  # the series: x is small

    return spec(
        "coarse-in-float32",
        forward=forward,
        vjp=vjp,
        example=lambda rng, batch: (rng.uniform(0.0005, 0.003, (batch, N)),),
        **changed,
    )


def needle(slipped="needle", n=4096, **changed):
    """4096 elements, one of which has the wrong sign."""

    def vjp(x, g):
        dx = np.cos(x) * g
        if slipped == "needle":
            dx[:, 1234] *= -1
        return dx

    return spec("needle", forward=np.sin, vjp=vjp, example=draws((n,)), **changed)


def noisy_factor(slipped="noisy-factor", **changed):
    """A gradient 2 per cent too small under noise of 1e-7."""

    def forward(x):
        return np.sin(x) + 1e-7 * np.sin(1e13 * x)

    factor = 0.98 if slipped == "noisy-factor" else 1.0
    return spec(
        "noisy-factor",
        forward=forward,
        vjp=lambda x, g: factor * np.cos(x) * g,
        example=draws((N,)),
        **changed,
    )


def bad_example(slipped="outside", **changed):
    """An example outside the bounds that the spec declares; or one that no seed reproduces."""
    unseeded = np.random.default_rng()

    def example(rng, batch):
        rng = unseeded if slipped == "unseeded" else rng
        return (rng.uniform(0.5, 1, (batch, N)) - (2 if slipped == "outside" else 0),)

    return spec(
        "bad-example",
        x=Array("x", ("n",), low=0.0),
        forward=lambda x: x**2,
        vjp=lambda x, g: 2 * x * g,
        example=example,
        **changed,
    )


def wrong_order(slipped="order", **changed):
    """Functions that name the args in another order than the spec."""

    def right(x, a, b):
        return a * x + b

    def wrong(x, b, a):
        return a * x + b

    return spec(
        "wrong-order",
        args=(Array("a", ("n",)), Array("b", ("n",))),
        forward=wrong if slipped == "order" else right,
        vjp=lambda x, g, a, b: g * (b if slipped == "order" else a),
        example=draws((N,), (N,), (N,)),
        **changed,
    )


def lacks_option(slipped="lacks-option", **changed):
    """A vjp that does not take the declared option."""

    def vjp(x, g, power=2.0):
        return power * np.abs(x) ** (power - 1) * np.sign(x) * g

    def without(x, g):
        return 2 * x * g

    return spec(
        "lacks-option",
        options=(Option("power", 2.0, low=1.0),),
        forward=lambda x, power: np.abs(x) ** power,
        vjp=without if slipped == "lacks-option" else vjp,
        example=lambda rng, batch, power: (rng.standard_normal((batch, N)),),
        **changed,
    )


def nowhere(slipped="nowhere", **changed):
    """A reference that leads nowhere."""
    return spec(
        "nowhere",
        forward="math:no_such_function" if slipped == "nowhere" else np.sin,
        vjp=lambda x, g: np.cos(x) * g,
        example=draws((N,)),
        **changed,
    )


def unknown_expectation(slipped="unknown", **changed):
    """An expected failure of a check that does not exist."""
    expected = {"gradient.z": "not ours"} if slipped == "unknown" else {}
    return spec(
        "unknown-expectation",
        forward=np.sin,
        vjp=lambda x, g: np.cos(x) * g,
        example=draws((N,)),
        expected_failures=expected,
        **changed,
    )


def single_factor(slipped="factor", **changed):
    """``y = x^2``, whose derivative in float32 has a literal that lost its last digits."""

    def vjp(x, g):
        two = 2.02 if slipped == "factor" and x.dtype == np.float32 else 2.0
        return x.dtype.type(two) * x * g

    return spec("single-factor", forward=lambda x: x**2, vjp=vjp, example=draws((N,)), **changed)


def product(slipped="outer", **changed):
    """``y = A x`` with the matrix an arg: its gradient is an outer product, easily turned."""

    def forward(x, A):
        return np.einsum("bij,bj->bi", A, x)

    def vjp(x, g, A):
        pair = "bi,bj->bji" if slipped == "outer" else "bi,bj->bij"
        return np.einsum("bi,bij->bj", g, A), np.einsum(pair, g, x)

    return spec(
        "product",
        args=(Array("A", ("n", "n"), differentiable=True, batched=True),),
        forward=forward,
        vjp=vjp,
        example=draws((4,), (4, 4)),
        **changed,
    )


def dense(slipped="transpose", n=150, **changed):
    """A dense linear layer, too large to be compared entry by entry."""
    weights = np.random.default_rng(6).standard_normal((n, n)) / np.sqrt(n)

    def vjp(x, g):
        w = weights.astype(x.dtype)
        return g @ (w.T if slipped == "transpose" else w)

    return spec(
        "dense",
        forward=lambda x: x @ weights.T.astype(x.dtype),
        vjp=vjp,
        example=draws((n,)),
        **changed,
    )


def mirrored_ends(slipped="ends", n=100, **changed):
    """A stencil with mirrored ends, which the adjoint forgets."""
    matrix = 2.3 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    adjoint = np.array(matrix)
    if slipped == "ends":
        adjoint[0, 1] = adjoint[-1, -2] = 0

    def vjp(x, g):
        return g @ adjoint.astype(x.dtype) + 0.1 * np.cos(x) * g

    return spec(
        "mirrored-ends",
        forward=lambda x: x @ matrix.T.astype(x.dtype) + 0.1 * np.sin(x),
        vjp=vjp,
        example=draws((n,)),
        **changed,
    )


def sizes_lack_one(slipped="lacks", **changed):
    """A result of a size that ``sizes=`` was to give, and does not."""
    return spec(
        "sizes-lack-one",
        y=Array("y", ("m",)),
        sizes=lambda: {"k" if slipped == "lacks" else "m": 3},
        forward=lambda x: np.stack([x.sum(1), (x**2).sum(1), (x**3).sum(1)], axis=1),
        vjp=lambda x, g: g[:, :1] + 2 * x * g[:, 1:2] + 3 * x**2 * g[:, 2:],
        example=draws((N,)),
        **changed,
    )


def popped_tape(slipped="pops", **changed):
    """Four steps on a tape, which the pullback uses up, or reads backwards."""

    def forward(x):
        tape, y = [], x
        for _ in range(4):
            tape.append(y)
            y = np.sin(y) + y / 2

        def pullback(g):
            left = tape if slipped == "pops" else list(tape)
            for _ in range(4):
                g = g * (np.cos(left.pop()) + 0.5)
            return g

        return y, pullback

    return spec("popped-tape", mode="split_vjp", forward=forward, example=draws((N,)), **changed)


def partial_key(slipped="key", **changed):
    """A cache of results whose key lacks the arg."""
    cache = {}

    def forward(x, k):
        key = (x.dtype, x.tobytes(), *(() if slipped == "key" else (k.shape, k.tobytes())))
        if key not in cache:
            cache[key] = np.exp(-k * x**2)
        return np.array(cache[key])

    def vjp(x, g, k):
        y = np.exp(-k * x**2)
        return -2 * k * x * y * g, -(x**2) * y * g

    return spec(
        "partial-key",
        args=(Array("k", ("n",), low=0.1, high=3.0, differentiable=True, batched=True),),
        forward=forward,
        vjp=vjp,
        example=lambda rng, batch: (
            rng.standard_normal((batch, N)),
            rng.uniform(0.3, 1, (batch, N)),
        ),
        **changed,
    )


def first_matrix(slipped="first", **changed):
    """``(1 + k) y = x`` with a matrix k, whose inverse the adjoint keeps from its first call."""
    kept = {}

    def inverse(k):
        return np.linalg.inv(np.eye(len(k)) + k).astype(k.dtype)

    def vjp(x, g, k):
        known = kept.setdefault("first", inverse(k)) if slipped == "first" else inverse(k)
        lam = g @ known.astype(x.dtype)
        return lam, -np.einsum("bi,bj->ij", lam, x @ inverse(k).T)

    return spec(
        "first-matrix",
        args=(Array("k", (4, 4), differentiable=True, batched=False),),
        forward=lambda x, k: x @ inverse(k).T,
        vjp=vjp,
        example=lambda rng, batch: (
            rng.standard_normal((batch, 4)),
            0.1 * rng.standard_normal((4, 4)),
        ),
        **changed,
    )


def coarse_cotangent(slipped="cast", **changed):
    """Right, but for a cotangent that is cast to float32 on its way in."""

    def vjp(x, g):
        g = g.astype("float32").astype(x.dtype) if slipped == "cast" else g
        return np.cos(x) * g

    return spec("coarse-cotangent", forward=np.sin, vjp=vjp, example=draws((N,)), **changed)


DEFECTS = {
    # gradients
    "sign": Defect(slip(spring, "sign"), "gradient.x", "sign"),
    "chain factor": Defect(slip(spring, "chain-factor"), "gradient.x", "factor"),
    "dt factor": Defect(slip(spring, "dt-factor"), "gradient.c", "factor"),
    "zero": Defect(slip(spring, "zero"), "gradient.c", "missing-term"),
    "missing term": Defect(slip(rod, "missing-term"), "gradient.k", "missing-term"),
    "explicit adjoint": Defect(slip(rod, "explicit-adjoint"), "gradient.x", "missing-term"),
    "boundary input": Defect(slip(rod, "boundary-input"), "gradient.x", "rows"),
    "boundary rows": Defect(slip(rod, "boundary-rows"), "gradient.k", "rows"),
    "transpose": Defect(slip(network, "transpose"), "gradient.x", "transpose"),
    "entry": Defect(slip(network, "entry"), "gradient.x", "entry"),
    "entry of 32 x 32": Defect(
        lambda slipped="entry-sign", **c: network(slipped, n=32, **c), "gradient.x", "entry"
    ),
    "one of 4096": Defect(needle, "gradient.x", "entry"),
    "far term": Defect(far_term, "gradient.x", "missing-term"),
    "noisy factor": Defect(noisy_factor, "gradient.x", "factor"),
    "float32 factor": Defect(single_factor, "gradient.x.float32", "factor"),
    "outer product turned": Defect(product, "gradient.A", "transpose"),
    "transpose of 150": Defect(dense, "gradient.x", "transpose"),
    "mirrored ends": Defect(mirrored_ends, "gradient.x", "rows"),
    # state
    "popped tape": Defect(popped_tape, "pullback-repeatable", "stale-state"),
    "key lacks the arg": Defect(partial_key, "pullback-own-call", "stale-state"),
    "late binding": Defect(slip(cubic, "late-binding"), "pullback-own-call", "stale-state"),
    "cached by shape": Defect(slip(cubic, "cached-by-shape"), "pullback-own-call", "stale-state"),
    "accumulates": Defect(slip(cubic, "accumulates"), "pullback-repeatable", "stale-state"),
    "once": Defect(slip(cubic, "once"), "pullback-repeatable", "stale-state"),
    "random": Defect(slip(cubic, "random"), "deterministic", "contract"),
    "counter": Defect(slip(cubic, "counter"), "deterministic", "contract"),
    "default options only": Defect(slip(spring, "default-options-only"), "options", "factor"),
    "cache ignores options": Defect(
        slip(spring, "cache-ignores-options"), "options", "stale-state"
    ),
    # memory
    "writes cotangent": Defect(slip(cubic, "writes-cotangent"), "inputs-unchanged", "contract"),
    "writes x by force": Defect(slip(cubic, "writes-x-by-force"), "inputs-unchanged", "contract"),
    "reused buffer": Defect(slip(cubic, "reused-buffer"), "results-owned", "contract"),
    "keeps buffer": Defect(slip(cubic, "keeps-buffer"), "results-owned", "contract"),
    "writes y": Defect(slip(cubic, "writes-y"), "results-owned", "contract"),
    "reused jacobian": Defect(slip(network, "reused-jacobian"), "results-owned", "contract"),
    # the cotangent
    "clipped": Defect(slip(spring, "clipped"), "pullback-linear", "contract"),
    "clipped elementwise": Defect(slip(cubic, "cotangent-clipped"), "pullback-linear", "contract"),
    # batches
    "coupled": Defect(coupled, "rows-independent", "contract"),
    "per batch": Defect(slip(spring, "per-batch"), "rows-independent", "factor"),
    "batch above 16": Defect(slip(spring, "batch-above-16"), "batch-sizes", "contract"),
    "averaged": Defect(slip(spring, "averaged"), "shared-args", "factor"),
    # surroundings
    "seterr": Defect(slip(cubic, "seterr"), "global-state", "contract"),
    "seeds": Defect(slip(cubic, "seeds"), "global-state", "contract"),
    "leaves threads": Defect(leaves_threads, "global-state", "contract"),
    "shared work array": Defect(threaded, "threads", "contract"),
    # ranges and precision
    "equal entries": Defect(log_mean, "special-values", "contract"),
    "overflows": Defect(overflows, "bounds", "contract"),
    "float32 inside": Defect(slip(spring, "float32-inside"), "precision", "contract"),
    "coarse cotangent": Defect(coarse_cotangent, "precision", "contract"),
    "float32 far off": Defect(coarse_in_float32, "precision", "contract"),
    "overflows in float32": Defect(single_precision, "results.float32", "contract"),
    # shapes
    "float32 returned": Defect(slip(spring, "float32-returned"), "results", "contract"),
    "nan gradient": Defect(slip(spring, "nan-gradient"), "results", "contract"),
    # optional derivatives
    "jvp factor": Defect(tangent, "jvp", "factor"),
    "hvp sign": Defect(curvature, "hvp", "sign"),
    # the example and the static part
    "example outside": Defect(bad_example, "example", "contract"),
    "example unseeded": Defect(
        lambda slipped="unseeded", **c: bad_example(slipped, **c), "example", "contract"
    ),
    "args in another order": Defect(wrong_order, "parameters", "contract"),
    "lacks an option": Defect(lacks_option, "parameters", "contract"),
    "leads nowhere": Defect(nowhere, "functions", "contract"),
    "sizes lack one": Defect(sizes_lack_one, "sizes", "contract"),
    "unknown expectation": Defect(unknown_expectation, "expected-failures", "contract"),
}

SEVERAL = {
    # Defects that are several by nature: where they must show, and one good explanation.
    "swapped": Defect(slip(cubic, "swapped"), "gradient.x gradient.k", "arg"),
    "first matrix kept": Defect(first_matrix, "gradient.x gradient.k", "stale-state"),
    "frozen coefficients": Defect(
        slip(rod, "frozen-coefficients"), "gradient.x gradient.k", "missing-term"
    ),
    "returns input": Defect(slip(shift, "returns-input"), "results-owned", "contract"),
    "returns cotangent": Defect(slip(shift, "returns-cotangent"), "results-owned", "contract"),
    "one array twice": Defect(slip(shift, "one-array-twice"), "results-owned", "contract"),
}

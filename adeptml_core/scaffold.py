"""A plugin to begin with: the package that ``adeptml plugins new`` writes.

It is a whole one: it installs, its solver passes ``adeptml plugins check`` as generated, and its
own tests are that proof. The physics in it is a relaxation, one line to be replaced,

    y = x exp(-rate t),

with an arg that has a gradient and an option, in each mode, in numpy or JAX.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

from adeptml_core.errors import ConfigError
from adeptml_core.names import normalize_name
from adeptml_core.spec import Mode

__all__ = ["BACKENDS", "files", "write"]

BACKENDS = ("numpy", "jax")


def write(name: str, mode: Mode, backend: str, directory: Path) -> tuple[Path, list[str]]:
    """Write the package into ``directory/adeptml-<name>``; return that folder and its files.

    Raises
    ------
    ConfigError
        A name that no solver can have; a folder that holds something already.
    """
    rendered = files(name, mode, backend)
    folder = directory / f"adeptml-{name}"
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; nothing was written")
    for path, text in rendered.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder, list(rendered)


def files(name: str, mode: Mode, backend: str) -> dict[str, str]:
    """Return the package's files, text by path."""
    _check_name(name)
    package = f"adeptml_{name.replace('-', '_')}"
    words: Mapping[str, str] = {
        "name": name,
        "mode": mode,
        "package": package,
        "test": f"test_{name.replace('-', '_')}",
        "needs": ', "jax>=0.10"' if backend == "jax" else "",
        "requires": '\n            requires=("jax>=0.10",),' if backend == "jax" else "",
        "derivative": DERIVATIVES[mode].replace("$package", package),
    }
    sources = {
        "pyproject.toml": PYPROJECT,
        "README.md": README,
        f"src/{package}/__init__.py": INIT,
        f"src/{package}/plugin.py": PLUGIN,
        f"src/{package}/solver.py": SOLVERS[backend][mode],
        "tests/test_conformance.py": TESTS,
    }
    return {path: Template(text).substitute(words) for path, text in sources.items()}


def _check_name(name: str) -> None:
    if name.startswith("adeptml-"):
        short = name.removeprefix("adeptml-")
        raise ConfigError(f"{name!r}: the distribution gets the prefix itself; say {short!r}")
    if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name):
        folded = normalize_name(re.sub(r"[^\w.-]+", "-", name)).strip("-")
        hint = f" Did you mean {folded!r}?" if re.fullmatch("[a-z0-9-]+", folded) else ""
        raise ConfigError(
            f"{name!r} cannot name a solver: lower-case letters, digits and '-'.{hint}"
        )
    if name == "core":
        raise ConfigError("'core' would make the plugin adeptml-core, which is adeptml itself")


DERIVATIVES = {
    Mode.JACOBIAN: '\n            jacobian="$package.solver:jacobian",',
    Mode.VJP: '\n            vjp="$package.solver:vjp",',
    Mode.SPLIT_VJP: "",
}

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "adeptml-$name"
version = "0.1.0"
description = "A solver for adeptml"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["adeptml-core>=0.1", "numpy>=1.26"$needs]

[project.optional-dependencies]
test = ["pytest"]

# The entry point's name is the solver's name; its value is the light module, which imports no
# numpy, so that `adeptml plugins list` stays quick.
[project.entry-points."adeptml.solvers"]
$name = "$package.plugin"

[tool.hatch.build.targets.wheel]
packages = ["src/$package"]

[tool.pytest.ini_options]
testpaths = ["tests"]
addopts = ["--import-mode=importlib"]
"""

README = """\
# adeptml-$name

A solver for adeptml. As generated it is a relaxation, `y = x exp(-rate t)`, in mode `$mode`.

```
pip install -e ".[test]"
adeptml plugins show $name      what it declares
adeptml plugins check $name     whether its gradients can be trusted
pytest                          the same, as tests
```

To make it yours: the physics and its derivative in `src/$package/solver.py`, what it takes and
gives in `src/$package/plugin.py`. Then let `check` say whether they agree.
"""

INIT = '"""The solver $name for adeptml: `plugin` declares it, `solver` computes it."""\n'

PLUGIN = '''\
"""What adeptml reads to list the solver: data only, no numpy and no solver."""

from adeptml_core.plugin import Array, Option, SolverSpec, hookimpl


@hookimpl
def adeptml_solvers() -> list[SolverSpec]:
    """Declare the solver."""
    return [
        SolverSpec(
            name="$name",
            mode="$mode",
            summary="relaxation of each entry towards zero",
            x=Array("x", ("n",), doc="values at the beginning"),
            args=(
                Array(
                    "rate", ("n",), unit="1/s", low=0.0, differentiable=True, doc="of each entry"
                ),
            ),
            y=Array("y", ("n",), doc="values after the time t"),
            options=(Option("t", 1.0, unit="s", low=0.0, doc="time"),),
            forward="$package.solver:forward",$derivative
            example="$package.solver:example",$requires
        ),
    ]
'''

TESTS = '''\
"""The proof, check by check."""

from adeptml_core.testing import solver_checks

$test = solver_checks("$name")
'''

# ---- the solver, in each mode and backend --------------------------------------------------------

EXAMPLE = '''

def example(rng: np.random.Generator, batch: int, *, t: float) -> tuple[Floats, Floats]:
    """Return valid, varied inputs: (x, rate), here with rates of each sample's own."""
    return rng.normal(size=(batch, 4)), rng.uniform(0.1, 2.0, size=(batch, 4))
'''

NUMPY_HEAD = '''\
"""y = x exp(-rate t), and its derivative; numpy in, numpy out.

x has shape (batch, n). rate has shape (batch, n), or (n,) where the batch shares it. Results have
the dtype of x, and what comes in is read-only.
"""

'''

NUMPY_IMPORTS = """\
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


"""

NUMPY_FORWARD = '''\
def forward(x: Floats, rate: Floats, *, t: float) -> Floats:
    """Return y."""
    return x * np.exp(-rate * t)


'''

NUMPY_JACOBIAN = '''\
def jacobian(x: Floats, rate: Floats, *, t: float) -> tuple[Floats, Floats]:
    """Return dy/dx and dy/drate of each sample, shape (batch, n, n): first y, then the input."""
    decay = np.broadcast_to(np.exp(-rate * t), x.shape)
    eye = np.eye(x.shape[1], dtype=x.dtype)
    return decay[:, :, None] * eye, (-t * x * decay)[:, :, None] * eye
'''

NUMPY_VJP = '''\
def vjp(x: Floats, grad_output: Floats, rate: Floats, *, t: float) -> tuple[Floats, Floats]:
    """Return the cotangents of x and rate, of their own shapes: over a shared rate, the sum."""
    decay = np.exp(-rate * t)
    drate = -t * grad_output * x * decay
    return grad_output * decay, drate if rate.ndim == x.ndim else drate.sum(0)
'''

NUMPY_SPLIT = '''\
def forward(x: Floats, rate: Floats, *, t: float) -> tuple[Floats, Pullback]:
    """Return y, and the pullback: what carries the cotangent of y back to x and rate.

    The pullback closes over this call's own values, and may be called any number of times.
    """
    decay = np.exp(-rate * t)

    def pullback(grad_output: Floats) -> tuple[Floats, Floats]:
        drate = -t * grad_output * x * decay
        return grad_output * decay, drate if rate.ndim == x.ndim else drate.sum(0)

    return x * decay, pullback
'''

JAX_HEAD = '''\
"""y = x exp(-rate t) in JAX, which gives the derivative; numpy in, numpy out.

`physics` is one sample's, in pure JAX. Around it: double precision as a context (the global flag is
the user's), copies on the way in (JAX may use an array's memory instead of its values) and on the
way out, and everything jitted, so that it is traced once for a set of shapes.
"""

'''

JAX_BODY = '''\
def physics(x: jax.Array, rate: jax.Array, t: jax.Array) -> jax.Array:
    """Return y of one sample: x, rate and y have shape (n,)."""
    return x * jnp.exp(-rate * t)


def _batched(x: jax.Array, rate: jax.Array, t: jax.Array) -> jax.Array:
    """Return y of the batch; rate is each sample's own, or shared."""
    return jax.vmap(physics, in_axes=(0, 0 if rate.ndim == x.ndim else None, None))(x, rate, t)


def _copied(array: Floats) -> Floats:
    return np.array(array, np.float64)


'''

JAX_IMPORTS = NUMPY_IMPORTS.replace(
    "import numpy as np\n", "import jax\nimport jax.numpy as jnp\nimport numpy as np\n"
)

JAX_FORWARD = '''\
_forward = jax.jit(_batched)


def forward(x: Floats, rate: Floats, *, t: float) -> Floats:
    """Return y, shape (batch, n)."""
    with jax.enable_x64(True):
        return np.array(_forward(_copied(x), _copied(rate), t), x.dtype)


'''

JAX_JACOBIAN = '''\
@jax.jit
def _jacobian(x: jax.Array, rate: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    axes = (0, 0 if rate.ndim == x.ndim else None, None)
    return jax.vmap(jax.jacrev(physics, argnums=(0, 1)), in_axes=axes)(x, rate, t)


def jacobian(x: Floats, rate: Floats, *, t: float) -> tuple[Floats, Floats]:
    """Return dy/dx and dy/drate of each sample, shape (batch, n, n): first y, then the input."""
    with jax.enable_x64(True):
        dx, drate = _jacobian(_copied(x), _copied(rate), t)
    return np.array(dx, x.dtype), np.array(drate, x.dtype)
'''

JAX_VJP = '''\
@jax.jit
def _vjp(
    x: jax.Array, grad_output: jax.Array, rate: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _, pullback = jax.vjp(lambda x, rate: _batched(x, rate, t), x, rate)
    dx, drate = pullback(grad_output)
    return dx, drate


def vjp(x: Floats, grad_output: Floats, rate: Floats, *, t: float) -> tuple[Floats, Floats]:
    """Return the cotangents of x and rate, of their own shapes: over a shared rate, the sum."""
    with jax.enable_x64(True):
        dx, drate = _vjp(_copied(x), _copied(grad_output), _copied(rate), t)
    return np.array(dx, x.dtype), np.array(drate, x.dtype)
'''

JAX_SPLIT = '''\
@jax.jit
def _linearized(x: jax.Array, rate: jax.Array, t: jax.Array) -> tuple[jax.Array, Any]:
    """Return y and the pullback, which is a pytree: one jitted function may give it to another."""
    return jax.vjp(lambda x, rate: _batched(x, rate, t), x, rate)


@jax.jit
def _transposed(transpose: Any, grad_output: jax.Array) -> tuple[jax.Array, jax.Array]:
    dx, drate = transpose(grad_output)
    return dx, drate


def forward(x: Floats, rate: Floats, *, t: float) -> tuple[Floats, Pullback]:
    """Return y, and the pullback: what carries the cotangent of y back to x and rate."""
    dtype = x.dtype
    with jax.enable_x64(True):
        y, transpose = _linearized(_copied(x), _copied(rate), t)

    def pullback(grad_output: Floats) -> tuple[Floats, Floats]:
        with jax.enable_x64(True):
            dx, drate = _transposed(transpose, _copied(grad_output))
        return np.array(dx, dtype), np.array(drate, dtype)

    return np.array(y, dtype), pullback
'''

PULLBACK = "Pullback = Callable[[Floats], tuple[Floats, Floats]]\n"


def _with_pullback(imports: str) -> str:
    head, _, rest = imports.partition("\n\n\n")
    return f"from collections.abc import Callable\n{head}\n{PULLBACK}\n\n{rest}"


SOLVERS: Mapping[str, Mapping[Mode, str]] = {
    "numpy": {
        Mode.JACOBIAN: NUMPY_HEAD + NUMPY_IMPORTS + NUMPY_FORWARD + NUMPY_JACOBIAN + EXAMPLE,
        Mode.VJP: NUMPY_HEAD + NUMPY_IMPORTS + NUMPY_FORWARD + NUMPY_VJP + EXAMPLE,
        Mode.SPLIT_VJP: NUMPY_HEAD + _with_pullback(NUMPY_IMPORTS) + NUMPY_SPLIT + EXAMPLE,
    },
    "jax": {
        Mode.JACOBIAN: JAX_HEAD + JAX_IMPORTS + JAX_BODY + JAX_FORWARD + JAX_JACOBIAN + EXAMPLE,
        Mode.VJP: JAX_HEAD + JAX_IMPORTS + JAX_BODY + JAX_FORWARD + JAX_VJP + EXAMPLE,
        Mode.SPLIT_VJP: JAX_HEAD + _with_pullback(JAX_IMPORTS) + JAX_BODY + JAX_SPLIT + EXAMPLE,
    },
}

"""Physics solvers as plugins, differentiable in PyTorch: found by name, proved, trained through.

The names below are imported when they are first asked for (PEP 562), so that ``import
adeptml_core`` costs neither torch nor numpy, and the command that lists solvers answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from adeptml_core._version import __version__

if TYPE_CHECKING:
    from adeptml_core.autograd import solve
    from adeptml_core.configs import HybridConfig, MLPConfig, PhysicsConfig
    from adeptml_core.ensemble import HybridModel
    from adeptml_core.registry import get_solver, solvers
    from adeptml_core.train_utils import train, train_step

__all__ = [
    "HybridConfig",
    "HybridModel",
    "MLPConfig",
    "PhysicsConfig",
    "__version__",
    "get_solver",
    "solve",
    "solvers",
    "train",
    "train_step",
]

_home = {
    "HybridConfig": "configs",
    "HybridModel": "ensemble",
    "MLPConfig": "configs",
    "PhysicsConfig": "configs",
    "get_solver": "registry",
    "solve": "autograd",
    "solvers": "registry",
    "train": "train_utils",
    "train_step": "train_utils",
}

_submodules = frozenset(
    ("autograd", "configs", "ensemble", "errors", "models", "plugin", "registry", "train_utils")
)


def __getattr__(name: str) -> Any:
    if name in _submodules:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _home:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_home[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_submodules})

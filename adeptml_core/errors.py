"""Every error that adeptml raises on purpose, in one tree.

::

    AdeptmlError
    ├── PluginError              a plugin cannot be loaded or used; has a code (P101 ... P110)
    ├── UnknownSolverError       no installed solver has that name (a LookupError)
    ├── SpecError                a SolverSpec, Array or Option contradicts itself (a ValueError)
    │   └── ApiVersionError      ... or was written for another version of the contract
    ├── ConfigError              a config, a routing or a training setting is wrong (a ValueError)
    ├── InputError               a tensor or array handed to a solver does not fit (a ValueError)
    ├── SampleError              raised *by* a solver: this row cannot be solved, and why
    ├── Unavailable              raised *by* a solver: no licence, no server, no device
    ├── ContractError            what a solver returned breaks its contract
    ├── HigherOrderError         a second derivative that the solver has no rule for
    ├── NonFiniteError           NaN or infinity where training must not go on (an ArithmeticError)
    └── ResumeError              a run cannot be continued from that checkpoint

Each message says what, where, why and the mend; the values in it are fields too. The module imports
nothing, so that a solver on any worker can raise `SampleError` and `Unavailable` at no cost.
"""

__all__ = [
    "AdeptmlError",
    "ApiVersionError",
    "ConfigError",
    "ContractError",
    "HigherOrderError",
    "InputError",
    "NonFiniteError",
    "PluginError",
    "ResumeError",
    "SampleError",
    "SpecError",
    "Unavailable",
    "UnknownSolverError",
]


class AdeptmlError(Exception):
    """Base of every error that adeptml raises on purpose."""


class PluginError(AdeptmlError):
    """A plugin cannot be loaded or used.

    Parameters
    ----------
    message : str
        One line of cause.
    code : str
        ``P101`` to ``P110``; the table is in the documentation of `adeptml_core.registry`.
    distribution, version, entry_point : str
        Which plugin.
    mend : str
        One line that says what to do.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        distribution: str = "",
        version: str = "",
        entry_point: str = "",
        mend: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.distribution = distribution
        self.version = version
        self.entry_point = entry_point
        self.mend = mend

    def __str__(self) -> str:
        origin = f"{self.distribution} {self.version}".strip()
        head = "  ".join(part for part in (self.code, origin, self.message) if part)
        return f"{head}\n      mend: {self.mend}" if self.mend else head


class UnknownSolverError(AdeptmlError, LookupError):
    """No installed solver has that name.

    Parameters
    ----------
    message : str
        What was asked for, what comes close, what is installed.
    name : str
        The name that was asked for.
    suggestions : tuple of str
        Installed names that come close, best first.
    """

    def __init__(self, message: str, *, name: str = "", suggestions: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.name = name
        self.suggestions = suggestions


class SpecError(AdeptmlError, ValueError):
    """A `SolverSpec`, `Array` or `Option` contradicts itself."""


class ApiVersionError(SpecError):
    """A spec was written for a version of the contract that this core does not speak.

    Parameters
    ----------
    message : str
        Which version, and which core speaks.
    is_newer : bool
        Whether core, rather than the plugin, is the one to upgrade.
    """

    def __init__(self, message: str, *, is_newer: bool = False) -> None:
        super().__init__(message)
        self.is_newer = is_newer


class ConfigError(AdeptmlError, ValueError):
    """A config, a routing, an option or a training setting is wrong."""


class InputError(AdeptmlError, ValueError):
    """A tensor or array handed to a solver does not fit what the solver declares."""


class SampleError(AdeptmlError):
    """Raised by a solver to refuse one sample of the batch.

    Parameters
    ----------
    row : int
        Index along the batch axis of the arrays the solver was given.
    reason : str
        Why, with the value and its unit: ``"k[3] = -0.2 W/m/K: a conductivity is positive"``.

    Attributes
    ----------
    solver : str
        The solver's name; core fills it in.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(row, reason)
        self.row = row
        self.reason = reason
        self.solver = ""

    def __str__(self) -> str:
        prefix = f"{self.solver}: " if self.solver else ""
        return f"{prefix}sample {self.row} of the batch: {self.reason}"


class Unavailable(AdeptmlError):  # noqa: N818 - a state of the world, not a fault; the contract's name
    """Raised by a solver that cannot run here and now: no licence, no server, no device.

    Parameters
    ----------
    reason : str
        What is missing, and how to get it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ContractError(AdeptmlError):
    """What a solver returned breaks the contract of its mode.

    Parameters
    ----------
    message : str
        What, where, why and the mend.
    solver, mode : str
        Which solver, and how it differentiates.
    where : str
        The function and its place: ``"vjp (my_flow/solver.py:61)"``.
    expected, got : object
        The two values that should have agreed.
    """

    def __init__(
        self,
        message: str,
        *,
        solver: str = "",
        mode: str = "",
        where: str = "",
        expected: object = None,
        got: object = None,
    ) -> None:
        super().__init__(message)
        self.solver = solver
        self.mode = mode
        self.where = where
        self.expected = expected
        self.got = got


class HigherOrderError(AdeptmlError):
    """A second derivative was asked of a solver that declares no rule for it.

    Parameters
    ----------
    message : str
        What was asked and what to do instead.
    solver : str
        The solver's name.
    """

    def __init__(self, message: str, *, solver: str = "") -> None:
        super().__init__(message)
        self.solver = solver


class NonFiniteError(AdeptmlError, ArithmeticError):
    """NaN or infinity where going on would spoil the parameters."""


class ResumeError(AdeptmlError):
    """A training run cannot be continued from the checkpoint it was given."""

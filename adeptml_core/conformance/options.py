"""``--option NAME=VALUE``: text into the values that a solver's options take."""

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adeptml_core.errors import ConfigError
from adeptml_core.spec import Option, SolverSpec, did_you_mean

__all__ = ["parsed", "split"]

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def split(settings: Iterable[str]) -> dict[str, str]:
    """Return ``{"NAME": "VALUE"}``.

    Raises
    ------
    ConfigError
        For a text without ``=``, or a name given twice.
    """
    given: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--option {setting!r}: write NAME=VALUE, as in --option t=2.0")
        if name.strip() in given:
            raise ConfigError(f"--option {name.strip()} is given twice")
        given[name.strip()] = value.strip()
    return given


def parsed(specs: Sequence[SolverSpec], given: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return for each solver those options, by its name, that it declares.

    Raises
    ------
    ConfigError
        For an option that no solver declares, or a value that does not fit.
    """
    declared = {option.name for spec in specs for option in spec.options}
    for name in given:
        if name not in declared:
            solvers = ", ".join(spec.name for spec in specs)
            listed = ", ".join(sorted(declared)) or "none"
            raise ConfigError(
                f"--option {name}: no such option of {solvers}.{did_you_mean(name, declared)} "
                f"Options: {listed}."
            )
    return {
        spec.name: {o.name: _value(spec, o, given[o.name]) for o in spec.options if o.name in given}
        for spec in specs
    }


def _value(spec: SolverSpec, option: Option, text: str) -> Any:
    try:
        return option.validate(_converted(option, text))
    except (ConfigError, ValueError, SyntaxError) as error:
        raise ConfigError(f"{spec.name}: --option {option.name}={text}: {error}") from None


def _converted(option: Option, text: str) -> Any:
    if option.type is str:
        return text
    if option.type is bool:
        if text.lower() not in TRUE + FALSE:
            raise ValueError("write true or false")
        return text.lower() in TRUE
    if option.type is tuple:
        return tuple(_item(item) for item in text.strip("()[] ").split(",") if item.strip())
    return option.type(text)


def _item(text: str) -> Any:
    """Return a number, or the text itself."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        try:
            return float(text)  # inf
        except ValueError:
            return text.strip().strip("'\"")

"""How names are compared: solvers', distributions', and those that were only nearly right.

On its own because the shell completes names a keystroke at a time: that path loads this, and
neither the specs nor pluggy.
"""

import re
from collections.abc import Iterable

__all__ = ["did_you_mean", "normalize_name"]


def normalize_name(name: str) -> str:
    """Fold case, ``_`` and ``.`` as distribution names do: ``Heat_1D`` is ``heat-1d``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"``, or an empty string where nothing comes close."""
    from difflib import get_close_matches  # on the way to an error only: listing need not wait

    close = get_close_matches(str(name), [str(item) for item in known], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""

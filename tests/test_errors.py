import inspect
import pickle
import re

import pytest

from adeptml_core import errors

ERRORS = {name: getattr(errors, name) for name in errors.__all__}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Every error stands in the drawing, below its base; nothing else does."""
    assert errors.__doc__ is not None
    drawn = re.findall(r"^ +((?:│ +)?(?:[├└]── )?)(\w+)", errors.__doc__, re.MULTILINE)
    assert {name for _, name in drawn} == set(ERRORS)
    parents: dict[int, type] = {}
    for lead, name in drawn:
        depth = len(lead) // 4
        assert depth == 0 or issubclass(ERRORS[name], parents[depth - 1])
        parents[depth] = ERRORS[name]


def test_all_is_the_truth() -> None:
    """``__all__`` names every class of the module, sorted."""
    classes = [n for n, value in vars(errors).items() if inspect.isclass(value)]
    assert errors.__all__ == sorted(classes)


@pytest.mark.parametrize("name", ERRORS)
def test_errors_survive_the_way_from_a_worker(name: str) -> None:
    """An error raised in another process arrives with its message and fields."""
    kind = ERRORS[name]
    error = kind(3, "k is negative") if name == "SampleError" else kind("what, where, why, mend")
    for key in vars(error):
        if isinstance(getattr(error, key), str):
            setattr(error, key, f"the {key}")
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is kind
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_a_sample_error_names_solver_and_row() -> None:
    """The solver raises it with the row; core adds the solver's name."""
    error = errors.SampleError(3, "k[3] = -0.2 W/m/K: a conductivity is positive")
    assert str(error).startswith("sample 3 of the batch: k[3]")
    error.solver = "heat1d"
    assert str(error).startswith("heat1d: sample 3 of the batch: k[3]")


def test_a_plugin_error_reads_as_in_the_list() -> None:
    """Code, distribution with version, cause; below it the mend."""
    error = errors.PluginError(
        "needs 'pyfr'", code="P102", distribution="adeptml-flow", version="0.3", mend="pip install"
    )
    assert str(error) == "P102  adeptml-flow 0.3  needs 'pyfr'\n      mend: pip install"
    assert str(errors.PluginError("bare")) == "bare"

"""docs/proof.md tells the truth: its tables name every check and every diagnosis, and no other."""

import re
from pathlib import Path

from catalogue.defects import SEVERAL

from adeptml_core.conformance import Diagnosis, check_ids

PAGE = (Path(__file__).parents[1] / "docs" / "proof.md").read_text(encoding="utf-8")


def table(heading: str) -> set[str]:
    """Return the names in the first column of the table under a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)`", section, flags=re.MULTILINE))


def test_every_check_is_described() -> None:
    """The ids of a solver that declares everything, the arrays' names left open."""
    spec = SEVERAL["swapped"].make(None)
    names = "|".join(array.name for array in spec.inputs)
    known = {re.sub(rf"^gradient\.({names})", "gradient.NAME", check) for check in check_ids(spec)}
    assert table("The checks") == known


def test_every_diagnosis_is_explained() -> None:
    """All that a finding may carry."""
    assert table("Reading a failure") == {str(diagnosis) for diagnosis in Diagnosis}

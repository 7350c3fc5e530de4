"""The messages in docs/registry.md are those that people get."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_plugins import HOOK, Broken, light_module, one_spec, write_distribution, write_sound

from adeptml_core._version import __version__
from adeptml_core.cli import adeptml

GUIDE = Path(__file__).parents[1] / "docs" / "registry.md"


def flow(light: str | None, **fields: object) -> Broken:
    """Return the plugin adeptml-flow, broken by its light module."""
    usual = {"light": light, "called": "adeptml-flow", "version": "0.3"}
    return Broken("flow", "", "", "", **(usual | fields))  # type: ignore[arg-type]


PLUGINS = {
    "P101": flow(None),
    "P102": flow("import pyfr\n", requires=("adeptml-core>=0.1", "pyfr>=2.0")),
    "P103": flow("\n\nimport os\n\nLICENCE = os.environ['FLOW_LICENCE']\n"),
    "P104": flow(f"{HOOK}\n@hookimpl\ndef adeptml_solvers(config):\n    return []\n"),
    "P105": flow(f"{HOOK}\n@hookimpl\ndef adeptml_solver():\n    return []\n"),
    "P106": flow(one_spec("mode='vpj'")),
    "P107": flow(light_module("flow-2d")),
    "P108": flow(light_module("flow"), requires=("adeptml-core>=9.0",)),
}


def messages(site: Path) -> list[str]:
    """Return what ``list`` prints below its table, problem by problem."""
    output = CliRunner().invoke(adeptml, ["plugins", "list"]).stdout
    output = output.replace(str(site), ".../site-packages")
    return re.findall(r"^P1\d\d  .*\n      mend: .*$", output, re.MULTILINE)


def documented(code: str) -> str:
    """Return the message of that code in the guide."""
    [message] = re.findall(rf"^{code}  .*\n      mend: .*$", GUIDE.read_text(), re.MULTILINE)
    return str(message)


@pytest.mark.parametrize("code", PLUGINS)
def test_the_guide_quotes_what_is_said(site: Path, code: str) -> None:
    """Each message in the guide is word for word what ``adeptml plugins list`` prints."""
    PLUGINS[code].write(site)
    assert documented(code).replace("0.1.0", __version__) in messages(site)


def test_the_guide_quotes_duplicates(site: Path) -> None:
    """P109 as well, with both distributions."""
    write_sound(site, "adeptml-flow", "flow", version="0.3")
    write_sound(site, "our-flow", "flow", version="2.1")
    assert documented("P109") in messages(site)


def test_the_guide_quotes_leftovers(site: Path) -> None:
    """P110 as well, with the folder."""
    write_distribution(
        site, "adeptml-flow", version="0.3", points="", folder="~deptml_flow-0.3.dist-info"
    )
    assert documented("P110") in messages(site)

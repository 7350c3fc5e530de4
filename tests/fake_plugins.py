"""Plugins that were never installed: folders that look to Python as an installer would leave them.

A distribution is a ``.dist-info`` folder with METADATA and entry_points.txt beside its modules;
put the folder above on ``sys.path`` and the registry finds it.
"""

import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Run = Callable[..., "subprocess.CompletedProcess[str]"]
"""Runs the command in a process without site-packages: the fixture ``run``."""

HOOK = "from adeptml_core.plugin import Array, Option, SolverSpec, hookimpl\n"


def light_module(*names: str, fields: str = "", body: str = "") -> str:
    """Return the source of a sound light module with one vjp solver for each name."""
    specs = "".join(f"        {spec(name, fields)},\n" for name in names)
    return f"{HOOK}{body}\n@hookimpl\ndef adeptml_solvers():\n    return [\n{specs}    ]\n"


def spec(name: str, fields: str = "") -> str:
    """Return the source of one sound spec; `fields` are more keyword arguments."""
    return (
        f'SolverSpec(name="{name}", mode="vjp", summary="elementwise cube", x=Array("x", ("n",), '
        'unit="m"), y=Array("y", ("n",)), forward="fake_solver:forward", vjp="fake_solver:vjp"'
        f"{', ' if fields else ''}{fields})"
    )


def write_modules(site: Path, modules: Mapping[str, str]) -> None:
    """Write source files by dotted name; the packages above them come into being too."""
    for name, source in modules.items():
        file = site.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        for package in file.relative_to(site).parents:
            if package != Path():
                (site / package / "__init__.py").touch()
        file.write_text(source, encoding="utf-8")


def write_distribution(
    site: Path,
    name: str,
    *,
    version: str = "1.0",
    points: Mapping[str, str] | str,
    modules: Mapping[str, str] | None = None,
    requires: Iterable[str] = ("adeptml-core>=0.1",),
    metadata: bool = True,
    folder: str = "",
) -> Path:
    """Write a distribution into `site`; return its metadata folder.

    `points` maps solver names to light modules, or is the text of the section as it shall stand.
    """
    write_modules(site, modules or {})
    info = site / (folder or f"{name.replace('-', '_')}-{version}.dist-info")
    info.mkdir(parents=True)
    if not isinstance(points, str):
        points = "".join(f"{key} = {value}\n" for key, value in points.items())
    (info / "entry_points.txt").write_text(f"[adeptml.solvers]\n{points}", encoding="utf-8")
    if metadata:
        lines = [f"Requires-Dist: {line}" for line in requires]
        head = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines])
        readme = f"{head}\n\n# {name}\n\nName: not this one\n"
        (info / "METADATA").write_text(readme, encoding="utf-8")
    return info


def write_sound(
    site: Path, name: str, *solvers: str, fields: str = "", version: str = "1.0"
) -> None:
    """Write a distribution that works, with solvers of these names (its own name, if none)."""
    names = solvers or (name,)
    module = f"{name.replace('-', '_')}_light"
    write_distribution(
        site,
        name,
        version=version,
        points=dict.fromkeys(names, module),
        modules={module: light_module(*names, fields=fields)},
    )


# ---- the catalogue: one broken plugin a kind of fault ------------------------------------------


@dataclass(frozen=True)
class Broken:
    """A broken plugin: how to write it, and what must be said of it.

    `modules` maps names below the distribution's own package to sources; ``{module}`` in `points`
    stands for its light module.
    """

    name: str
    code: str
    cause: str
    mend: str
    light: str | None = None
    points: str = "{name} = {module}\n"
    modules: Mapping[str, str] = field(default_factory=dict)
    requires: tuple[str, ...] = ("adeptml-core>=0.1",)
    version: str = "0.3"
    called: str = ""

    @property
    def distribution(self) -> str:
        """The distribution's name."""
        return self.called or f"fake-{self.name}"

    @property
    def package(self) -> str:
        """The import name of its package."""
        return self.distribution.replace("-", "_")

    def write(self, site: Path) -> None:
        """Write the distribution into `site`."""
        modules = {f"{self.package}.{name}": source for name, source in self.modules.items()}
        if self.light is not None:
            modules[f"{self.package}.light"] = self.light.replace("{name}", self.name)
        points = self.points.replace("{module}", f"{self.package}.light")
        write_distribution(
            site,
            self.distribution,
            version=self.version,
            points=points.replace("{name}", self.name),
            modules=modules,
            requires=self.requires,
        )


def hook(returned: str) -> str:
    """Return a light module whose hook returns that expression."""
    return f"{HOOK}\n@hookimpl\ndef adeptml_solvers():\n    return {returned}\n"


def one_spec(fields: str, *, x: str = 'Array("x", ("n",))') -> str:
    """Return a light module with one spec of these keyword arguments, on top of the usual."""
    usual = {
        "name": '"{name}"',
        "mode": '"vjp"',
        "summary": '"a cube"',
        "x": x,
        "y": 'Array("y", ("n",))',
        "forward": '"a.b:f"',
        "vjp": '"a.b:g"',
    }
    return hook(f"[SolverSpec(**({{{_items(usual)}}} | dict({fields})))]")


def _items(values: Mapping[str, str]) -> str:
    return ", ".join(f'"{key}": {value}' for key, value in values.items())


IMPORTS = (
    Broken(
        "import-error",
        "P103",
        "fails at import, fake_import_error/light.py:1: RuntimeError: no licence file",
        "ADEPTML_DISABLE_PLUGINS=fake-import-error",
        light="raise RuntimeError('no licence\\nfile')\n",
    ),
    Broken(
        "syntax-error",
        "P103",
        "fails at import, fake_syntax_error/light.py:2: SyntaxError:",
        "correct that line, or do without",
        light="x = 1\ndef broken(:\n",
    ),
    Broken(
        "exit",
        "P103",
        "fake_exit/light.py:2: sys.exit(3)",
        "correct that line, or do without",
        light="import sys\nsys.exit(3)\n",
    ),
    Broken(
        "deep",
        "P103",
        "fake_deep/inner.py:1: ZeroDivisionError: division by zero",
        "correct that line, or do without",
        light="from fake_deep import inner\n",
        modules={"inner": "1 / 0\n"},
    ),
    Broken(
        "own-module",
        "P103",
        "fake_own_module/light.py:1: ModuleNotFoundError: No module named 'fake_own_module.gone'",
        "correct that line, or do without",
        light="import fake_own_module.gone\n",
    ),
    Broken(
        "exotic",
        "P103",
        "fake_exotic/light.py:4: Exotic",
        "correct that line, or do without",
        light=(
            "class Exotic(BaseException):\n    def __str__(self):\n        return 1 / 0\n"
            "raise Exotic\n"
        ),
    ),
    Broken(
        "talkative",
        "P103",
        "ValueError: " + "x" * 300 + "...",
        "correct that line, or do without",
        light="raise ValueError('x' * 10_000)\n",
    ),
    Broken(
        "dependency",
        "P102",
        "needs 'pyfr_that_is_not_there', which is not installed",
        "pip install 'pyfr-that-is-not-there>=2'",
        light="import pyfr_that_is_not_there.flow\n",
        requires=("adeptml-core>=0.1", "numpy", "pyfr-that-is-not-there>=2"),
    ),
    Broken(
        "other-name",
        "P102",
        "needs 'skimage_that_is_not_there', which is not installed",
        "pip install scikit-image-that-is-not-there",
        light="import skimage_that_is_not_there\n",
        requires=("adeptml-core>=0.1", "click", "scikit-image-that-is-not-there"),
    ),
    Broken(
        "undeclared",
        "P102",
        "needs 'pyfr_that_is_not_there', which is not installed",
        "pip install the package that provides 'pyfr_that_is_not_there'",
        light="import pyfr_that_is_not_there\n",
    ),
)

POINTS = (
    Broken(
        "nowhere", "P101", "there is no module 'fake_nowhere'", "--force-reinstall fake-nowhere"
    ),
    Broken(
        "no-attribute",
        "P101",
        "fake_no_attribute.light has no attribute 'plugin'",
        "--force-reinstall",
        light="",
        points="{name} = {module}:plugin\n",
    ),
    Broken(
        "no-path", "P101", "no module's import path", "import path", points="{name} = not a path!\n"
    ),
    Broken(
        "relative", "P101", "no module's import path", "import path", points="{name} = .light\n"
    ),
    Broken(
        "mismatch",
        "P107",
        "entry point 'mismatch' is not among the specs of fake_mismatch.light ('matched')",
        "name the entry point as the spec is named",
        light=light_module("matched"),
    ),
    Broken(
        "odd",
        "P107",
        "entry point 'Ödd \\x1b[31mn@me' is not among the specs",
        "name the entry point as the spec is named",
        light=light_module("odd"),
        points="Ödd \x1b[31mn@me = {module}\n",
    ),
    Broken(
        "two-points",
        "P109",
        "its entry points two-points = 'fake_two_points' and Two.Points = 'fake_two_points.light'",
        "names differ by more than case",
        light=light_module("two-points"),
        points="two-points = fake_two_points\nTwo.Points = {module}\n",
    ),
)

HOOKS = (
    Broken("no-hook", "P105", "fake_no_hook.light has no hook", "add @hookimpl", light="x = 1\n"),
    Broken(
        "unmarked",
        "P105",
        "has a function 'adeptml_solvers' that is not marked as a hook",
        "put @hookimpl above it",
        light="def adeptml_solvers():\n    return []\n",
    ),
    Broken(
        "misspelt",
        "P105",
        "has no hook 'adeptml_solvers', but one called 'adeptml_solver'",
        "rename it",
        light=f"{HOOK}\n@hookimpl\ndef adeptml_solver():\n    return []\n",
    ),
    Broken(
        "parameters",
        "P104",
        "the hook's signature is wrong: Argument(s) {'config'}",
        "write it without parameters, def adeptml_solvers():",
        light=f"{HOOK}\n@hookimpl\ndef adeptml_solvers(config):\n    return []\n",
    ),
    Broken(
        "raises",
        "P106",
        "raised, fake_raises/light.py:5: KeyError: 'x'",
        "do without this plugin",
        light=hook("{}['x']"),
    ),
    Broken(
        "exits",
        "P106",
        "raised, fake_exits/light.py:5: SystemExit: 1",
        "do without this plugin",
        light=hook("exit(1)"),
    ),
    Broken(
        "none",
        "P106",
        "returned None, not a list of SolverSpec",
        "do without this plugin",
        light=hook("None"),
    ),
    Broken(
        "generator",
        "P106",
        "returned an object of type generator",
        "do without this plugin",
        light=hook("(i for i in ())"),
    ),
    Broken(
        "strings",
        "P106",
        "an entry of type str, not SolverSpec",
        "do without this plugin",
        light=hook("['heat1d']"),
    ),
    Broken(
        "on-demand",
        "P103",
        "fails at import, fake_on_demand/light.py:2: RuntimeError: no server",
        "do without this plugin",
        light="def __getattr__(name):\n    raise RuntimeError('no server')\n",
        points="{name} = {module}:plugin\n",
    ),
    Broken(
        "no-hook-on-demand",
        "P106",
        "cannot be looked for: RuntimeError: no server",
        "let the entry point be the light module",
        light="def __getattr__(name):\n    raise RuntimeError('no server')\n",
    ),
    Broken(
        "looked-at",
        "P106",
        "cannot be looked for: RuntimeError: no",
        "do without this plugin",
        light=(
            "class Shy:\n    def __getattr__(self, name):\n        raise RuntimeError('no')\n"
            "    def __dir__(self):\n        return ['shy']\nplugin = Shy()\n"
        ),
        points="{name} = {module}:plugin\n",
    ),
)

SPECS = (
    Broken(
        "twins",
        "P106",
        "returns 2 specs called 'twins'",
        "a name and an entry point",
        light=light_module("twins", "twins"),
    ),
    Broken(
        "bad-mode",
        "P106",
        "mode='vpj' is none of jacobian, vjp, split_vjp. Did you mean 'vjp'?",
        "do without this plugin",
        light=one_spec("mode='vpj'"),
    ),
    Broken(
        "bad-name",
        "P106",
        "'Bad Name' must be lower-case letters",
        "do without this plugin",
        light=one_spec("name='Bad Name'"),
    ),
    Broken(
        "bad-shape",
        "P106",
        "the size 0 is neither a positive int nor a name",
        "do without this plugin",
        light=one_spec("", x="Array('x', (0,))"),
    ),
    Broken(
        "bad-bounds",
        "P106",
        "low=2.0 is above high=1.0",
        "do without this plugin",
        light=one_spec("", x="Array('x', ('n',), low=2.0, high=1.0)"),
    ),
    Broken(
        "bad-size",
        "P106",
        "'m' of y is given by no input",
        "do without this plugin",
        light=one_spec("y=Array('y', ('m',))"),
    ),
    Broken(
        "bad-option",
        "P106",
        "Option 't' contradicts itself: option 't' is 1.0; it must be one of 2.0",
        "do without this plugin",
        light=one_spec("options=(Option('t', 1.0, choices=(2.0,)),)"),
    ),
    Broken(
        "bad-function",
        "P106",
        "forward='a.b' is neither 'module:attribute' nor callable",
        "do without this plugin",
        light=one_spec("forward='a.b'"),
    ),
    Broken(
        "no-function",
        "P106",
        "mode vjp needs vjp=, which is missing",
        "do without this plugin",
        light=one_spec("vjp=None"),
    ),
    Broken(
        "bad-field", "P106", "TypeError", "do without this plugin", light=one_spec("colour='red'")
    ),
)

VERSIONS = (
    Broken(
        "newer-api",
        "P108",
        "written for api 2 of adeptml, this core speaks api 1",
        "pip install -U adeptml-core",
        light=one_spec("api=2"),
    ),
    Broken(
        "older-api",
        "P108",
        "written for api 0 of adeptml",
        "pip install -U fake-older-api",
        light=one_spec("api=0"),
    ),
    Broken(
        "newer-core",
        "P108",
        "asks for 'adeptml-core>=7.1', this is adeptml-core",
        "pip install 'adeptml-core>=7.1'",
        light=light_module("newer-core"),
        requires=("adeptml-core>=7.1",),
    ),
    Broken(
        "endless-version",
        "P108",
        "asks for 'adeptml-core>=1111",
        "or a version of fake-endless-version made for this core",
        light=light_module("endless-version"),
        requires=(f"adeptml-core>={'1' * 5000}",),
    ),
    Broken(
        "newer-name",
        "P108",
        "cannot import name 'Mesh' from 'adeptml_core.plugin'",
        "pip install -U adeptml-core",
        light="from adeptml_core.plugin import Mesh\n",
    ),
    Broken(
        "newer-attribute",
        "P108",
        "module 'adeptml_core.plugin' has no attribute 'Mesh'",
        "pip install -U adeptml-core",
        light="import adeptml_core.plugin\nadeptml_core.plugin.Mesh\n",
    ),
)

BROKEN = (*IMPORTS, *POINTS, *HOOKS, *SPECS, *VERSIONS)
"""Plugins whose solver cannot be used; leftovers and duplicates have tests of their own."""

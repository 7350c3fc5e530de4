import itertools
import os
import shutil
import sys
from pathlib import Path

import pytest
from fake_plugins import BROKEN, Broken, light_module, write_distribution, write_sound
from packaging.requirements import Requirement

from adeptml_core import registry
from adeptml_core._version import __version__
from adeptml_core.errors import PluginError, UnknownSolverError
from adeptml_core.registry import Problem, Row, State


def of(distribution: str) -> tuple[list[Row], list[Problem]]:
    """Return what a scan says of one distribution."""
    rows, problems = registry.scan()
    return (
        [row for row in rows if row.entry.distribution == distribution],
        [problem for problem in problems if problem.distribution == distribution],
    )


# ---- the catalogue -----------------------------------------------------------------------------


@pytest.fixture(params=BROKEN, ids=lambda broken: broken.name)
def broken(request: pytest.FixtureRequest, site: Path) -> Broken:
    plugin: Broken = request.param
    plugin.write(site)
    write_sound(site, "fake-sound", "sound")
    return plugin


def test_a_broken_plugin_is_a_row_with_code_cause_and_mend(broken: Broken) -> None:
    """Each fault gets its own code, the plugin's identity, one line of cause and one of mend."""
    rows, problems = of(broken.distribution)
    [problem] = [p for p in problems if p.code == broken.code]
    assert problem.version == broken.version
    assert broken.cause in problem.message
    assert broken.mend in problem.mend
    assert "\n" not in problem.message + problem.mend
    assert any(row.state != State.READY for row in rows)


def test_healthy_neighbours_stand(broken: Broken) -> None:
    """Whatever is wrong with one plugin, the others are listed and can be used."""
    assert registry.get_solver("sound").name == "sound"
    assert of("fake-sound")[0][0].state == State.READY
    assert "sound" in registry.solvers()


def test_a_broken_plugin_says_so_from_python(broken: Broken) -> None:
    """Using the broken solver raises the same problem as an error with fields."""
    entry = next(e for e in registry.entries() if e.distribution == broken.distribution)
    with pytest.raises(PluginError) as caught:
        registry.get_solver(entry.name)
    error = caught.value
    assert (error.code, error.distribution) == (broken.code, broken.distribution)
    assert error.entry_point == entry.spelling
    assert broken.mend in str(error)


def test_the_catalogue_is_as_large_as_it_must_be() -> None:
    """At least twenty kinds of broken plugins, all codes but leftovers among them."""
    assert len({broken.name for broken in BROKEN}) >= 20
    assert {broken.code for broken in BROKEN} == {f"P10{i}" for i in range(1, 10)}


def test_ctrl_c_during_an_import_is_not_a_plugins_fault(site: Path) -> None:
    """A KeyboardInterrupt ends the command; it is not reported as a broken plugin."""
    write_distribution(
        site, "fake-slow", points={"slow": "slow"}, modules={"slow": "raise KeyboardInterrupt\n"}
    )
    with pytest.raises(KeyboardInterrupt):
        registry.get_solver("slow")


def test_a_problem_keeps_the_traceback_of_its_cause(site: Path) -> None:
    """The plugin's own traceback is at hand for --debug."""
    next(b for b in BROKEN if b.name == "deep").write(site)
    [problem] = of("fake-deep")[1]
    assert "ZeroDivisionError" in problem.traceback
    assert "inner.py" in problem.traceback


# ---- isolation and laziness --------------------------------------------------------------------


def test_naming_the_solvers_imports_no_plugin(site: Path) -> None:
    """Entry points are read from metadata alone."""
    write_sound(site, "fake-sound", "sound")
    assert "sound" in registry.names()
    assert "fake_sound_light" not in sys.modules


def test_getting_one_solver_imports_that_plugin_only(site: Path) -> None:
    """Resolving a name touches no other plugin."""
    write_sound(site, "fake-one", "one")
    write_sound(site, "fake-two", "two")
    assert registry.get_solver("one").name == "one"
    assert "fake_one_light" in sys.modules
    assert "fake_two_light" not in sys.modules


def test_a_light_module_is_asked_once(site: Path) -> None:
    """Several entry points may share one module; its hook runs once."""
    counter = "calls = []\ndef count():\n    calls.append(1)\n    return 1\n"
    write_distribution(
        site,
        "fake-shared",
        points={"one": "shared_light", "two": "shared_light"},
        modules={"shared_light": light_module("one", "two", fields="api=count()", body=counter)},
    )
    assert [registry.get_solver(name).name for name in ("one", "two", "one")] == [
        "one",
        "two",
        "one",
    ]
    assert len(sys.modules["shared_light"].calls) == 2


def test_a_plugin_installed_after_the_first_look_is_found(site: Path) -> None:
    """A notebook's process outlives its pip install."""
    with pytest.raises(UnknownSolverError):
        registry.get_solver("late")
    write_sound(site, "fake-late", "late")
    assert registry.get_solver("late").name == "late"


def test_an_object_may_bear_the_hook(site: Path) -> None:
    """An entry point may lead to an object inside a module, extras and all."""
    source = light_module("inner").replace("def adeptml_solvers():", "def adeptml_solvers(self):")
    head, hook = source.split("@hookimpl\n")
    body = "".join(f"    {line}\n" for line in ("@hookimpl", *hook.splitlines()))
    write_distribution(
        site,
        "fake-object",
        points={"inner": "fake_object:plugin [extra]"},
        modules={"fake_object": f"{head}class Plugin:\n{body}plugin = Plugin()\n"},
    )
    assert registry.get_solver("inner").name == "inner"


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["heat-2d", "Heat_2D", "HEAT.2d", "fake-heat/heat-2d", "Fake.Heat/heat_2d"]
)
def test_names_fold_as_distribution_names_do(site: Path, name: str) -> None:
    """Case, underscore and dot do not tell solvers apart; the qualified form works always."""
    write_sound(site, "fake-heat", "heat-2d")
    assert registry.get_solver(name).name == "heat-2d"


def test_an_entry_point_may_be_spelt_otherwise_than_its_spec(site: Path) -> None:
    """The entry point's name is normalised before it is compared."""
    write_distribution(
        site, "fake-case", points={"Heat_3D": "case"}, modules={"case": light_module("heat-3d")}
    )
    assert registry.get_solver("heat-3d").name == "heat-3d"
    assert registry.find("heat-3d").spelling == "Heat_3D"


def test_an_unknown_solver_says_what_comes_close(site: Path) -> None:
    """The message names what was asked, what comes close, and what there is."""
    write_sound(site, "fake-heat", "heat-2d")
    with pytest.raises(UnknownSolverError, match="Did you mean 'heat-2d'") as caught:
        registry.get_solver("heat2d")
    assert caught.value.name == "heat2d"
    assert caught.value.suggestions == ("heat-2d",)
    with pytest.raises(UnknownSolverError, match="Did you mean 'fake-heat/heat-2d'"):
        registry.get_solver("fake-heta/heat-2d")


def test_unknown_names_do_not_list_two_hundred(site: Path) -> None:
    """The list of what is installed stays short enough to read."""
    write_sound(site, "fake-many", *(f"many-{i}" for i in range(200)))
    with pytest.raises(UnknownSolverError, match=r"and \d{3} more\.$"):
        registry.get_solver("nothing-like-it")


# ---- duplicates --------------------------------------------------------------------------------


@pytest.fixture
def twice(site: Path) -> Path:
    write_sound(site, "fake-a", "both")
    write_sound(site, "fake-b", "both", "other", version="2.0")
    return site


def test_duplicates_are_shown_both(twice: Path) -> None:
    """Two distributions that claim one name are two rows and one problem, in a fixed order."""
    rows, problems = registry.scan()
    assert [
        (row.entry.qualified, row.state) for row in rows if row.entry.name in ("both", "other")
    ] == [
        ("fake-a/both", State.DUPLICATE),
        ("fake-b/both", State.DUPLICATE),
        ("fake-b/other", State.READY),
    ]
    [problem] = [p for p in problems if p.code == "P109"]
    assert "fake-a 1.0 and fake-b 2.0" in problem.message
    assert "'fake-a/both' or 'fake-b/both'" in problem.mend


def test_only_the_bare_name_of_a_duplicate_is_an_error(twice: Path) -> None:
    """``distribution/name`` selects; from Python both are there under that key."""
    with pytest.raises(PluginError, match="P109"):
        registry.get_solver("both")
    assert registry.get_solver("fake-b/both").name == "both"
    assert {"fake-a/both", "fake-b/both", "other"} <= registry.solvers().keys()
    assert "both" not in registry.solvers()
    assert "fake-a/both" in registry.names()


def test_switching_one_duplicate_off_frees_the_name(
    twice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is switched off claims nothing."""
    monkeypatch.setenv(registry.DENY, "fake-b")
    assert registry.get_solver("both").name == "both"
    assert registry.find("both").distribution == "fake-a"


# ---- switches ----------------------------------------------------------------------------------

SWITCHES = {
    "allow a solver": (registry.ALLOW, "one", {"one"}),
    "allow a distribution": (registry.ALLOW, "Fake_B", {"two", "three"}),
    "allow nothing": (registry.ALLOW, "", set()),
    "allow qualified": (registry.ALLOW, "fake-b/three, one", {"one", "three"}),
    "deny a solver": (registry.DENY, "one", {"two", "three"}),
    "deny a distribution": (registry.DENY, "fake-b", {"one"}),
    "deny nothing": (registry.DENY, "", {"one", "two", "three"}),
}


@pytest.mark.parametrize(("switch", "value", "left"), SWITCHES.values(), ids=SWITCHES)
def test_switches_act_before_any_import(
    site: Path, monkeypatch: pytest.MonkeyPatch, switch: str, value: str, left: set[str]
) -> None:
    """Both switches take solver and distribution names; what is off is never imported."""
    write_sound(site, "fake-a", "one")
    write_sound(site, "fake-b", "two", "three")
    monkeypatch.setenv(switch, value)
    rows, problems = registry.scan()
    mine = [row for row in rows if row.entry.distribution.startswith("fake-")]
    assert {row.entry.name for row in mine if row.state == State.READY} == left
    assert {row.state for row in mine if row.entry.name not in left} <= {State.DISABLED}
    assert not [p for p in problems if p.distribution.startswith("fake-")]
    assert ("fake_a_light" in sys.modules) == ("one" in left)
    assert ("fake_b_light" in sys.modules) == bool({"two", "three"} & left)


def test_both_switches_at_once(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deny-list wins over the allow-list."""
    write_sound(site, "fake-b", "two", "three")
    monkeypatch.setenv(registry.ALLOW, "fake-b")
    monkeypatch.setenv(registry.DENY, "two")
    assert [name for name in registry.names() if name in ("two", "three")] == ["three"]


def test_using_what_is_switched_off_names_the_switch(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says which environment variable did it, and what it is set to."""
    write_sound(site, "fake-a", "one")
    monkeypatch.setenv(registry.DENY, "fake-a")
    with pytest.raises(UnknownSolverError, match=r"ADEPTML_DISABLE_PLUGINS is 'fake-a'"):
        registry.get_solver("one")


def test_a_switch_that_means_nothing_is_noticed(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt name in a switch can be told from one that is installed."""
    write_sound(site, "fake-a", "one")
    monkeypatch.setenv(registry.DENY, "one,onne")
    assert registry.unknown_switches() == {registry.DENY: ("onne",)}


# ---- leftovers and shadows ---------------------------------------------------------------------


def test_metadata_without_a_name_is_a_leftover(site: Path) -> None:
    """An interrupted uninstall leaves entry points without METADATA."""
    info = write_distribution(site, "fake-gone", points={"gone": "gone"}, metadata=False)
    [problem] = of(info.name)[1]
    assert problem.code == "P110"
    assert str(info) in problem.message
    assert "delete that folder" in problem.mend
    assert "gone" not in registry.names()


def test_what_pip_put_aside_is_a_leftover(site: Path) -> None:
    """Before it deletes a folder, pip renames it to ``~...``, METADATA and all."""
    write_distribution(site, "fake-gone", points={"gone": "x"}, folder="~ake_gone-1.0.dist-info")
    [problem] = of("fake-gone")[1]
    assert problem.code == "P110"
    assert "gone" not in registry.names()


def test_of_two_versions_in_one_folder_the_newer_counts(site: Path) -> None:
    """An interrupted upgrade leaves both versions' metadata; the older one is reported."""
    write_sound(site, "fake-up", "up", version="1.9")
    write_distribution(site, "fake-up", version="1.10", points={"up": "fake_up_light"})
    rows, [problem] = of("fake-up")
    assert [(row.entry.version, row.state) for row in rows] == [("1.10", State.READY)]
    assert (problem.code, problem.version) == ("P110", "1.9")


def test_the_first_on_the_path_hides_the_others(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for imports: a distribution of the same name further down the path does not count."""
    write_sound(site, "fake-up", "up", version="1.0")
    below = tmp_path / "below"
    write_sound(below, "fake-up", "up", "more", version="2.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(below)])
    rows, problems = of("fake-up")
    assert [(row.entry.name, row.entry.version) for row in rows] == [("up", "1.0")]
    assert problems == []


def test_a_folder_that_is_twice_on_the_path_counts_once(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Editable installs show a distribution more than once."""
    write_sound(site, "fake-up", "up")
    link = site.parent / "link"
    link.symlink_to(site, target_is_directory=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(site), str(link)])
    rows, problems = of("fake-up")
    assert len(rows) == 1
    assert problems == []


def test_an_entry_point_written_twice_counts_once(site: Path) -> None:
    """The same line twice is no ambiguity."""
    write_distribution(
        site,
        "fake-double",
        points="double = doubled\ndouble = doubled\n",
        modules={"doubled": light_module("double")},
    )
    assert registry.get_solver("double").name == "double"


def test_entry_points_that_cannot_be_read_are_a_problem(site: Path) -> None:
    """A damaged entry_points.txt is reported, and harms nobody else."""
    write_distribution(site, "fake-damaged", points="a line without an equals sign\n")
    write_sound(site, "fake-sound", "sound")
    [problem] = of("fake-damaged")[1]
    assert problem.code == "P101"
    assert "entry_points.txt cannot be read" in problem.message
    assert registry.get_solver("sound").name == "sound"


def test_metadata_is_read_up_to_the_readme(site: Path) -> None:
    """Name and requirements come from the head of METADATA, whatever the README below it says."""
    write_sound(site, "fake-readme", "readme")
    entry = registry.find("readme")
    assert (entry.distribution, entry.version) == ("fake-readme", "1.0")
    assert entry.requires == ("adeptml-core>=0.1",)


def test_metadata_that_is_no_text_is_a_problem(site: Path) -> None:
    """METADATA that is not UTF-8 is reported, not a crash."""
    info = write_distribution(site, "fake-latin", points={"latin": "latin"})
    (info / "METADATA").write_bytes(b"Name: fake-latin\nVersion: 1.0\n\n\xe9")
    assert of(info.name)[1][0].code == "P110"


def test_entry_points_in_no_encoding_are_a_problem(site: Path) -> None:
    """Bytes that are no text do not make the plugin vanish."""
    info = write_distribution(site, "fake-bytes", points={"bytes": "x"})
    (info / "entry_points.txt").write_bytes(b"[adeptml.solvers]\nbytes = \xff\xfe\n")
    [problem] = of("fake-bytes")[1]
    assert problem.code == "P101"
    assert "UnicodeDecodeError" in problem.message


def test_fields_of_the_metadata_in_any_case(site: Path) -> None:
    """They are email headers, whose names have no case; line ends may be Windows'."""
    info = write_distribution(
        site, "fake-case", points={"case": "case"}, modules={"case": light_module("case")}
    )
    text = b"metadata-version: 2.1\r\nname: fake-case\r\nVERSION: 1.5\r\n\r\nName: other\r\n"
    (info / "METADATA").write_bytes(text)
    [row], problems = of("fake-case")
    assert (row.entry.version, row.state, problems) == ("1.5", State.READY, [])


def test_a_plugin_that_spoils_the_path_harms_nobody(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no text on ``sys.path`` is passed over, as imports do, in this scan and the next."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spoil = "import pathlib, sys\nsys.path[:0] = [None, pathlib.Path('x'), b'y']\n"
    write_distribution(
        site,
        "fake-path",
        points={"path": "spoilt"},
        modules={"spoilt": light_module("path", body=spoil, fields="requires=('click',)")},
    )
    write_sound(site, "fake-sound", "sound")
    next(b for b in BROKEN if b.name == "deep").write(site)
    for _ in range(2):
        assert of("fake-path")[0][0].state == State.READY
        assert of("fake-sound")[0][0].state == State.READY
        assert "fake_deep/inner.py:1" in of("fake-deep")[1][0].message
        assert registry.unknown_switches() == {}


# ---- requirements ------------------------------------------------------------------------------


def test_a_missing_requirement_is_a_state_not_a_problem(site: Path) -> None:
    """``requires`` that are not met leave the solver listed, and say what is missing."""
    write_sound(
        site, "fake-thirsty", "thirsty", fields="requires=('click', 'not-there>=2', 'click>=900')"
    )
    [row], problems = of("fake-thirsty")
    assert (row.state, row.needs) == (State.NEEDS, ("not-there>=2", "click>=900"))
    assert problems == []
    assert row.spec is not None
    assert registry.missing_requirements(row.spec) == row.needs


INSTALLED = (
    "1",
    "1.0",
    "1.2",
    "1.20.0",
    "2.0.0",
    "2.13.0+cpu",
    "0.9.1",
    "1.2rc1",
    "2!1.0",
    "1.2.post1",
)
WANTED = ("1", "1.0", "1.2", "1.20", "2", "2.13", "0.9", "0.9.1")


@pytest.mark.parametrize("sign", [">=", "<=", "==", "!=", "<", ">", "~=", "==="])
def test_requirements_are_read_as_packaging_reads_them(sign: str) -> None:
    """The quick way for plain release numbers agrees with PEP 440 in every case it decides."""
    for version, wanted in itertools.product(INSTALLED, WANTED):
        if sign == "~=" and "." not in wanted:
            continue
        line = f"thing {sign} {wanted}"
        truth = Requirement(line).specifier.contains(version, prereleases=True)
        assert registry.is_met(line, {"thing": version}) == truth, (line, version)


@pytest.mark.parametrize(
    ("line", "met"),
    [
        ("thing", True),
        ("Thing>=1,<3", True),
        ("thing>=1, !=2.0", False),
        ("thing[extra]>=1", True),
        ("thing==2.*", True),
        ("thing>=1; python_version < '3'", True),
        ("thing>=3; python_version >= '3'", False),
        ("thing>=3; extra == 'gpu'", True),
        ("thing @ https://example.org/thing.zip", True),
        ("other", False),
        ("not a requirement", False),
        ("", False),
    ],
)
def test_requirements_of_every_form(line: str, met: bool) -> None:
    """Markers, extras, wildcards and addresses are read; what is no requirement is not met."""
    assert registry.is_met(line, {"thing": "2.0"}) is met


def test_a_core_that_is_asked_for_in_a_fitting_version_is_no_problem(site: Path) -> None:
    """The plugin's Requires-Dist is compared with this core, not with what metadata claims."""
    write_distribution(
        site,
        "fake-exact",
        points={"exact": "exact"},
        modules={"exact": light_module("exact")},
        requires=(f"adeptml_core=={__version__}", "adeptml-core-extras>=99"),
    )
    assert registry.get_solver("exact").name == "exact"


# ---- selecting ---------------------------------------------------------------------------------


def test_select_loads_what_is_named_and_nothing_else(site: Path) -> None:
    """Rows come in the order asked for, each once; a broken one is a problem, not an error."""
    write_sound(site, "fake-a", "one")
    write_sound(site, "fake-b", "two")
    write_sound(site, "fake-c", "three")
    next(b for b in BROKEN if b.name == "deep").write(site)
    rows, problems = registry.select(["two", "deep", "fake-a/one", "two"])
    assert [row.entry.name for row in rows] == ["two", "deep", "one"]
    assert [problem.code for problem in problems] == ["P103"]
    assert "fake_c_light" not in sys.modules


def test_select_without_names_is_everything(site: Path) -> None:
    """No names means all that is installed."""
    write_sound(site, "fake-a", "one")
    assert registry.select() == registry.scan()


def test_select_refuses_unknown_and_ambiguous_names(twice: Path) -> None:
    """A name that selects nothing, or two, is the user's error."""
    with pytest.raises(UnknownSolverError):
        registry.select(["nothing-like-it"])
    with pytest.raises(PluginError, match="P109"):
        registry.select(["both"])


def test_the_order_of_the_list_does_not_hang_on_hashes(site: Path) -> None:
    """Rows are sorted by name, then distribution."""
    write_sound(site, "fake-z", "b", "a")
    write_sound(site, "fake-y", "c", "a")
    names = [e.qualified for e in registry.entries() if e.distribution in ("fake-z", "fake-y")]
    assert names == ["fake-y/a", "fake-z/a", "fake-z/b", "fake-y/c"]


def test_a_folder_that_vanished_is_no_crash(site: Path) -> None:
    """A plugin uninstalled under a running process is said to lead nowhere."""
    write_sound(site, "fake-brief", "brief")
    entry = registry.find("brief")
    shutil.rmtree(site)
    os.mkdir(site)
    with pytest.raises(PluginError, match="P101"):
        registry.load(entry)

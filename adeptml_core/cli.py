"""The command ``adeptml``: which solvers are there, can they be trusted, how to use them.

The roof of the house: it may call any floor, and imports each only inside the verb that needs it,
so that ``adeptml plugins list`` answers at once. `verb` gives every command the same manners:
``--json``, ``--debug``, ``--color``, a stdout that is the command's alone, and exit codes: 0 clean,
1 a finding, 2 usage or an unknown name.
"""

import contextlib
import functools
import gc
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import click

from adeptml_core import registry
from adeptml_core.errors import AdeptmlError, PluginError, UnknownSolverError
from adeptml_core.table import Cell, paragraph, printable, table

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from adeptml_core.registry import Problem, Row
    from adeptml_core.spec import Array, Option, SolverSpec

__all__ = [
    "SOLVER",
    "Console",
    "adeptml",
    "main",
    "plugins",
    "problems_as_json",
    "selected",
    "verb",
]

SCHEMA = 1
"""Version of every JSON document that the command prints."""

FINDING, USAGE = 1, 2

COMPLETE = "_ADEPTML_COMPLETE"
"""The environment variable by which a shell asks for completions."""

INK: dict[str, dict[str, Any]] = {
    "": {},
    "head": {"dim": True},
    "name": {"bold": True},
    "good": {"fg": "green"},
    "warn": {"fg": "yellow"},
    "bad": {"fg": "red"},
    "dim": {"dim": True},
}
"""How the meanings of `adeptml_core.table.Paint` look."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command and exit."""
    gc.freeze()  # what the imports made stays: the collector need not look through it again,
    try:
        # Completion is for the script, whoever answers for it; else click finds the name itself.
        name = "adeptml" if COMPLETE in os.environ else None
        adeptml.main(args, prog_name=name, complete_var=COMPLETE)
    except OSError as error:  # --version and --help on a full disk; verbs have their own manners
        _turn_to_nowhere()  # or Python would try again at exit
        sys.exit(f"error: {error}")
    finally:
        gc.freeze()  # nor through everything at exit, which would take as long as the listing


# ---- manners: what all verbs share -------------------------------------------------------------


class Console:
    """Where a verb writes, how wide, and in which colours.

    Parameters
    ----------
    stdout : text stream
        The command's own.
    as_json : bool
        Whether stdout takes one JSON document and nothing else.
    debug : bool
        Whether problems come with their tracebacks.
    color : {"auto", "always", "never"}
        ``auto``: on a terminal, unless ``NO_COLOR`` is set.
    width : int, optional
        Columns of the terminal; None where stdout is none, and lines are left whole.
    """

    def __init__(
        self, stdout: IO[str], *, as_json: bool, debug: bool, color: str, width: int | None
    ) -> None:
        self.stdout = stdout
        self.as_json = as_json
        self.debug = debug
        self.width = width
        self._color = color

    def print(self, text: str = "") -> None:
        """Write a line to stdout."""
        self.stdout.write(f"{text}\n")

    def print_json(self, data: dict[str, Any]) -> None:
        """Write ``{"schema": 1, ...}`` to stdout."""
        import json

        self.print(json.dumps({"schema": SCHEMA} | data, indent=2, allow_nan=False))

    def note(self, text: str) -> None:
        """Write a remark to stderr."""
        click.echo(text, err=True)

    def paint(self, text: str, meaning: str) -> str:
        """Return `text` in the colour of what it means; an `adeptml_core.table.Paint`."""
        ink = INK[meaning]
        return click.style(text, **ink) if ink and _is_coloured(self._color, self.stdout) else text

    def print_problems(self, problems: Sequence["Problem"]) -> None:
        """Write each problem: code, plugin, cause; then the mend."""
        for problem in problems:
            origin = f"{problem.distribution} {problem.version}".strip()
            first = f"{self.paint(problem.code, 'bad')}  "
            text = f"{origin}  {problem.message}"
            for line in self.paragraph(text, first=first, lead=len(problem.code) + 2):
                self.print(line)
            first = f"      {self.paint('mend:', 'good')} "
            for line in self.paragraph(problem.mend, first=first, lead=12):
                self.print(line)
            if self.debug and problem.traceback:
                self.print(problem.traceback.rstrip())

    def paragraph(self, text: str, *, first: str, lead: int, indent: int = 6) -> list[str]:
        """Wrap behind a lead of `lead` columns, which colour makes longer than it looks."""
        lines = paragraph(text, width=self.width, first=" " * lead, indent=" " * indent)
        return [first + lines[0][lead:], *lines[1:]]


def _is_coloured(color: str, stream: IO[str]) -> bool:
    if color != "auto":
        return color == "always"
    # https://no-color.org: any value but an empty one.
    is_unwanted = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not is_unwanted and stream.isatty()


@contextlib.contextmanager
def _reserved_stdout() -> Iterator[IO[str]]:
    """Yield stdout for the command alone: whatever a plugin prints, by any road, goes to stderr.

    Python's ``print`` is turned by replacing ``sys.stdout``; for C libraries and subprocesses file
    descriptor 1 itself becomes stderr, and stays so: what they buffered comes out at exit.
    """
    stdout = sys.stdout or io.StringIO()  # None where it was closed: nobody wants to read
    with contextlib.redirect_stdout(sys.stderr):
        if not _is_descriptor_one(stdout):  # captured: a test, a notebook
            yield stdout
            return
        stdout.flush()
        private = os.dup(1)
        _turn_to_stderr()
        with open(private, "w", encoding=stdout.encoding, errors="backslashreplace") as stream:
            yield stream


def _is_descriptor_one(stream: IO[str]) -> bool:
    try:
        return stream.fileno() == 1
    except (OSError, ValueError, AttributeError):
        return False


def _turn_to_stderr() -> None:
    """Let file descriptor 1 be stderr, or lead nowhere where stderr was closed."""
    try:
        os.dup2(2, 1)
    except OSError:
        _turn_to_nowhere()


def _turn_to_nowhere() -> None:
    """Let file descriptor 1 lead nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


class _Finding(click.ClickException):
    """An error that ends the command with its message and exit code 1."""

    exit_code = FINDING
    color = "auto"

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message, further lines below the first."""
        label = "error:"
        if _is_coloured(self.color, sys.stderr):
            label = click.style(label, fg="red")
        first, *others = self.message.splitlines() or [""]
        click.echo(
            "\n".join([f"{label} {first}", *(f"       {line}" for line in others)]), err=True
        )


class _Misuse(_Finding):
    """... with exit code 2: what was asked for is not there."""

    exit_code = USAGE


def _failure(error: Exception, color: str) -> _Finding:
    is_ambiguous = isinstance(error, PluginError) and error.code == "P109"
    is_misuse = is_ambiguous or isinstance(error, UnknownSolverError)
    failure = (_Misuse if is_misuse else _Finding)(str(error))
    failure.color = color
    return failure


def verb(function: Callable[..., int | None]) -> Callable[..., None]:
    """Make a command of ``function(console, ...) -> exit code``: stack it right above the function.

    It adds ``--json``, ``--debug`` and ``--color``, keeps stdout for the console alone, and turns
    adeptml's own errors into messages with exit codes.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document, nothing else.")
    @click.option("--debug", is_flag=True, help="Show tracebacks.")
    @click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        help="Colours; auto: on a terminal, unless NO_COLOR is set.",
    )
    @functools.wraps(function)
    def command(*args: Any, as_json: bool, debug: bool, color: str, **kwargs: Any) -> None:
        width = _width()
        try:
            with _reserved_stdout() as stdout:
                console = Console(stdout, as_json=as_json, debug=debug, color=color, width=width)
                code = function(console, *args, **kwargs)
        except BrokenPipeError:  # `| head` has seen enough; click ends quietly
            raise
        except (
            ModuleNotFoundError
        ) as error:  # numpy, where core was installed without what it needs
            if debug:
                _print_traceback(error)
            failure = _Finding(
                f"this needs {error.name!r}, which is not installed\nmend: pip install {error.name}"
            )
            failure.color = color
            raise failure from error
        except (AdeptmlError, OSError) as error:
            if debug:
                _print_traceback(error)
            raise _failure(error, color) from error
        if code:
            raise click.exceptions.Exit(code)

    return command


def _print_traceback(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error)


def _width() -> int | None:
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return shutil.get_terminal_size().columns if is_terminal else None


# ---- naming solvers ----------------------------------------------------------------------------


class _SolverName(click.ParamType):  # type: ignore[type-arg] # generic only since click 8.4
    """The name of a solver; completes in the shell, from metadata alone."""

    name = "solver"

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,
        incomplete: str,
    ) -> list["CompletionItem[str]"]:
        """Return the installed names that begin with what is typed."""
        from click.shell_completion import CompletionItem

        names = registry.names()
        if "/" in incomplete:
            names = {entry.qualified: entry for entry in names.values()}
        return [
            CompletionItem(printable(name), help=f"{entry.distribution} {entry.version}")
            for name, entry in names.items()
            if name.startswith(incomplete.lower())
        ]


SOLVER = _SolverName()


def selected(names: Sequence[str]) -> tuple[list["Row"], list["Problem"]]:
    """Return the rows to work on and the problems on the way to them.

    An unknown or ambiguous name ends the command with exit code 2.
    """
    return registry.select(names)


def problems_as_json(problems: Sequence["Problem"]) -> list[dict[str, str]]:
    """Return the ``problems`` of every JSON document."""
    keys = ("code", "distribution", "version", "entry_point", "message", "mend")
    return [{key: getattr(problem, key) for key in keys} for problem in problems]


# ---- adeptml -----------------------------------------------------------------------------------


def _print_versions(ctx: click.Context, _: click.Parameter, is_wanted: bool) -> None:
    if not is_wanted or ctx.resilient_parsing:
        return
    from adeptml_core._version import __version__

    plugins_found = {entry.distribution: entry.version for entry in registry.entries()}
    versions = {
        registry.CORE: __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": registry.installed_version("torch"),
        "numpy": registry.installed_version("numpy"),
        **plugins_found,
    }
    for line in table([(name, found or "not installed") for name, found in versions.items()]):
        click.echo(line)
    ctx.exit()


# \b keeps click from filling the lines: they are there to be copied.
COMPLETION = """\b
Names complete in the shell with one line in its start-up file:
  ~/.bashrc                   eval "$(_ADEPTML_COMPLETE=bash_source adeptml)"
  ~/.zshrc                    eval "$(_ADEPTML_COMPLETE=zsh_source adeptml)"
  ~/.config/fish/config.fish  _ADEPTML_COMPLETE=fish_source adeptml | source
"""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=COMPLETION,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_versions,
    help="Show the versions of core, torch, numpy and every plugin.",
)
def adeptml() -> None:
    """Physics solvers as plugins, differentiable in PyTorch.

    Which solvers are there? adeptml plugins list
    """


@adeptml.group()
def plugins() -> None:
    """List, describe and prove the installed solvers."""


# ---- list --------------------------------------------------------------------------------------


@plugins.command("list")
@click.option("--names", "only_names", is_flag=True, help="Names alone; imports no plugin.")
@click.option("--strict", is_flag=True, help="Exit with 1 where a plugin has a problem.")
@verb
def list_(console: Console, only_names: bool, strict: bool) -> int:
    """Show the installed solvers.

    One line each: name, mode, signature with units, where it comes from, and its state if there is
    something to say of it; then what is wrong with the plugins that cannot be used, and the mend.
    """
    if only_names:
        return _list_names(console, strict)
    rows, problems = registry.scan()
    if console.as_json:
        from adeptml_core.describe import row_as_json

        solvers = [row_as_json(row) for row in rows]
        console.print_json({"solvers": solvers, "problems": problems_as_json(problems)})
    else:
        _print_list(console, rows, problems)
    _note_unknown_switches(console)
    return FINDING if strict and problems else 0


def _list_names(console: Console, strict: bool) -> int:
    if strict:
        raise click.UsageError(
            "--names loads no plugin, so --strict has nothing to judge: drop one."
        )
    names = list(registry.names())
    if console.as_json:
        console.print_json({"names": names})
    else:
        for name in names:
            console.print(printable(name))
    _note_unknown_switches(console)
    return 0


def _print_list(console: Console, rows: Sequence["Row"], problems: Sequence["Problem"]) -> None:
    if not rows and not problems:
        console.print(NOTHING_INSTALLED)
        return
    head = _head("SOLVER", "MODE", "SIGNATURE", "FROM", "")
    codes = {(problem.distribution, problem.entry_point): problem.code for problem in problems}
    cells = [_row_cells(row, codes) for row in rows]
    for line in table([head, *cells], paint=console.paint, width=console.width, flow=(2, 3, 4)):
        console.print(line)
    if problems:
        console.print()
        console.print_problems(problems)
    console.print(_summary(rows, problems))


NOTHING_INSTALLED = """\
No solver plugin is installed. Two to begin with:
  pip install adeptml-heat1d          the 1-D heat equation, in numpy
  pip install adeptml-pendulum-jax    a damped, driven pendulum, in JAX
Your own: adeptml plugins new my-solver --mode vjp"""


def _row_cells(row: "Row", codes: Mapping[tuple[str, str], str]) -> list[Cell]:
    entry, spec = row.entry, row.spec
    return [
        Cell(entry.name, "name"),
        Cell(str(spec.mode) if spec else ""),
        Cell(spec.signature if spec else ""),
        Cell(f"{entry.distribution} {entry.version}", "dim"),
        _state(row, codes.get((entry.distribution, entry.spelling), "")),
    ]


def _state(row: "Row", code: str) -> Cell:
    """Return what is to say of a row's state: of one that is ready, nothing."""
    match row.state:
        case registry.State.READY:
            return Cell("")
        case registry.State.NEEDS:
            return Cell(f"needs {', '.join(row.needs)}", "warn")
        case registry.State.DISABLED:
            return Cell("switched off", "dim")
        case registry.State.DUPLICATE:
            return Cell("duplicate", "warn")
        case registry.State.BROKEN:
            return Cell(f"broken: {code}", "bad")


def _summary(rows: Sequence["Row"], problems: Sequence["Problem"]) -> str:
    """Return the last line: how many of what, and how many of them want something done."""
    distributions = len({row.entry.distribution for row in rows})
    parts = [f"{_count(len(rows), 'solver')} from {_count(distributions, 'distribution')}"]
    off = sum(row.state == registry.State.DISABLED for row in rows)
    ready = sum(row.state == registry.State.READY for row in rows)
    stray = sum(not problem.entry_point for problem in problems)
    waiting = len(rows) - off - ready + stray
    if off:
        parts.append(f"{off} switched off")
    if waiting:
        parts.append(f"{waiting} {'needs' if waiting == 1 else 'need'} attention")
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _note_unknown_switches(console: Console) -> None:
    for switch, names in registry.unknown_switches().items():
        console.note(f"note: {switch} names {', '.join(map(repr, names))}: nothing of that name")


# ---- show --------------------------------------------------------------------------------------


@plugins.command()
@click.argument("name", type=SOLVER)
@verb
def show(console: Console, name: str) -> int:
    """Describe one solver, and how to use it.

    Its arrays, options and promises, where its functions stand, what it requires; then Python to
    paste. The solver itself is not imported.
    """
    from adeptml_core import describe

    rows, problems = selected([name])
    row = rows[0]
    if console.as_json:
        data = describe.as_json(row, row.spec) if row.spec else describe.row_as_json(row)
        console.print_json({"solver": data, "problems": problems_as_json(problems)})
    elif row.spec is not None:
        _print_solver(console, row, row.spec)
    else:
        console.print_problems(problems)
    return FINDING if problems else 0


def _print_solver(console: Console, row: "Row", spec: "SolverSpec") -> None:
    from adeptml_core import describe

    sections = (
        _title(console, row, spec),
        _array_lines(console, spec),
        _option_lines(console, spec.options),
        _function_lines(console, spec),
        _requirement_lines(console, row, spec),
        _fact_lines(console, spec),
        describe.snippet(spec, describe.usable_name(row)).splitlines(),
    )
    console.print("\n\n".join("\n".join(lines) for lines in sections if lines))


def _title(console: Console, row: "Row", spec: "SolverSpec") -> list[str]:
    entry = row.entry
    lead = len(entry.name) + 3
    lines = console.paragraph(
        spec.summary, first=f"{console.paint(entry.name, 'name')}   ", lead=lead
    )
    origin = f"{entry.distribution} {entry.version} (api {spec.api})"
    facts = f"from {origin}   mode {spec.mode}   {', '.join(spec.dtypes)}"
    lines += console.paragraph(facts, first="", lead=0)
    if row.needs:
        cure = " ".join(map(registry.quoted, row.needs))
        text = printable(f"needs {', '.join(row.needs)}: pip install {cure}")
        lines.append(console.paint(text, "warn"))
    return lines


def _head(*titles: str) -> list[Cell]:
    return [Cell(title, "head") for title in titles]


def _array_lines(console: Console, spec: "SolverSpec") -> list[str]:
    rows = [_head("ARRAY", "", "SHAPE", "UNIT", "RANGE", "GRADIENT", "")]
    rows.append(_array_cells("x", spec.x, is_differentiable=True))
    rows += [_array_cells("arg", a, is_differentiable=a.differentiable) for a in spec.args]
    rows.append(_array_cells("y", spec.y, is_differentiable=None))
    return table(rows, paint=console.paint, width=console.width, flow=(6, 4, 3))


GRADIENT = {True: Cell("yes", "good"), False: Cell("no", "dim"), None: Cell("")}
BATCHED = {None: "", True: "per sample", False: "shared by the batch"}


def _array_cells(role: str, array: "Array", *, is_differentiable: bool | None) -> list[Cell]:
    sizes = ", ".join(map(str, array.shape))
    kind = f" {array.dtype}" if array.dtype else ""
    notes = (array.doc, BATCHED[array.batched])
    return [
        Cell(array.name, "name"),
        Cell(role, "dim"),
        Cell(f"[{sizes}]{kind}" if sizes else f"scalar{kind}"),
        Cell("" if array.unit == "1" else array.unit),
        Cell(array.range),
        GRADIENT[is_differentiable],
        Cell("; ".join(filter(None, notes))),
    ]


def _option_lines(console: Console, options: Sequence["Option"]) -> list[str]:
    if not options:
        return []
    rows = [_head("OPTION", "DEFAULT", "UNIT", "RANGE", "")]
    rows += [_option_cells(option) for option in options]
    return table(rows, paint=console.paint, width=console.width, flow=(4, 3, 2))


def _option_cells(option: "Option") -> list[Cell]:
    choices = ", ".join(map(str, option.choices or ()))
    required = Cell(f"required ({option.type.__name__})", "warn")
    return [
        Cell(option.name, "name"),
        required if option.required else Cell(str(option.default)),
        Cell("" if option.unit == "1" else option.unit),
        Cell(choices or option.range),
        Cell(option.doc),
    ]


def _function_lines(console: Console, spec: "SolverSpec") -> list[str]:
    from adeptml_core import describe

    rows = [_head("FUNCTION", "", "DEFINED IN")]
    for role, place in describe.functions(spec).items():
        meaning = "" if place.file else "bad"
        rows.append([Cell(role, "name"), Cell(place.reference), Cell(str(place), meaning)])
    return table(rows, paint=console.paint, width=console.width, flow=(1,))


def _requirement_lines(console: Console, row: "Row", spec: "SolverSpec") -> list[str]:
    from adeptml_core import describe

    rows = [_head("REQUIRES", "INSTALLED", "")]
    for line, installed, is_met in describe.requirements(row.entry, spec):
        state = Cell("ok", "good") if is_met else Cell("not met", "bad")
        rows.append([Cell(line, "name"), Cell(installed or "no"), state])
    return table(rows, paint=console.paint)


def _fact_lines(console: Console, spec: "SolverSpec") -> list[str]:
    """Return what the solver does not promise, what is known to fail, and what to cite."""
    facts = [("promise", text) for text in _promises(spec)]
    facts += [("expects", f"{k} to fail: {why}") for k, why in spec.expected_failures.items()]
    facts += [
        (label, text) for label, text in (("cite", spec.citation), ("more", spec.url)) if text
    ]
    return [
        line
        for label, text in facts
        for line in console.paragraph(
            text, first=console.paint(label.ljust(9), "dim"), lead=9, indent=9
        )
    ]


def _promises(spec: "SolverSpec") -> list[str]:
    """Return in words where a solver promises less, or something else, than most."""
    said = {
        "rows of a batch depend on each other": not spec.row_independent,
        "equal inputs need not give equal results": not spec.deterministic,
        "one call at a time (not thread-safe)": not spec.thread_safe,
        "gets private copies that it may write to": spec.writable_inputs,
        f"derivatives to a relative accuracy of {spec.tolerance}": spec.tolerance is not None,
    }
    return [text for text, holds in said.items() if holds]


# ---- new ---------------------------------------------------------------------------------------


@plugins.command()
@click.argument("name")
@click.option(
    "--mode",
    type=click.Choice(["jacobian", "vjp", "split_vjp"]),
    required=True,
    help="How the solver differentiates.",
)
@click.option("--backend", type=click.Choice(["numpy", "jax"]), default="numpy", show_default=True)
@click.option(
    "--directory",
    type=click.Path(file_okay=False),
    default=".",
    help="Where to make the folder adeptml-NAME; here, if not given.",
)
@verb
def new(console: Console, name: str, mode: str, backend: str, directory: str) -> int:
    """Write a plugin package to begin with.

    Its solver is one line of physics to be replaced. As generated it passes check, and its own
    tests are that proof.
    """
    from pathlib import Path

    from adeptml_core import scaffold
    from adeptml_core.spec import Mode

    folder, files = scaffold.write(name, Mode(mode), backend, Path(directory))
    if console.as_json:
        console.print_json({"name": name, "directory": str(folder), "files": files})
        return 0
    console.print(f"{console.paint(name, 'name')}   mode {mode}, {backend}, in {folder}")
    for file in files:
        console.print(f"  {file}")
    console.print(f"next  pip install -e {folder}")
    console.print(f"      adeptml plugins check {name}")
    if name in registry.names():
        console.note(f"note: a solver called {name!r} is installed already; two cannot share it")
    return 0


# ---- check, validate, gradcheck ----------------------------------------------------------------


def _examining(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what the verbs that examine solvers have in common."""
    for decorate in (
        click.option("--strict", is_flag=True, help="Exit with 1 where anything is inconclusive."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of all random draws."),
        click.option(
            "--option",
            "settings",
            multiple=True,
            metavar="NAME=VALUE",
            help="A solver's option; may be given several times.",
        ),
        click.argument("names", nargs=-1, type=SOLVER),
    ):
        function = decorate(function)
    return function


@plugins.command()
@_examining
@click.option("--budget", type=float, metavar="SECONDS", help="For each solver.")
@click.option("--limit", type=float, metavar="SECONDS", help="For one call of a solver (60).")
@click.option("--dtype", type=click.Choice(["float64", "float32"]), help="Gradients in this alone.")
@click.option("--report", type=click.Path(dir_okay=False), metavar="FILE.html", help="As a page.")
@verb
def check(console: Console, names: tuple[str, ...], **given: Any) -> int:
    """Decide whether solvers can be trusted.

    Without NAMES, all that are installed. Static checks, the contract, then every gradient against
    differences. What fails is explained; what cannot be decided says what would decide it.
    """
    return _examine(console, "check", names, **given)


@plugins.command()
@_examining
@verb
def validate(console: Console, names: tuple[str, ...], **given: Any) -> int:
    """Check what can be told without running the solvers.

    Functions exist and take what is declared, requirements are met, the light module is light.
    """
    return _examine(console, "validate", names, **given)


@plugins.command()
@_examining
@click.option("--budget", type=float, metavar="SECONDS", help="For each solver.")
@click.option("--limit", type=float, metavar="SECONDS", help="For one call of a solver (60).")
@click.option("--dtype", type=click.Choice(["float64", "float32"]), help="In this dtype alone.")
@click.option("--directions", type=click.IntRange(1), help="Dense directions at each point.")
@click.option("--plot", type=click.Path(dir_okay=False), metavar="FILE", help="Error against step.")
@verb
def gradcheck(console: Console, names: tuple[str, ...], **given: Any) -> int:
    """Compare every gradient with differences: the gradient part of check, alone."""
    return _examine(console, "gradcheck", names, **given)


PARTS = {
    "check": ("static", "contract", "gradient"),
    "validate": ("static",),
    "gradcheck": ("gradient",),
}


def _examine(
    console: Console,
    verb_name: str,
    names: Sequence[str],
    *,
    seed: int,
    settings: Sequence[str],
    strict: bool,
    report: str | None = None,
    plot: str | None = None,
    **limits: Any,
) -> int:
    """Examine solvers, print each report as soon as it stands, and return the exit code."""
    from adeptml_core.conformance import command

    rows, problems = selected(names)
    _note_unknown_switches(console)
    return command.examine(
        console,
        command.Request(
            verb=verb_name,
            parts=PARTS[verb_name],
            rows=rows,
            problems=problems,
            named=bool(names),
            seed=seed,
            options=settings,
            strict=strict,
            report=report,
            plot=plot,
            limits=limits,
        ),
    )

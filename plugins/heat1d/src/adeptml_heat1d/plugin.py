"""What adeptml reads to list the solvers: data only, so that listing stays quick."""

from adeptml_core.plugin import Array, Option, SolverSpec, hookimpl

URL = "https://doi.org/10.1007/s10543-006-0077-9"

OPTIONS = (
    Option("length", 1.0, unit="m", low=1e-9, doc="length of the rod"),
    Option("rho_c", 1.0, unit="J/m^3/K", low=1e-12, doc="heat capacity per volume"),
    Option("h_left", float("inf"), unit="W/m^2/K", low=0.0, doc="left film; inf: T is given there"),
    Option("h_right", float("inf"), unit="W/m^2/K", low=0.0, doc="right film; 0: insulated"),
    Option("t", 1.0, unit="s", low=0.0, doc="time at which T is wanted"),
    Option("poles", 14, choices=(8, 10, 12, 14, 16), doc="accuracy in time: 8 2e-8, 14 4e-14"),
)

TEMPERATURE = Array("T", ("n",), unit="K", doc="temperature of each cell at time t")


def _initial(*, differentiable: bool = False) -> Array:
    doc = "initial temperature of each cell"
    return Array("T0", ("n",), unit="K", differentiable=differentiable, doc=doc)


def _conductivity(*, differentiable: bool = False, batched: bool | None = None) -> Array:
    return Array(
        "k",
        ("n",),
        unit="W/m/K",
        low=1e-9,
        differentiable=differentiable,
        batched=batched,
        doc="conductivity of each cell",
    )


def _loads(*, differentiable: bool) -> tuple[Array, Array]:
    source = Array(
        "q", ("n",), unit="W/m^3", differentiable=differentiable, doc="heat source in each cell"
    )
    ambient = Array(
        "T_ext", (2,), unit="K", differentiable=differentiable, doc="ambient left and right"
    )
    return source, ambient


@hookimpl
def adeptml_solvers() -> list[SolverSpec]:
    """Declare the three solvers."""
    return [
        SolverSpec(
            name="heat1d",
            mode="split_vjp",
            summary="1-D heat equation with per-sample conductivity and Robin ends",
            x=_initial(),
            args=(_conductivity(differentiable=True), *_loads(differentiable=True)),
            y=TEMPERATURE,
            options=OPTIONS,
            forward="adeptml_heat1d.solver:forward",
            example="adeptml_heat1d.solver:example",
            citation=URL,
        ),
        SolverSpec(
            name="heat1d-conductivity",
            mode="vjp",
            summary="the same rod seen from its conductivity: k in, temperature out",
            x=_conductivity(),
            args=(_initial(differentiable=True), *_loads(differentiable=True)),
            y=TEMPERATURE,
            options=OPTIONS,
            forward="adeptml_heat1d.conductivity:forward",
            vjp="adeptml_heat1d.conductivity:vjp",
            example="adeptml_heat1d.conductivity:example",
            citation=URL,
        ),
        SolverSpec(
            name="heat1d-propagator",
            mode="jacobian",
            summary="the same rod for one material: the Jacobian is the propagator exp(-t K / M)",
            x=_initial(),
            args=(_conductivity(batched=False), *_loads(differentiable=False)),
            y=TEMPERATURE,
            options=OPTIONS,
            forward="adeptml_heat1d.propagator:forward",
            jacobian="adeptml_heat1d.propagator:jacobian",
            example="adeptml_heat1d.propagator:example",
            citation=URL,
        ),
    ]

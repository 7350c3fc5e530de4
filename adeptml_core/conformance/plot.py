"""Pictures of step sweeps: small ones in SVG for the page, a figure by matplotlib for a file."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from adeptml_core.conformance.records import SolverReport
from adeptml_core.errors import AdeptmlError

__all__ = ["as_svg", "require_matplotlib", "save_figure"]

Curve = Mapping[str, Any]
Points = list[tuple[float, float]]

WIDTH, HEIGHT = 360.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 10.0, 34.0
LOWEST, HIGHEST = 1e-17, 1e4  # relative errors beyond are cut off


# ---- SVG ----------------------------------------------------------------------------------------


class _Axes:
    """From steps and errors to places in the picture, both by their logarithms."""

    def __init__(self, curve: Curve) -> None:
        steps = [h for line in curve["lines"] for h in line["step"]]
        values = [v for line in curve["lines"] for v in _values(line)] + [curve["tolerance"]]
        self.x = _decades(steps or [1.0])
        self.y = _decades([min(max(v, LOWEST), HIGHEST) for v in values])

    def place(self, step: float, value: float) -> tuple[float, float]:
        value = min(max(value, 10.0 ** self.y[0]), 10.0 ** self.y[1])
        across = (math.log10(step) - self.x[0]) / (self.x[1] - self.x[0])
        up = (math.log10(value) - self.y[0]) / (self.y[1] - self.y[0])
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )


def _values(line: Mapping[str, Any]) -> Iterator[float]:
    return (v for key in ("error", "remainder") for v in line[key] if v is not None)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def as_svg(curve: Curve) -> str:
    """Return the picture of one array's sweep; its colours are the page's, by class."""
    axes = _Axes(curve)
    parts = [*_grid(axes), *_tolerance(axes, curve["tolerance"])]
    for line in sorted(curve["lines"], key=lambda line: bool(line["wrong"])):
        kind = " wrong" if line["wrong"] else ""
        for key in ("remainder", "error"):
            parts.append(_polyline(axes, line["step"], line[key], f"{key}{kind}"))
    label = escape(f"error and remainder against the step: {curve['title']}, {curve['dtype']}")
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _grid(axes: _Axes) -> Iterator[str]:
    bottom, left = HEIGHT - BOTTOM, LEFT
    for decade in _ticks(axes.x):
        x, _ = axes.place(10.0**decade, 10.0 ** axes.y[0])
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP:g}" y2="{bottom:g}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 14:g}" text-anchor="middle">{_power(decade)}</text>'
    for decade in _ticks(axes.y):
        _, y = axes.place(10.0 ** axes.x[0], 10.0**decade)
        yield (
            f'<line class="grid" x1="{left:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        yield f'<text x="{left - 6:g}" y="{y + 3:.1f}" text-anchor="end">{_power(decade)}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle:g}" y="{HEIGHT - 4:g}" text-anchor="middle">step h</text>'


def _ticks(span: tuple[int, int]) -> range:
    low, high = span
    return range(low, high + 1, max(1, math.ceil((high - low) / 5)))


def _power(decade: int) -> str:
    return f'10<tspan dy="-4" font-size="75%">{decade}</tspan>'


def _tolerance(axes: _Axes, tolerance: float) -> Iterator[str]:
    x1, y = axes.place(10.0 ** axes.x[0], tolerance)
    yield f'<line class="limit" x1="{x1:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
    yield (
        f'<text class="limit" x="{WIDTH - RIGHT - 4:g}" y="{y - 4:.1f}" text-anchor="end">'
        f"tolerance {tolerance:g}</text>"
    )


def _polyline(axes: _Axes, steps: Iterable[float], values: Iterable[Any], kind: str) -> str:
    places = [axes.place(h, v) for h, v in zip(steps, values, strict=True) if v is not None]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="{kind}" points="{points}"/>' if len(places) > 1 else ""


# ---- matplotlib ---------------------------------------------------------------------------------

INK = {"error": ("-", 1.4), "remainder": ("--", 0.9)}


def require_matplotlib() -> None:
    """Say what to install, before minutes of work are done for a picture that cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise AdeptmlError(
            "--plot draws with matplotlib, which is not installed: pip install 'adeptml-core[plot]'"
        ) from error


def save_figure(reports: Sequence[SolverReport], file: str | Path) -> None:
    """Draw one panel for each array and dtype of each solver, and write the figure to `file`.

    Raises
    ------
    AdeptmlError
        matplotlib is missing, nothing was measured, or the file's ending is none that it knows.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    panels = [(report, curve) for report in reports for curve in report.curves]
    if not panels:
        raise AdeptmlError(f"nothing was measured, so there is nothing to draw in {file}")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (report, curve) in zip(axes, panels, strict=False):
        _panel(ax, report, curve)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    try:
        figure.savefig(file, dpi=150)
    except ValueError as error:
        raise AdeptmlError(f"cannot draw {file}: {error}") from error


def _panel(ax: Any, report: SolverReport, curve: Curve) -> None:
    seen: set[str] = set()
    for line in curve["lines"]:
        for key, (style, width) in INK.items():
            label = f"{key}, wrong" if line["wrong"] else key
            ax.loglog(
                line["step"],
                [math.nan if v is None else v for v in line[key]],
                style,
                lw=width + 0.8 * line["wrong"],
                color="tab:red" if line["wrong"] else "tab:blue",
                alpha=1.0 if line["wrong"] or key == "error" else 0.6,
                label=None if label in seen else label,
            )
            seen.add(label)
    ax.axhline(curve["tolerance"], color="gray", lw=0.8, ls=":", label="tolerance")
    ax.set_title(f"{report.name}: {curve['title']}, {curve['dtype']}: {curve['status']}", size=9)
    ax.set_xlabel("step h, in spreads of the data", size=8)
    ax.set_ylabel("relative to the gradient", size=8)
    ax.tick_params(labelsize=7)
    ax.grid(visible=True, which="major", alpha=0.25)

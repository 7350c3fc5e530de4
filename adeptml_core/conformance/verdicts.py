"""From measurements to a finding: the gradient of one array, judged and explained."""

from typing import Any

import numpy as np

from adeptml_core.conformance.curves import curve_of
from adeptml_core.conformance.diagnosis import diagnose, locate
from adeptml_core.conformance.gradients import Examination, examine
from adeptml_core.conformance.probe import Probe
from adeptml_core.conformance.records import Finding, failed, inconclusive, passed, skipped

__all__ = ["check_gradient", "finding_of"]

UNSEEN = {"float64": 1e-3, "float32": 1e-2, "float16": 0.2}
"""Where most probes cannot see errors below this, a right gradient is not told from a wrong one."""

QUANTILE = 0.3
CLEARLY = 10.0
TINY = 1e-200
SLOPE_ERRORS, SLOPE_TOLERANCES = 10.0, 30.0
FEW, MOST_AGREE = 8, 0.8  # probes that can see a factor, and how many of them must show it


def check_gradient(
    probe: Probe, index: int, dtype: Any, *, directions: int | None = None
) -> Finding:
    """Catch a gradient that is not the derivative of the forward."""
    dtype = np.dtype(dtype)
    examined = examine(probe, index, dtype, directions=directions, thorough=dtype == probe.dtype)
    finding = finding_of(examined)
    probe.curves.append(curve_of(examined, str(finding.status)))
    if dtype != probe.dtype and finding.status == "inconclusive":
        return skipped(f"{finding.message} Decided in {probe.dtype}.", **dict(finding.data))
    return finding


def finding_of(examined: Examination) -> Finding:
    """Return what an examination amounts to."""
    judged = examined.judged
    if examined.wrong.any() or any(block.wrong.any() for block in examined.blocks):
        return _failed(examined)
    measured = np.isfinite(judged.bar)
    if not measured.any():
        return inconclusive(
            "no point gave a finite result on both sides: nothing to take differences of. Declare "
            "bounds with room inside, or an example away from the edge."
        )
    if _slope_is_off(examined):
        return _failed(examined)
    return _undecided(examined) or _passed(examined)


def _passed(examined: Examination) -> Finding:
    judged = examined.judged
    clear = np.isfinite(judged.bar) & ~judged.kinked & ~examined.rough
    worst = float(np.max(np.where(clear & ~judged.suspect, judged.relative, 0.0), initial=0.0))
    median = float(np.median(judged.resolution[np.isfinite(judged.bar)]))
    claimed = examined.probe.spec.tolerance
    note = f", as claimed: tolerance={claimed:g}" if claimed else ""
    return passed(
        f"{judged.error.size} probes, typical error bar {median:.0e}, "
        f"tolerance {examined.tolerance:g}{note}",
        probes=judged.error.size,
        worst=worst,
        bar=median,
        tolerance=examined.tolerance,
    )


def _undecided(examined: Examination) -> Finding | None:
    """Return why nobody can tell: noise, kinks, or jumps; and what would decide it."""
    judged, name = examined.judged, examined.bench.dtype.name
    limit = max(UNSEEN[name], examined.probe.spec.tolerance or 0.0)
    at_example = examined.is_example if examined.is_example.any() else slice(None)
    seen = float(np.quantile(judged.resolution[at_example], QUANTILE))
    if seen > limit:
        where = np.abs(examined.measured.value)[at_example]
        return inconclusive(
            f"the solver's own noise hides differences below {seen:.0e} of the gradient (at best; "
            f"y is about {np.median(where):.1e}). Tighten its tolerance, or declare "
            "tolerance= if that is the accuracy that you claim.",
            resolution=seen,
            limit=limit,
        )
    rough = np.where(examined.rough, judged.relative, 0.0)
    if rough.max(initial=0.0) > CLEARLY * limit:
        return inconclusive(
            f"the value jumps along the lines tried, which explains disagreements up to "
            f"{rough.max():.0e}. Tighten the solver's tolerance, or declare tolerance=.",
            disagreement=float(rough.max()),
        )
    if judged.kinked[at_example].mean() > 0.5:
        return inconclusive(
            "most points tried lie at a kink, where there is no derivative. Let the example give "
            "points away from it."
        )
    return None


def _slope_is_off(examined: Examination) -> bool:
    """Tell whether all probes together show a factor that each alone cannot: ``p = b q``."""
    judged = examined.judged
    good = np.isfinite(judged.bar) & (judged.resolution < 0.3) & ~judged.kinked & ~examined.rough
    good &= judged.scale > TINY
    if good.sum() < 20:
        return False
    weight = 1 / (judged.resolution[good] + examined.tolerance) / judged.scale[good]
    p, q = judged.claimed[good] * weight, judged.slope[good] * weight
    if not np.any(q):
        return False
    slope = float(p @ q / (q @ q))
    error = float(np.sqrt(np.sum((p - slope * q) ** 2) / (len(p) - 1) / (q @ q)))
    if abs(slope - 1) <= SLOPE_ERRORS * error + SLOPE_TOLERANCES * examined.tolerance:
        return False
    # A factor shows wherever it can be seen; a few probes with too small a bar are no factor.
    clear = np.abs(judged.slope[good]) * abs(slope - 1) > 3 * judged.bar[good]
    ratio = judged.claimed[good][clear] / judged.slope[good][clear] - 1
    agree = (ratio > 0.3 * (slope - 1)) if slope > 1 else (ratio < 0.3 * (slope - 1))
    return len(ratio) >= FEW and bool(agree.mean() > MOST_AGREE)


def _failed(examined: Examination) -> Finding:
    probe = examined.probe
    reading = diagnose(examined)
    entry = locate(examined)
    lines = [reading.sentence]
    data: dict[str, Any] = {
        "dtype": examined.bench.dtype.name,
        "tolerance": examined.tolerance,
        "look_at": f"{probe.where()}: {reading.look_at}",
    }
    wrong = np.argwhere(examined.wrong)
    if len(wrong):
        data["point"] = examined.labels[wrong[0][0]]
        data["step"] = float(examined.judged.step[tuple(wrong[0])])
    index = expected = got = None
    if entry is not None and entry.relative > examined.tolerance:
        index, expected, got = entry.index, entry.expected, entry.returned
        data |= {"relative_error": entry.relative, "bar": entry.bar, "output": entry.output}
        output = f" of y{list(entry.output)}" if entry.output else ""
        where = f"{list(entry.index)}" if entry.index else ""
        lines.append(
            f"worst entry {where}{output}: returned {got:.6g}, differences say {expected:.6g} "
            f"± {entry.bar:.0e} (relative error {entry.relative:.2g})"
        )
    lines.append(f"look at: {data['look_at']}")
    return failed(
        "\n".join(lines),
        reading.diagnosis,
        array=probe.name(examined.index),
        index=index,
        expected=expected,
        got=got,
        **data,
    )

"""The proof: can a solver be trusted? Checks, one function each, a runner, and reports.

Three parts, three verdicts. The *static* part looks at the plugin without running it; the
*contract* part probes the laws on which core relies; the *gradient* part compares every derivative
with differences. Each check ends as passed, failed or inconclusive (the solver's own noise hides
what was looked for), or is skipped, with the reason. A failure comes with a diagnosis, the place
and the two values.

====================  =====================================================================
module                holds
====================  =====================================================================
statics               what can be told without running the solver
basics                the example, shapes, dtypes, finiteness, precision
ownership             inputs that are written to, results that change later
pullbacks             determinism; pullbacks that are repeated, late, scaled
batches               rows, batch sizes, shared args
ranges                bounds and special values
tangents              jvp and hvp
settings              options other than the defaults
surroundings          global state, threads
gradients             where gradients are examined; verdicts: what that amounts to
lines, differences    evaluation along lines; slopes with error bars
judgement, jacobian   when a slope is wrong; the whole Jacobian, compressed
diagnosis             what is wrong
probe                 the solver under examination: calls counted, inputs drawn and stacked
runner                which checks run, in which order
isolation, worker     one process for each solver: this side, and the far side
records, text, page   findings; as text, as a page
curves, plot          step sweeps, and their pictures
====================  =====================================================================

Nothing here imports torch.
"""

from adeptml_core.conformance.records import Diagnosis, Finding, Record, SolverReport, Status
from adeptml_core.conformance.runner import Check, Run, Settings, check_ids, checks_of
from adeptml_core.conformance.statics import Subject

__all__ = [
    "Check",
    "Diagnosis",
    "Finding",
    "Record",
    "Run",
    "Settings",
    "SolverReport",
    "Status",
    "Subject",
    "check_ids",
    "checks_of",
]

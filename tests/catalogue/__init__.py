"""Solvers whose verdict is known: healthy ones, awkward ones, and ones with a defect."""

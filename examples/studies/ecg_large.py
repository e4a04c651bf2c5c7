"""ECG, synthetic cohort, at the paper's size: the cells of :mod:`examples.studies.ecg_synthetic` with its encoder, on a GPU."""

from __future__ import annotations

from examples.studies.ecg_synthetic import Plan, report, run, tasks

__all__ = ["Plan", "report", "run", "tasks"]

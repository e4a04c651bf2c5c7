"""PPI, real: ``configs/ppi/ohmnet_meta.yaml`` as it stands, cell by cell; the cells of :mod:`examples.studies.ppi_real`."""

from examples.studies.ppi_real import Plan, report, run, tasks

__all__ = ["Plan", "report", "run", "tasks"]

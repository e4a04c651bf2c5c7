"""Pictures and pages: 12-lead plots on ECG paper and self-contained HTML reports.

The names below load matplotlib and jinja2 only when a picture or a page is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecgmeta.report.content import AugmenterSummary as AugmenterSummary
    from ecgmeta.report.content import Curve as Curve
    from ecgmeta.report.content import DatasetSummary as DatasetSummary
    from ecgmeta.report.content import Estimate as Estimate
    from ecgmeta.report.content import Histogram as Histogram
    from ecgmeta.report.content import LabelScore as LabelScore
    from ecgmeta.report.content import Parameter as Parameter
    from ecgmeta.report.content import ReportContent as ReportContent
    from ecgmeta.report.content import ResultRow as ResultRow
    from ecgmeta.report.content import ResultsTable as ResultsTable
    from ecgmeta.report.content import ViewPair as ViewPair
    from ecgmeta.report.page import render as render
    from ecgmeta.report.page import write as write
    from ecgmeta.report.paper import plot_ecg as plot_ecg

_HOMES = {
    "AugmenterSummary": "content",
    "Curve": "content",
    "DatasetSummary": "content",
    "Estimate": "content",
    "Histogram": "content",
    "LabelScore": "content",
    "Parameter": "content",
    "ReportContent": "content",
    "ResultRow": "content",
    "ResultsTable": "content",
    "ViewPair": "content",
    "plot_ecg": "paper",
    "render": "page",
    "write": "page",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

"""Records in, ``(leads, samples)`` float32 millivolts with labels and metadata out.

Every source is an `ECGDataset`: `PTBXL`, `WFDBFolder`, `LUDB`, `ArrayDataset`, `SyntheticCohort`. Names are loaded on first
use, so importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecgmeta.data.auditing.audit import audit
    from ecgmeta.data.dataset import ECGDataset, concat
    from ecgmeta.data.sources.arrays import ArrayDataset
    from ecgmeta.data.sources.ludb import LUDB
    from ecgmeta.data.sources.ptbxl import PTBXL
    from ecgmeta.data.sources.wfdb_folder import WFDBFolder
    from ecgmeta.data.synthetic import SyntheticCohort

_HOMES = {
    "PTBXL": "ecgmeta.data.sources.ptbxl",
    "WFDBFolder": "ecgmeta.data.sources.wfdb_folder",
    "LUDB": "ecgmeta.data.sources.ludb",
    "ArrayDataset": "ecgmeta.data.sources.arrays",
    "SyntheticCohort": "ecgmeta.data.synthetic",
    "ECGDataset": "ecgmeta.data.dataset",
    "concat": "ecgmeta.data.dataset",
    "audit": "ecgmeta.data.auditing.audit",  # the package has another name, which would hide the function
}

__all__ = ["LUDB", "PTBXL", "ArrayDataset", "ECGDataset", "SyntheticCohort", "WFDBFolder", "audit", "concat"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

"""Records in, ``(leads, samples)`` float32 millivolts with labels and metadata out.

Every source is an `ECGDataset`: `PTBXL`, `WFDBFolder`, `LUDB`, `CODE15`, `LongRecords` and `MITBIH`, `ArrayDataset`,
`SyntheticCohort`; your own is a `RecordSource` in a `SourceDataset`. Names are loaded on first use, so importing this package
costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecgmeta.data.auditing.audit import audit
    from ecgmeta.data.dataset import ECGDataset, concat
    from ecgmeta.data.load import RecordSource, SourceDataset
    from ecgmeta.data.preprocess import Preprocess
    from ecgmeta.data.sources.arrays import ArrayDataset
    from ecgmeta.data.sources.code15 import CODE15
    from ecgmeta.data.sources.long_records import MITBIH, LongRecords
    from ecgmeta.data.sources.ludb import LUDB, read_delineation
    from ecgmeta.data.sources.ptbxl import PTBXL
    from ecgmeta.data.sources.wfdb_folder import WFDBFolder
    from ecgmeta.data.synthetic import SyntheticCohort

_HOMES = {
    "PTBXL": "ecgmeta.data.sources.ptbxl",
    "WFDBFolder": "ecgmeta.data.sources.wfdb_folder",
    "LUDB": "ecgmeta.data.sources.ludb",
    "read_delineation": "ecgmeta.data.sources.ludb",
    "CODE15": "ecgmeta.data.sources.code15",
    "LongRecords": "ecgmeta.data.sources.long_records",
    "MITBIH": "ecgmeta.data.sources.long_records",
    "RecordSource": "ecgmeta.data.load",
    "SourceDataset": "ecgmeta.data.load",
    "ArrayDataset": "ecgmeta.data.sources.arrays",
    "SyntheticCohort": "ecgmeta.data.synthetic",
    "ECGDataset": "ecgmeta.data.dataset",
    "Preprocess": "ecgmeta.data.preprocess",
    "concat": "ecgmeta.data.dataset",
    "audit": "ecgmeta.data.auditing.audit",  # the package has another name, which would hide the function
}

__all__ = [
    "CODE15",
    "LUDB",
    "MITBIH",
    "PTBXL",
    "ArrayDataset",
    "ECGDataset",
    "LongRecords",
    "Preprocess",
    "RecordSource",
    "SourceDataset",
    "SyntheticCohort",
    "WFDBFolder",
    "audit",
    "concat",
    "read_delineation",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

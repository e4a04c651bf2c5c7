"""Scores with patient-bootstrap intervals, the linear probe, fine-tuning and label sweeps. Names load on first use (PEP 562).

The module that defines ``finetune`` is called ``finetuning``: were it ``finetune.py``, importing it would
replace the function of that name in this package by the module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ecgmeta.evaluation.cells import Cell, CellResult
    from ecgmeta.evaluation.finetuning import finetune
    from ecgmeta.evaluation.metrics import (
        Difference,
        LabelScore,
        Scores,
        multilabel_scores,
        paired_difference,
    )
    from ecgmeta.evaluation.predictor import Labelled, Predictor
    from ecgmeta.evaluation.probe import linear_probe
    from ecgmeta.evaluation.sweep import Arm, label_sweep

_HOME = {
    "Arm": "sweep",
    "Cell": "cells",
    "CellResult": "cells",
    "Difference": "metrics",
    "LabelScore": "metrics",
    "Labelled": "predictor",
    "Predictor": "predictor",
    "Scores": "metrics",
    "finetune": "finetuning",
    "label_sweep": "sweep",
    "linear_probe": "probe",
    "multilabel_scores": "metrics",
    "paired_difference": "metrics",
}

__all__ = [
    "Arm",
    "Cell",
    "CellResult",
    "Difference",
    "LabelScore",
    "Labelled",
    "Predictor",
    "Scores",
    "finetune",
    "label_sweep",
    "linear_probe",
    "multilabel_scores",
    "paired_difference",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

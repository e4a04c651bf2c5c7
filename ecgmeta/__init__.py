"""Pre-training whose hyperparameters learn, by hypergradient, what fine-tuning needs.

``import ecgmeta`` loads no torch: the rooms (``ecgmeta.bilevel``, ``ecgmeta.data``, ...) are imported when they are named.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from ecgmeta._version import __version__ as __version__

_ROOMS = ("augment", "bilevel", "data", "encoders", "evaluation", "experiment", "report", "runtime", "simclr")


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"ecgmeta.{name}")
    raise AttributeError(f"module 'ecgmeta' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])

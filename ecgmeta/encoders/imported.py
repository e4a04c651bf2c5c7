"""Your own network as an encoder, named by where it is imported from."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Self

import torch
from torch import Tensor, nn

from ecgmeta.encoders.base import Encoder
from ecgmeta.runtime.errors import InputError

_PROBE_SECONDS = 10.0


class ImportedEncoder(Encoder):
    """A user's ``nn.Module`` under the encoders' roof: it sees normalised records and gives features or feature maps.

    Its class is constructed with ``leads=...``, with those of width, norm, fs and lead_names that its signature names (whatever
    its own defaults are), and with ``settings``. A saved one holds the import path, so whoever loads it needs the class too.

    Args:
        path: ``"mypackage.module:Class"``.
        leads, fs, lead_names, preprocess: see :class:`~ecgmeta.encoders.base.Encoder`.
        width, norm: for a class that takes them.
        settings: further arguments of the class, JSON-ready.

    Shapes: (batch, leads, samples) in mV -> features (batch, ``num_features``). The user's module may return (batch, features)
    or (batch, features, frames); ``num_features`` is its own attribute of that name or else found by one forward pass.

    Raises:
        InputError: the class cannot be imported or constructed, is no ``nn.Module``, or returns something else.
    """

    def __init__(
        self,
        path: str,
        leads: int = 12,
        width: int = 32,
        norm: str = "batch",
        fs: float = 100.0,
        lead_names: tuple[str, ...] | None = None,
        preprocess: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(leads, fs, lead_names, preprocess)
        self.path = path
        offered = {"width": width, "norm": norm, "fs": fs, "lead_names": self.lead_names}
        # Not "module", which the hub's mixin takes for a wrapper to be left out.
        self.network = _construct(path, {"leads": leads}, offered, dict(settings or {}))
        said = getattr(self.network, "num_features", None)
        self.num_features = said if isinstance(said, int) else self._probe()

    def initialise(self, generator: torch.Generator) -> Self:
        """Itself: the module has drawn its weights in its constructor."""
        return self

    def maps(self, x: Tensor) -> Tensor:
        out = self.network(x)
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if not isinstance(out, Tensor) or out.ndim not in (2, 3) or out.shape[1] != self.num_features:
            expected = f"(batch, {self.num_features}) or (batch, {self.num_features}, frames)"
            raise InputError(self.path, "output", found, expected)
        return out.unsqueeze(-1) if out.ndim == 2 else out

    @torch.no_grad()
    def _probe(self) -> int:
        seconds = self.preprocess.get("duration", _PROBE_SECONDS)
        training = self.network.training
        out = self.network.eval()(torch.zeros(2, self.leads, round(seconds * self.fs)))
        self.network.train(training)
        if not isinstance(out, Tensor) or out.ndim not in (2, 3) or len(out) != 2:
            found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InputError(self.path, "output", found, "(batch, features) or (batch, features, frames)")
        return out.shape[1]


def _construct(
    path: str, required: dict[str, Any], offered: dict[str, Any], settings: dict[str, Any]
) -> nn.Module:
    cls = _class(path)
    parameters = inspect.signature(cls).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    arguments = {**required, **{n: v for n, v in offered.items() if takes_any or n in parameters}, **settings}
    for name in arguments:
        if name not in parameters and not takes_any:
            raise InputError(path, name, "an argument it does not take", f"one of {list(parameters)}")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(path, "constructor", error, f"a class that takes {sorted(arguments)}") from error


def _class(path: str) -> type[nn.Module]:
    """The class that an import path names. Modules only: a saved configuration must not be able to call anything else."""
    module, _, name = path.partition(":")
    if not module or not name.isidentifier():
        raise InputError("encoder", "name", repr(path), "an import path mypackage.module:Class")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        expected = f"a class that can be imported: install {module.partition('.')[0]!r} or put its folder on PYTHONPATH"
        raise InputError(path, "import", error, expected) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise InputError(path, "class", f"{found!r}", "a subclass of torch.nn.Module")
    return found

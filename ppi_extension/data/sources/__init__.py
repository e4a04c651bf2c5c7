"""Where protein graphs and functions come from: one file a format, one call shape.

Each module has ``Options``, a dataclass of plain values, and ``read(path, options, report) -> SourceData``. A source of your
own is such a module, entered in `SOURCES`. Whatever is wrong in a file is an InputError that names the file and, where it has
lines, the line.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.progress import Report

if TYPE_CHECKING:
    from ppi_extension.data.builder import BuildSettings
    from ppi_extension.data.species import SourceData
    from ppi_extension.data.store import EgoStore


@dataclass(frozen=True)
class Source:
    """A format.

    Attributes:
        name: as the command line calls it.
        reads: what ``path`` is.
    """

    name: str
    reads: str

    @property
    def options(self) -> type[Any]:
        """The dataclass of its options."""
        return self._module().Options

    def read(self, path: Path | str, options: Any = None, report: Report | None = None) -> SourceData:
        """All that it has.

        Args:
            path: see `reads`.
            options: of the class `options`; None: the defaults.
            report: is told how far it is.

        Raises:
            InputError: a file that is missing, cut off or malformed; options that do not fit the files.
        """
        return self._module().read(Path(path), self.options() if options is None else options, report)

    def _module(self) -> Any:
        return importlib.import_module(f"{__name__}.{self.name}")  # pandas, torch: only for what is read


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("string", "a folder of STRING's links.detailed and enrichment.terms files"),
        Source("gaf", "a folder of STRING's links.detailed and aliases files, GAF files and go-basic.obo"),
        Source("ogb", "the folder of ogbn-proteins, with its raw CSV files"),
        Source("ohmnet", "ppi_ohmnet24.npz, or a folder of OhmNet's edge lists and label files"),
        Source("hu", "geometric_data_processed.pt of Hu et al."),
    )
}


def find_source(name: str) -> Source:
    """Raises InputError for a name that is none, with the nearest."""
    if name not in SOURCES:
        nearest = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.0)[0]
        raise InputError(
            "source", "name", repr(name), f"one of {', '.join(SOURCES)}; the nearest is {nearest!r}"
        )
    return SOURCES[name]


def read_source(name: str, path: Path | str, *, report: Report | None = None, **options: Any) -> SourceData:
    """``read_source("string", "string/", taxa=[9606])``: a source by its name, its options as keywords.

    Raises:
        InputError: see `Source.read`; an unknown name or option, an option of another type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    source = find_source(name)
    known = [field.name for field in fields(source.options)]
    for key in options:
        if key not in known:
            raise InputError(f"source {name}", key, "an unknown option", f"one of {', '.join(known)}")
    try:
        checked = OmegaConf.to_object(OmegaConf.structured(source.options(**options)))
    except OmegaConfBaseException as error:
        key = error.full_key or "options"
        raise InputError(f"source {name}", key, repr(options.get(key)), str(error).splitlines()[0]) from None
    return source.read(path, checked, report)


def store_of(
    data: SourceData,
    folder: Path | str,
    settings: BuildSettings | None = None,
    *,
    notes: Mapping[str, Any] | None = None,
    processes: int | None = None,
    report: Report | None = None,
) -> EgoStore:
    """The store of what a source read: ego graphs are cut (`builder.build`), or written as they are where it has them ready.

    Args:
        notes: to keep with it.

    Raises:
        InputError: see `builder.build`; settings for ego graphs that are ready.
    """
    from ppi_extension.data.builder import build
    from ppi_extension.data.sources.hu import HuGraphs

    if not isinstance(data, HuGraphs):
        return build(data, folder, settings, notes=notes, processes=processes, report=report)
    if settings is not None and settings != type(settings)():
        raise InputError(
            "build", "settings", "some", "none: these ego graphs are ready-made, with their tasks"
        )
    return data.write(folder, notes, report)

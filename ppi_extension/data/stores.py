"""What the commands ``ppi-extension data`` do: build a store from a source, describe it, write the planted problem."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import asdict, field, fields, make_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.config import load_config
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.progress import progress_bar, say
from ppi_extension.data.builder import BuildSettings
from ppi_extension.data.sources import SOURCES, find_source, store_of
from ppi_extension.data.tables import read_lines

if TYPE_CHECKING:
    from rich.table import Table

    from ppi_extension.data.store import EgoStore

READY = "hu"  # its ego graphs are not cut here, so nothing about them is to be set
_NAME = 40  # characters of a name that a narrow terminal shows without many lines
_LISTS = ("pretrain_terms", "finetune_terms")  # files, given by options of their own


def build_store(
    name: str,
    path: Path,
    out: Path,
    overrides: Sequence[str] = (),
    pretrain_terms: Path | None = None,
    finetune_terms: Path | None = None,
) -> EgoStore:
    """The store of a source, at ``out``.

    Args:
        name: of the source.
        path: what it reads.
        overrides: key=value of its options and of `BuildSettings`.
        pretrain_terms, finetune_terms: files with a term a line: the tasks; for ready-made ego graphs, their names.

    Raises:
        InputError: an unknown source or key, a value of another type, anything wrong in the files, something at ``out``.
    """
    _check_free(out)
    source = find_source(name)
    lists = {"pretrain_terms": pretrain_terms, "finetune_terms": finetune_terms}
    if name == READY:
        values = {key: None if file is None else str(file) for key, file in lists.items()}
        settings = None
        if overrides:
            expected = f"no keys: the ego graphs of {READY} are taken as they are"
            raise InputError("command line", overrides[0].partition("=")[0], "an unknown key", expected)
    else:
        values = asdict(load_config(_schema(source.options(), BuildSettings()), overrides=overrides))
        chosen: dict[str, Any] = {key: _terms(file) for key, file in lists.items()}
        chosen |= {item.name: values.pop(item.name) for item in fields(BuildSettings) if item.name in values}
        settings = BuildSettings(**chosen)
    with progress_bar() as report:
        data = source.read(path, source.options(**values), report)
        for note in data.notes:
            say(note)
        notes = {"source": name, "options": values, "read": data.notes}
        return store_of(data, out, settings, notes=notes, report=report)


def _schema(*groups: Any) -> type[Any]:
    """A dataclass with the fields and values of several, for `load_config`; frozen ones would not take overrides."""
    keys = []
    for group in groups:
        kinds = get_type_hints(type(group))
        for item in fields(group):
            if item.name not in _LISTS:
                default = partial(copy, getattr(group, item.name))
                keys.append((item.name, kinds[item.name], field(default_factory=default)))
    return make_dataclass("Keys", keys)


def _check_free(out: Path) -> None:
    """Raise InputError where something stands: said now, not after reading for minutes."""
    if out.exists():
        raise InputError(out, "output folder", "something stands there", "a new folder")


def _terms(file: Path | None) -> tuple[str, ...] | None:
    if file is None:
        return None
    terms = tuple(text.strip() for _, text in read_lines(file) if text.strip())
    if not terms:
        raise InputError(file, "terms", "none", "one a line")
    return terms


def source_table() -> Table:
    """Sources with their keys and defaults."""
    from rich.table import Table

    table = Table(
        "source", "PATH is", "key", "default", title="ppi-extension data build SOURCE PATH OUT key=value"
    )
    for source in SOURCES.values():
        _add_keys(table, source.name, source.reads, source.options())
    _add_keys(table, f"all but {READY}", "how ego graphs are cut and tasks chosen", BuildSettings())
    return table


def _add_keys(table: Table, name: str, reads: str, defaults: Any) -> None:
    """A section of a table: the keys of one dataclass."""
    keys = [item.name for item in fields(defaults) if item.name not in _LISTS]
    rows = [(key, str(getattr(defaults, key))) for key in keys] or [("", "")]
    for head, row in zip([(name, reads), *[("", "")] * len(rows)], rows, strict=False):
        table.add_row(*head, *row)
    table.add_section()


def store_tables(store: EgoStore) -> Iterator[Table]:
    """What a store holds: a table of graphs, one of tasks."""
    from rich.table import Table

    size = sum(part["bytes"] for part in store.info["arrays"].values())
    title = f"{store.folder}: {len(store):,} ego graphs, {size / 1e6:,.1f} MB, {size / len(store):,.0f} bytes each"
    channels = f"evidence: {', '.join(store.channel_names) or 'none'}"
    table = Table("graph", "taxon", "ego graphs", "genes", "nodes", "edges", title=title, caption=channels)
    genes, graph, taxa = store.genes, store.graph, store.info["graphs"]
    for name in store.graph_names:
        here = graph == name
        if here.any():
            counts = (int(here.sum()), len(np.unique(genes[here])))
            means = (store.nodes[here].mean(), store.edges[here].mean())
            shown = [f"{count:,}" for count in counts] + [f"{mean:.1f}" for mean in means]
            table.add_row(name, str(taxa[name]), *shown)
    yield table
    dropped = len(store.info["settings"].get("dropped_terms", ()))
    caption = f"left out, as they would give a fine-tuning task away: {dropped}"
    table = Table("tasks", "number", "positive", "negative", "unlabelled", "for example", caption=caption)
    for which in ("pretrain", "finetune"):
        terms = store.terms(which)
        positive, negative = store.counts(which)
        unknown = 1 - (positive + negative).sum() / max(1, len(terms) * len(store))
        cells = (_spread(positive), _spread(negative), f"{unknown:.0%}")
        names = [store.term_names.get(term, term) for term in terms[:2]]
        named = ", ".join(
            name if len(name) <= _NAME else term for name, term in zip(names, terms, strict=False)
        )
        table.add_row(which, f"{len(terms):,}", *cells, named)
    yield table


def _spread(counts: NDArray[np.int64]) -> str:
    """Median and range over tasks."""
    if not len(counts):
        return ""
    return f"{np.median(counts):,.0f} ({counts.min():,}-{counts.max():,})"


def synthesise(out: Path, overrides: Sequence[str] = (), seed: int = 0) -> EgoStore:
    """The store of the planted problem; its notes say of what kind each pre-training task is.

    Args:
        overrides: key=value of `PlantedSettings`.

    Raises:
        InputError: something stands there, an unknown key, sizes that the problem cannot have.
    """
    _check_free(out)
    from ppi_extension.data.synthetic import PlantedSettings, build_planted

    settings = load_config(_schema(PlantedSettings()), overrides=overrides)
    with progress_bar() as report:
        return build_planted(out, PlantedSettings(**asdict(settings)), seed, report=report)

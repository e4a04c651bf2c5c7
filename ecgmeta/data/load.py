"""How a source of records becomes a dataset: index, labels, windows, cache, once for all sources.

Your own source is one small class::

    class MySource(RecordSource):
        name = "mine"

        def index(self, fail):     # one row a record: record, path (relative to root), patient, age, sex, fold, codes ...
        def read(self, row):       # the whole record: Record(path, (leads, samples) mV, fs, leads)
        def labels(self, index):   # (records, labels) 0/1 and their names, in a fixed order

    data = SourceDataset(MySource("folder/"), fs=100)

``window_labels`` is for long records whose windows differ in their labels. ``examples/05_your_own_source.py`` is such a class.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecgmeta.data.dataset import ECGDataset
from ecgmeta.data.leads import lead_tuple
from ecgmeta.data.preprocess import Preprocess, Window
from ecgmeta.data.records import Record
from ecgmeta.data.store import ArrayStore, SignalStore, ViewStore
from ecgmeta.runtime.errors import InputError

Row = tuple[int, int, int, str, float]  # of the table of windows, see `Reading`
Progress = Callable[[int, int, str], None]  # (done, total, text)
Fail = Callable[[InputError], None]  # raises, or notes the record and goes on
Labels = tuple[NDArray[np.float32], tuple[str, ...]]  # (records or windows, labels) of 0 and 1, and the names


class LoadOptions(TypedDict, total=False):
    """Keywords every source of records takes beside its own; see `Preprocess` for what the first ten mean.

    min_positives: keep only labels that at least this many records (long records: windows) have, order unchanged.
    cache: a folder for the decoded signals; None reads the records each time.
    on_error: ``"raise"`` stops at the first bad record; ``"skip"`` leaves it out and says why in ``.skipped``.
    progress: called as ``progress(done, total, text)`` while records are read.
    """

    leads: tuple[str, ...] | list[str] | None
    duration: float
    windows: Literal["first", "all"]
    short: Literal["pad", "drop", "raise"]
    bad_leads: Literal["error", "zero"]
    max_gap: float
    highpass: float
    lowpass: float
    notch: float
    derive: bool
    min_positives: int
    cache: str | Path | None
    on_error: Literal["raise", "skip"]
    progress: Progress | None


class RecordSource(ABC):
    """A tree of records.

    Args:
        root: its folder.

    Raises:
        InputError: `root` is not a folder.
    """

    name = "records"
    suffixes: tuple[str, ...] = (".hea", ".dat", ".mat", ".csv")
    # Whether `read` may run in a forked process: it keeps nothing, warns of nothing, and never calls torch.
    forks = False

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            found = "a file" if self.root.exists() else "no such folder"
            raise InputError(self.root, "folder", found, f"the root of {self.name}")

    @abstractmethod
    def index(self, fail: Fail) -> pd.DataFrame:
        """One row a record, from headers and tables only, in a fixed order.

        Columns: record, path (relative to the root, unique), and where known patient, source, fold, age, sex, codes (a
        tuple of str) and any others. What cannot be indexed goes to ``fail(error)``.
        """

    @abstractmethod
    def read(self, row: Any) -> Record:
        """The whole record of one row of the index (a named tuple); raises InputError."""

    def labels(self, index: pd.DataFrame) -> Labels:
        """(records, labels) of 0 and 1, and the names in a fixed order. By default no labels."""
        return np.zeros((len(index), 0), dtype=np.float32), ()

    def window_labels(self, index: pd.DataFrame, windows: pd.DataFrame, length: float) -> Labels | None:
        """(windows, labels) of 0 and 1 and the names, where the windows of one record differ. By default None: a window
        has the labels of its record.

        Args:
            index: the records.
            windows: one row a window with row (position in `index`), window, valid_samples, bad_leads, original_fs;
                window k holds the seconds from ``k * length`` to ``(k + 1) * length`` of its record.
            length: s.
        """
        return None

    def notes(self) -> list[str]:
        """What a user should know of the recordings, one sentence each; asked for after they were read."""
        return []

    def keep(self, index: pd.DataFrame, labels: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which records the user asked for (folds, label policy). By default all."""
        return np.ones(len(index), dtype=bool)

    def settings(self) -> dict[str, Any]:
        """What, beside the files, decides the signals and the index: part of the key of the cache."""
        return {}

    def files(self) -> Iterator[tuple[str, int, int]]:
        """(relative path, bytes, modification time in ns) of every file the source may read, in any order."""
        top = os.path.join(self.root, "")
        for folder, _ in folders(self.root):
            with os.scandir(folder) as entries:
                found = [entry for entry in entries if entry.name.endswith(self.suffixes)]
            for entry in found:
                try:
                    stat = entry.stat()
                except OSError:  # a link to nowhere: reading it says so
                    continue
                yield entry.path[len(top) :], stat.st_size, stat.st_mtime_ns


def header_paths(root: Path) -> list[str]:
    """Every ``.hea`` below `root`, relative to it, without the suffix, sorted."""
    top = len(os.path.join(root, ""))
    return sorted(
        os.path.join(folder, name.removesuffix(".hea"))[top:]
        for folder, names in folders(root)
        for name in names
        if name.endswith(".hea")
    )


def folders(root: Path) -> Iterator[tuple[str, list[str]]]:
    """`root` and every folder below it with the names of its files, links followed, each folder once (a link may lead back
    up), in the order of their names."""
    seen: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            below.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        below.sort()
        yield folder, names


class SourceDataset(ECGDataset):
    """The records of a source, read (or taken from the cache) and cut to one length at one rate.

    Args:
        source: where the records come from.
        fs: rate of the result, Hz.
        options: see `LoadOptions`.

    Raises:
        InputError: a bad setting; no record left; with ``on_error="raise"`` the first bad record.
    """

    def __init__(self, source: RecordSource, fs: float = 100.0, **options: Unpack[LoadOptions]) -> None:
        self.preprocess, loader = _settings(source, fs, options)
        signals, index, windows, skipped = loader.load()
        labels, names = source.labels(index)
        wanted = source.keep(index, labels)
        index, labels = index[wanted], labels[wanted]
        # Position of every record among the wanted ones; windows of the others are left out.
        place = np.cumsum(wanted) - 1
        rows = np.flatnonzero(wanted[windows["row"].to_numpy()])
        if not rows.size:
            why = f"; the first of {len(skipped)} skipped: {skipped[0]}" if skipped else ""
            raise InputError(source.root, "records", f"none to use{why}", f"records of {source.name}")
        of = place[windows["row"].to_numpy()[rows]]
        length = self.preprocess.samples / self.preprocess.fs
        chosen = windows.iloc[rows].assign(row=of).reset_index(drop=True)
        own = source.window_labels(index.reset_index(drop=True), chosen, length)
        enough = (labels if own is None else own[0]).sum(axis=0) >= loader.min_positives
        of_window, names = (labels[of], names) if own is None else own
        meta = index.drop(columns=["codes"], errors="ignore").iloc[of].reset_index(drop=True)
        for column in ("window", "valid_samples", "bad_leads", "original_fs"):
            meta[column] = chosen[column]
        super().__init__(
            signals if rows.size == len(windows) else ViewStore(signals, rows),
            of_window[:, enough],
            fs=fs,
            leads=self.preprocess.lead_names,
            label_names=[name for name, keep in zip(names, enough, strict=True) if keep],
            meta=meta,
            source=source.name,
            skipped=skipped,
            notes=source.notes(),
        )


@dataclass(frozen=True)
class Loader:
    """One reading of a source with all its settings."""

    source: RecordSource
    how: Preprocess
    min_positives: int = 0
    cache: Path | None = None
    on_error: Literal["raise", "skip"] = "raise"
    progress: Progress | None = None

    def load(self) -> tuple[SignalStore, pd.DataFrame, pd.DataFrame, list[str]]:
        """Signals, the index, the table of windows (see `Reading`), and what was skipped.

        Without a cache only the records asked for (folds, labels) are read; a cache holds them all, so that every choice
        of folds and labels shares it.
        """
        if self.cache is not None:
            from ecgmeta.data.cache import open_or_build

            return open_or_build(self)
        skipped: list[str] = []
        index = self.index(skipped)
        labels, _ = self.source.labels(index)
        index = index[self.source.keep(index, labels)].reset_index(drop=True)
        signals = np.empty((0, len(self.how.lead_names), self.how.samples), dtype=np.float32)
        reading = Reading(self, list(index.itertuples(index=False)), skipped)
        for number, window in enumerate(reading):
            if number == len(signals):  # memory never written to costs nothing, so start at the likely number
                bigger = np.empty((max(len(index), 2 * number, 1), *signals.shape[1:]), dtype=np.float32)
                bigger[:number] = signals
                signals = bigger
            signals[number] = window.signal
        return ArrayStore(signals[: len(reading.rows)]), index, reading.table(), skipped

    def fail(self, skipped: list[str]) -> Fail:
        """Raise, or note the reason in `skipped`, as `on_error` says."""

        def note(error: InputError) -> None:
            if self.on_error == "raise":
                raise error
            skipped.append(str(error))

        return note

    def index(self, skipped: list[str]) -> pd.DataFrame:
        """The index of the source, with a line said while it is made."""
        if self.progress:
            self.progress(0, 0, f"indexing {self.source.name}")
        return read_index(self.source, self.fail(skipped))


def read_index(source: RecordSource, fail: Fail) -> pd.DataFrame:
    """The index of a source, with every record once: a second row of the same path goes to ``fail(error)``."""
    index = source.index(fail)
    again = index["path"].duplicated()
    for path in index["path"][again]:
        fail(InputError(source.root / str(path), "rows", "a second row for it", "one row a record"))
    return index[~again].reset_index(drop=True)


class Reading:
    """Iterates over the windows of records, rows of the index from the one numbered `first` on, noting where each came from.

    After it is exhausted, `table` has one row a window: row (of the index), window, valid_samples, bad_leads, original_fs.
    """

    def __init__(self, loader: Loader, records: Sequence[Any], skipped: list[str], first: int = 0) -> None:
        self.loader, self.records, self.skipped, self.first = loader, records, skipped, first
        self.rows: list[Row] = []

    def report(self, done: int) -> None:
        """Say how many records are read."""
        if self.loader.progress:
            self.loader.progress(done, len(self.records), f"reading {self.loader.source.name}")

    def __iter__(self) -> Iterator[Window]:
        fail, how = self.loader.fail(self.skipped), self.loader.how
        for number, row in enumerate(self.records):
            if number % 50 == 0:
                self.report(number)
            try:
                record = self.loader.source.read(row)
                windows = list(how.apply(record))
            except InputError as error:
                fail(error)
                continue
            for window in windows:
                if isinstance(window, InputError):
                    fail(window)
                    continue
                bad = ",".join(window.bad_leads)
                self.rows.append((self.first + number, window.number, window.valid, bad, record.fs))
                yield window
        self.report(len(self.records))

    def table(self) -> pd.DataFrame:
        """Where each window came from."""
        columns = ["row", "window", "valid_samples", "bad_leads", "original_fs"]
        types = {"row": int, "window": int, "valid_samples": int, "bad_leads": str, "original_fs": float}
        return pd.DataFrame(self.rows, columns=columns).astype(types)


def preprocessed(
    data: ECGDataset, how: Preprocess, *, on_error: Literal["raise", "skip"] = "raise"
) -> ECGDataset:
    """A dataset that is already in memory (an array, a simulation) after the same treatment as records of a folder.

    Args:
        data: any dataset; not changed.
        how: what is done to each of its examples.
        on_error: ``"raise"`` stops at the first example that is refused, ``"skip"`` leaves it out and says why.

    Raises:
        InputError: an example is refused, or none is left.
    """
    signals, rows, numbers, valid, bad = [], [], [], [], []
    skipped = list(data.skipped)
    for row in range(len(data)):
        name = f"{data.meta['source'].iloc[row]}/{data.meta['record'].iloc[row]}"
        recorded = data.take([row])[0][:, : int(data.meta["valid_samples"].iloc[row])]
        for window in how.apply(Record(name, recorded, data.fs, data.leads)):
            if isinstance(window, InputError):
                if on_error == "raise":
                    raise window
                skipped.append(str(window))
                continue
            signals.append(window.signal)
            rows.append(row)
            numbers.append(window.number)
            valid.append(window.valid)
            bad.append(",".join(window.bad_leads))
    if not rows:
        why = f"; the first of {len(skipped)} skipped: {skipped[0]}" if skipped else ""
        raise InputError("preprocess", "examples", f"none to use{why}", "at least one")
    meta = data.meta.iloc[rows].reset_index(drop=True)
    earlier = meta["bad_leads"].astype(str)
    meta["window"] += numbers
    meta["valid_samples"] = valid
    meta["bad_leads"] = [
        ",".join(dict.fromkeys(filter(None, f"{a},{b}".split(","))))
        for a, b in zip(earlier, bad, strict=True)
    ]
    return ECGDataset(
        np.stack(signals),
        data.labels[rows],
        fs=how.fs,
        leads=how.lead_names,
        label_names=data.label_names,
        meta=meta,
        skipped=skipped,
        notes=data.notes,
    )


def _settings(source: RecordSource, fs: float, options: LoadOptions) -> tuple[Preprocess, Loader]:
    """Sort the keywords into what is done to a record and how the source is read.

    Raises:
        InputError: a value out of range.
        TypeError: a keyword that is neither.
    """
    given: dict[str, Any] = dict(options)
    leads = given.pop("leads", None)
    known = [field.name for field in fields(Preprocess)]
    how = Preprocess(
        fs=float(fs),
        leads=None if leads is None else lead_tuple(leads, source.name),
        **{name: given.pop(name) for name in known if name in given},
    )
    cache = given.pop("cache", None)
    loader = Loader(source, how, cache=None if cache is None else Path(cache), **given)
    if loader.on_error not in ("raise", "skip"):
        raise InputError(source.name, "on_error", repr(loader.on_error), "raise or skip")
    if loader.min_positives < 0:
        raise InputError(source.name, "min_positives", loader.min_positives, "0 or more")
    return how, loader

"""`ECGDataset`, the one shape in which every source hands out its examples, and `concat`.

``data[i]`` is one example, ``data[index_array]`` a batch by a single gather (no collating), ``data.meta`` a DataFrame with a
row an example. It works under `torch.utils.data.DataLoader`, and without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgmeta.data.leads import canonical, lead_terms, lead_tuple
from ecgmeta.data.store import ArrayStore, JoinedStore, LeadStore, Rows, SignalStore, Terms, ViewStore
from ecgmeta.data.tables import as_age, as_sex
from ecgmeta.runtime.errors import InputError

Index = int | slice | Sequence[int] | NDArray[Any] | Tensor


class ECGDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Recordings of one length at one rate, with labels and metadata.

    Args:
        signals: (N, leads, samples) mV: an array, a memory map, or a `SignalStore`.
        labels: (N, labels) of 0 and 1; None for no labels.
        fs: rate, Hz.
        leads: name of each lead.
        label_names: name of each label.
        meta: one row an example; columns missing from the standard ones are filled in (see `standard_meta`).
        source: name used where `meta` has no source.
        skipped: one line for every record left out, and why.
        notes: what a user should know of the recordings (a fault of the source that was put right, parts not there).

    Raises:
        InputError: shapes that do not fit together, a lead or label named twice, labels other than 0 and 1, a fold or age
            that is none.
    """

    def __init__(
        self,
        signals: NDArray[np.floating] | SignalStore,
        labels: NDArray[Any] | None = None,
        *,
        fs: float,
        leads: Sequence[str],
        label_names: Sequence[str] = (),
        meta: pd.DataFrame | None = None,
        source: str = "array",
        skipped: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.store: SignalStore = ArrayStore(signals) if isinstance(signals, np.ndarray) else signals
        n, n_leads, samples = self.store.shape
        self.fs = float(fs)
        self.leads = tuple(canonical(name) for name in lead_tuple(leads, source))
        self.label_names = tuple(label_names)
        self.skipped, self.notes = list(skipped), list(notes)
        if len(self.leads) != n_leads:
            raise InputError(source, "leads", f"{len(self.leads)} names", f"{n_leads}, as in the signals")
        if len({name.casefold() for name in self.leads}) != n_leads:
            raise InputError(source, "leads", ", ".join(self.leads), "different names")
        if len(set(self.label_names)) != len(self.label_names):
            raise InputError(source, "label_names", self.label_names, "different names")
        self.labels = _check_labels(labels, n, self.label_names, source)
        self.meta = standard_meta(meta, n, samples, fs=self.fs, source=source)
        self.meta.attrs["skipped"] = list(self.skipped)  # a table that travels alone says what it lacks

    @property
    def signals(self) -> NDArray[np.float32]:
        """(N, leads, samples) float32 mV, all of it. A cached or selected dataset is decoded anew at each call."""
        return self.store.all()

    @property
    def samples(self) -> int:
        """Samples an example."""
        return self.store.shape[2]

    def __len__(self) -> int:
        return self.store.shape[0]

    def __repr__(self) -> str:
        n, leads, samples = self.store.shape
        shape = f"{n} x {leads} leads x {samples} samples at {self.fs:g} Hz"
        return f"{type(self).__name__}({shape}, {len(self.label_names)} labels)"

    def take(self, rows: Index) -> NDArray[np.float32]:
        """(len(rows), leads, samples) float32 mV as a new array."""
        return self.store.take(as_rows(rows, len(self)))

    def __getitem__(self, index: Index) -> tuple[Tensor, Tensor]:
        rows = as_rows(index, len(self))
        x, y = torch.from_numpy(self.store.take(rows)), torch.from_numpy(self.labels[rows])
        return (x[0], y[0]) if isinstance(index, int | np.integer) else (x, y)

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """What a `DataLoader` asks for: one gather, then views."""
        x, y = self[indices]
        return list(zip(x, y, strict=True))

    def subset(self, indices: Index) -> ECGDataset:
        """The examples at `indices` (positions, a slice or a boolean mask), in that order; samples are not copied."""
        rows = as_rows(indices, len(self))
        store, meta = ViewStore(self.store, rows), self.meta.iloc[rows].reset_index(drop=True)
        return self._like(store, labels=self.labels[rows], meta=meta)

    def _like(self, store: SignalStore, **changes: Any) -> ECGDataset:
        """A dataset over `store` that keeps everything else but `changes`."""
        kept: dict[str, Any] = {
            "labels": self.labels,
            "leads": self.leads,
            "label_names": self.label_names,
            "meta": self.meta,
        }
        return ECGDataset(store, fs=self.fs, skipped=self.skipped, notes=self.notes, **(kept | changes))

    def with_labels(self, names: Sequence[str]) -> ECGDataset:
        """The same examples with the label columns `names`, in that order.

        Raises:
            InputError: a name that is not in `label_names`.
        """
        unknown = [name for name in names if name not in self.label_names]
        if unknown:
            raise InputError("labels", "names", ", ".join(unknown), f"some of {', '.join(self.label_names)}")
        columns = [self.label_names.index(name) for name in names]
        return self._like(self.store, labels=self.labels[:, columns], label_names=names)

    def with_leads(self, names: Sequence[str], *, derive: bool | Literal["all"] = False) -> ECGDataset:
        """The same examples with the leads `names`, in that order; samples are chosen and mixed when they are read.

        Args:
            names: lead names in any case.
            derive: III, aVR, aVL and aVF are computed from I and II (`leads.LIMB_COEFFICIENTS`) where the dataset lacks
                them (True) or even where it has them (``"all"``: for recordings whose limb leads are not to be trusted).

        ``meta.bad_leads`` keeps the leads that are still there, and names a lead derived from a bad one as bad.

        Raises:
            InputError: no lead, a lead named twice, one that is neither there nor can be derived.
        """
        names = lead_tuple(names, "leads")
        spelling = {lead.casefold(): lead for lead in self.leads}
        chosen = tuple(spelling.get(canonical(name).casefold(), canonical(name)) for name in names)
        if not chosen or len(set(chosen)) != len(chosen):
            raise InputError("leads", "names", ", ".join(names) or "none", "different names, at least one")
        terms = lead_terms(self.leads, chosen, "leads", derive)
        meta = self.meta.copy()
        meta["bad_leads"] = [self._still_bad(text, chosen, terms) for text in meta["bad_leads"]]
        return self._like(LeadStore(self.store, terms), leads=chosen, meta=meta)

    def _still_bad(self, text: str, chosen: Sequence[str], terms: Sequence[Terms]) -> str:
        bad = {self.leads.index(name) for name in text.split(",") if name in self.leads}
        of = zip(chosen, terms, strict=True)
        return ",".join(lead for lead, parts in of if bad & {place for place, _ in parts})


def as_rows(index: Index, n: int) -> Rows:
    """Positions as a 1-d int64 array; negative ones count from the end, a boolean mask selects.

    Raises:
        IndexError: out of range (Python's own iteration relies on it), or not an index.
    """
    if isinstance(index, slice):
        return np.arange(n)[index]
    if isinstance(index, Tensor):
        index = index.detach().cpu().numpy()
    rows = np.atleast_1d(np.asarray(index))
    if rows.dtype == bool:
        if rows.shape != (n,):
            raise IndexError(f"a mask of shape {rows.shape} for {n} examples")
        return np.flatnonzero(rows)
    if rows.size == 0:
        return np.zeros(0, dtype=np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise IndexError(
            f"an index of {rows.dtype} with shape {rows.shape}; expected integers in one dimension"
        )
    if rows.min() < -n or rows.max() >= n:
        raise IndexError(f"index {rows.max() if rows.max() >= n else rows.min()} for {n} examples")
    return np.where(rows < 0, rows + n, rows).astype(np.int64)


def _check_labels(
    labels: NDArray[Any] | None, n: int, names: Sequence[str], where: str
) -> NDArray[np.float32]:
    if labels is None:
        labels = np.zeros((n, 0), dtype=np.float32)
    if labels.shape != (n, len(names)):
        raise InputError(
            where, "labels", f"shape {labels.shape}", f"({n}, {len(names)}): examples, label names"
        )
    try:
        labels = np.ascontiguousarray(labels, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise InputError(where, "labels", str(error)[:200], "0 and 1 only") from None
    if not np.isin(labels, (0, 1)).all():
        raise InputError(where, "labels", f"{labels[~np.isin(labels, (0, 1))][0]}", "0 and 1 only")
    return labels


def standard_meta(
    meta: pd.DataFrame | None, n: int, samples: int, *, fs: float, source: str = "array"
) -> pd.DataFrame:
    """`meta` with every standard column, its own type, and a clean RangeIndex; other columns are kept.

    record (str), patient (str; ``source/record`` where unknown, 15709 where a table has 15709.0), fold (Int64 or NA), age
    (years or NaN; see `tables.as_age`), sex ("female", "male" or "unknown"; see `tables.as_sex`), source (str),
    original_fs (Hz), window (int, position within the record), valid_samples (int, the rest is padding), bad_leads (str,
    comma-separated leads that were set to zero).

    Raises:
        InputError: another number of rows than `n`, a fold or an age that is none.
    """
    out = pd.DataFrame(index=pd.RangeIndex(n)) if meta is None else meta.reset_index(drop=True).copy()
    if len(out) != n:
        raise InputError(source, "meta", f"{len(out)} rows", f"{n}, as in the signals")
    defaults: dict[str, Any] = {
        "record": [str(i) for i in range(n)],
        "source": source,
        "patient": None,
        "fold": pd.NA,
        "age": np.nan,
        "sex": "unknown",
        "original_fs": fs,
        "window": 0,
        "valid_samples": samples,
        "bad_leads": "",
    }
    for column, default in defaults.items():
        if column not in out:
            out[column] = default
    out["record"], out["source"] = _names(out["record"]), out["source"].astype(str)
    fallback = out["source"] + "/" + out["record"]
    patient = _names(out["patient"])
    known = out["patient"].notna() & (patient != "")
    out["patient"] = patient.where(known, fallback)
    try:
        out["fold"] = out["fold"].astype("Int64")
    except (ValueError, TypeError):
        found = ", ".join(dict.fromkeys(map(str, out["fold"])))[:80]
        raise InputError(source, "meta.fold", found, "whole numbers, or nothing") from None
    ages = {age: as_age(age, source) for age in out["age"].dropna().unique()}
    out["age"] = out["age"].astype(object).map(ages).astype(float)
    # Whether 1 is a man or a woman differs between databases, so numbers say nothing here.
    out["sex"] = [as_sex(sex) if isinstance(sex, str) else "unknown" for sex in out["sex"]]
    out["original_fs"] = out["original_fs"].astype(float)
    out = out.astype({"window": int, "valid_samples": int})
    first = ["record", "patient", "fold", "age", "sex", "source", "original_fs", "window"]
    return out[first + [name for name in out.columns if name not in first]]


def _names(column: pd.Series[Any]) -> pd.Series[str]:
    """As text. Numbers become floats where a table lacks some: 15709.0 is the patient whom another table calls 15709."""
    if pd.api.types.is_float_dtype(column):
        known = column.dropna()
        if (known % 1 == 0).all() and (known.abs() < 2**53).all():
            return column.astype("Int64").astype(str)
    return column.astype(str)


def concat(datasets: Sequence[ECGDataset], *, labels: Literal["same", "drop"] = "same") -> ECGDataset:
    """Datasets end to end; samples are not copied.

    Args:
        datasets: at least one; same rate, leads and length.
        labels: ``"same"`` insists on the same label names in the same order; ``"drop"`` gives a dataset without labels.

    Raises:
        InputError: the datasets do not fit together.
    """
    if not datasets:
        raise InputError("concat", "datasets", "none", "at least one")
    first = datasets[0]
    fields = ["fs", "leads", "samples"] + (["label_names"] if labels == "same" else [])
    for number, other in enumerate(datasets[1:], start=1):
        for field in fields:
            found, expected = getattr(other, field), getattr(first, field)
            if found != expected:
                hint = " (labels='drop' pools without labels)" if field == "label_names" else ""
                raise InputError("concat", f"{field} of dataset {number}", found, f"{expected}{hint}")
    same = labels == "same"
    return ECGDataset(
        JoinedStore([data.store for data in datasets]),
        np.concatenate([data.labels for data in datasets]) if same else None,
        fs=first.fs,
        leads=first.leads,
        label_names=first.label_names if same else (),
        meta=pd.concat([data.meta for data in datasets], ignore_index=True),
        skipped=[line for data in datasets for line in data.skipped],
        notes=list(dict.fromkeys(line for data in datasets for line in data.notes)),
    )

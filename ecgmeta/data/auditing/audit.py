"""`audit`: one pass over a tree or a dataset, record by record at its own rate, and what it found as an `Audit`.

Memory stays small whatever the tree: one record at a time, and of each a fingerprint of 256 bytes, its rate and its length.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ecgmeta.data.auditing import rhythm as rhythms
from ecgmeta.data.auditing.findings import CHECKS, SEVERITIES, Finding, by_check
from ecgmeta.data.auditing.parts import Part, below, of_dataset, of_error
from ecgmeta.data.auditing.pool import (
    Prints,
    duplicates,
    label_findings,
    labels_summary,
    mixed_findings,
    numbers,
    people_summary,
    split_findings,
)
from ecgmeta.data.auditing.signals import inspect
from ecgmeta.data.dataset import ECGDataset
from ecgmeta.data.leads import STANDARD_LEADS, canonical
from ecgmeta.data.load import Progress
from ecgmeta.data.records import Record
from ecgmeta.runtime.errors import InputError

RHYTHMS = 500  # recordings measured with neurokit2 unless told otherwise: half a minute
_FORMAT = 1


@dataclass(eq=False)
class Audit:
    """What an audit found.

    Attributes:
        path: what was audited.
        findings: everything, in the order of the tree.
        summary: counts and distributions, JSON-ready: recordings, read, patients, parts (sources, rates, lengths, leads,
            people, labels), rhythm, checks.
    """

    path: str
    findings: list[Finding]
    summary: dict[str, Any]
    _read: Callable[[str], Record] | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        """False where a finding is an error: training on this would be invalid."""
        return not any(finding.severity == "error" for finding in self.findings)

    def counts(self) -> dict[str, int]:
        """Findings by severity."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    def record(self, name: str) -> Record:
        """Read a recording again, by its name in the findings.

        Raises:
            InputError: an audit from JSON, which has no signals; an unknown name; an unreadable file.
        """
        if self._read is None:
            raise InputError(self.path, "signals", "an audit read from JSON", "an audit made in this process")
        return self._read(name)

    def to_json(self) -> str:
        """The audit as JSON; `from_json` gives it back, without the signals."""
        values = {
            "format": _FORMAT,
            "path": self.path,
            "ok": self.ok,
            "counts": self.counts(),
            "summary": self.summary,
            "findings": [finding.to_dict() for finding in self.findings],
        }
        return json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Audit:
        """Raises InputError where `text` is not the JSON of an audit."""
        try:
            values = json.loads(text)
            findings = [Finding.from_dict(f) for f in values["findings"]]
            return cls(values["path"], findings, values["summary"])
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError("audit", "JSON", repr(text[:60]), "what Audit.to_json wrote") from None


def audit(
    data: str | Path | ECGDataset,
    *,
    kind: str = "auto",
    fs: float | None = None,
    rhythm: int | None = RHYTHMS,
    progress: Progress | None = None,
) -> Audit:
    """Read everything once and say what is wrong with it.

    Args:
        data: a folder, or any dataset.
        kind: for a folder: ``"auto"`` gives PTB-XL, LUDB and CODE-15% folders anywhere below to their own sources and
            all other headers to the plain WFDB reader; ``"wfdb"``, ``"ptbxl"``, ``"ludb"``, ``"code15"`` insist on one.
        fs: for PTB-XL: read the 100 or the 500 Hz files; None reads both where both are there.
        rhythm: heart rate and quality are measured on at most this many recordings, evenly spaced; None means all.
        progress: told how far it is.

    Raises:
        InputError: no such folder, no recordings, a bad setting, a table that cannot be read.

    Example:
        >>> from ecgmeta.data import SyntheticCohort
        >>> result = audit(SyntheticCohort(64, seed=1), rhythm=0)
        >>> result.ok, result.summary["read"]
        (True, 64)
    """
    if rhythm is not None and rhythm < 0:
        raise InputError("audit", "rhythm", rhythm, "0 or more recordings, or None for all")
    say = progress or _silent
    if isinstance(data, ECGDataset):
        parts, path = [of_dataset(data)], repr(data)
    else:
        say(0, 0, "indexing")
        parts, path = below(Path(data), kind, fs), str(data)
    walk = _Walk(parts, rhythm, say)
    walk.run()
    findings = walk.findings
    say(0, 1, "looking for duplicate signals")
    findings += duplicates(walk.prints.groups(parts), parts)
    say(1, 1, "looking for duplicate signals")
    for part in parts:
        findings += split_findings(part) + ([] if part.version else label_findings(part))
    return Audit(path, findings, walk.summary(findings), _reader(parts))


def signal_notes(data: ECGDataset, most: int = 1000) -> list[str]:
    """One line for every check of severity error that signals of a loaded dataset fail; evenly spaced where there are many.

    The same checks as in `audit`, for the time of loading. None of them can be repaired by a loader, and all spoil training.
    """
    part = of_dataset(data)
    rows = rhythms.sample(len(part), most)
    names, found = part.index["name"].astype(str).tolist(), []
    for row in rows.tolist():
        record = part.read(row)
        found += inspect(record.signal, record.fs, record.leads, names[row], electrodes=False)
    out = []
    for check, group in by_check(f for f in found if f.severity == "error").items():
        first = group[0]
        of = f"{len(group)} of {len(rows)} recordings" + ("" if len(rows) == len(part) else " looked at")
        out.append(f"{CHECKS[check].title} in {of}, such as {first.records[0]}: {first.text}.")
    return out


def inspect_record(record: Record, name: str) -> list[Finding]:
    """`signals.inspect` of a record."""
    return inspect(record.signal, record.fs, record.leads, name)


class _Walk:
    """The pass over all recordings."""

    def __init__(self, parts: Sequence[Part], rhythm: int | None, say: Progress) -> None:
        self.parts, self.say = parts, say
        self.total = sum(len(part) for part in parts)
        self.wanted = set(rhythms.sample(self.total, rhythm).tolist())
        self.findings: list[Finding] = []
        self.prints = Prints()
        self.rhythms: list[rhythms.Rhythm | str] = []
        self.seen: list[dict[tuple[str, float, float, str], int]] = [Counter() for _ in parts]
        self.distrusted: list[Finding] = []

    def run(self) -> None:
        done = 0
        for number, part in enumerate(self.parts):
            self.findings += part.findings
            self.distrusted = []
            for row, name in enumerate(part.index["name"]):
                if done % 20 == 0:
                    self.say(done, self.total, f"auditing: {part.name}")
                self._one(number, row, str(name), done in self.wanted)
                done += 1
            if self.distrusted:
                worst = max(self.distrusted, key=lambda finding: finding.weight)
                said = f"{part.name}: {len(self.distrusted):,} of {len(part):,} recordings, such as "
                said += f"{worst.records[0]}: {worst.text}"
                self.findings.append(Finding("stored_gain", (), said, (), worst.weight))
        self.say(self.total, self.total, "auditing")

    def _one(self, number: int, row: int, name: str, measured: bool) -> None:
        part = self.parts[number]
        try:
            record = part.read(row)
        except InputError as error:
            self.findings.append(of_error(error, name))
            return
        self.findings += inspect_record(record, name)
        self.distrusted += _by_header(part, row, name)
        names = {canonical(lead) for lead in record.leads}
        leads = "the standard 12" if names == set(STANDARD_LEADS) else ", ".join(record.leads)
        source = str(part.index["source"].iloc[row])
        seconds = round(record.signal.shape[1] / record.fs, 3)
        self.seen[number][source, record.fs, seconds, leads] += 1
        self.prints.add((number, row), record)
        if measured:
            found = rhythms.measure(record.signal, record.fs, record.leads)
            self.rhythms.append(found)
            self.findings += rhythms.findings(found, name)

    def summary(self, findings: list[Finding]) -> dict[str, Any]:
        """Also appends what the distributions amount to."""
        parts = [self._part(part, seen, findings) for part, seen in zip(self.parts, self.seen, strict=True)]
        own = [part for part in self.parts if not part.version]
        return {
            "recordings": self.total,
            "read": sum(part["read"] for part in parts),
            "patients": len(
                {str(p) for part in own if "patient" in part.index for p in part.index["patient"]}
            ),
            "parts": parts,
            "rhythm": self._rhythm(),
            "checks": {check: len(group) for check, group in by_check(findings).items()},
        }

    def _part(
        self, part: Part, seen: dict[tuple[str, float, float, str], int], findings: list[Finding]
    ) -> dict[str, Any]:
        by: dict[str, Counter[Any]] = {
            "source": Counter(),
            "rate": Counter(),
            "length": Counter(),
            "leads": Counter(),
        }
        for values, count in seen.items():
            for key, value in zip(by, values, strict=True):
                by[key][value] += count
        rates = {f"{rate:g}": count for rate, count in sorted(by["rate"].items())}
        findings += mixed_findings(part.name, rates, by["length"])
        return {
            "name": part.name,
            "recordings": len(part),
            "read": by["source"].total(),
            "version": part.version,
            "sources": dict(sorted(by["source"].items())),
            "rates": rates,
            "lengths": {f"{length:g}": count for length, count in sorted(by["length"].items())},
            "leads": dict(by["leads"].most_common()),
            **people_summary(part),
            "labels": labels_summary(part),
        }

    def _rhythm(self) -> dict[str, Any]:
        found = [r for r in self.rhythms if isinstance(r, rhythms.Rhythm)]
        return {
            "measured": len(found),
            "tried": len(self.rhythms),
            "of": self.total,
            "heart_rate": numbers([r.heart_rate for r in found]),
            "heart_rates": [round(r.heart_rate, 1) for r in found if np.isfinite(r.heart_rate)],
            "quality": dict(Counter(r.quality for r in found).most_common()),
            "leads": dict(Counter(r.lead for r in found).most_common()),
        }


def _by_header(part: Part, row: int, name: str) -> list[Finding]:
    """What is wrong with the gains of a header that the part's own source does not use."""
    if part.by_header is None:
        return []
    try:
        record = part.by_header(row)
    except InputError as error:
        return [of_error(error, name)]
    found = inspect(record.signal, record.fs, record.leads, name, electrodes=False)
    return [finding for finding in found if finding.check in ("gain", "units")]


def _reader(parts: Sequence[Part]) -> Callable[[str], Record]:
    places = {str(name): (part, row) for part in parts for row, name in enumerate(part.index["name"])}

    def read(name: str) -> Record:
        if name not in places:
            raise InputError("audit", "recording", repr(name), "the name of a recording that was read")
        part, row = places[name]
        return part.read(row)

    return read


def _silent(done: int, total: int, text: str) -> None:
    pass

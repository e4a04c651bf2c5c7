"""What an audit can find: every check with its severity, and `Finding`, one instance of it.

``error``: numbers that are wrong would get into training unseen, or a score would be wrong, or a file is damaged; the audit
fails. ``warning``: a loader refuses or repairs it, or a split must know of it; someone has to decide. ``note``: to be known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ecgmeta.runtime.errors import InputError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Check:
    """What is looked for: how bad it is, its heading, and what to do about it."""

    severity: Severity
    title: str
    advice: str


CHECKS: dict[str, Check] = {
    "unreadable": Check("error", "Unreadable file", "Fetch it again, or leave it out with on_error='skip'."),
    "truncated": Check(
        "error", "Truncated or overlong file", "Fetch it again: its size is not what its header says."
    ),
    "checksum": Check(
        "error",
        "Samples differ from the header's checksum",
        "Fetch it again: it changed after it was written.",
    ),
    "labels": Check(
        "error",
        "Labels or ages that cannot be read",
        "Correct the table named here; no dataset loads with it.",
    ),
    "row_twice": Check(
        "error", "A record stands twice in the table", "Keep one row: it would be learned, or scored, twice."
    ),
    "lead_names": Check(
        "error", "A lead name stands twice", "Name the leads in the header: a choice would be a guess."
    ),
    "lead_order": Check(
        "error", "Leads under the wrong names", "Rename the leads as said here, or leave the recording out."
    ),
    "inverted": Check("error", "Leads upside down", "Change the sign of the leads named here."),
    "gain": Check(
        "error",
        "Leads with gains of their own",
        "Do not use the header's gains: find the digital units (LUDB: microvolts).",
    ),
    "units": Check(
        "error", "Wrong units", "Set the gain or the unit in the header; a recording is in millivolts."
    ),
    "patient_split": Check(
        "error",
        "Patients on two sides of the official split",
        "Move all recordings of a patient to one fold.",
    ),
    "duplicate_split": Check(
        "error", "The same signal on two sides of the official split", "Keep one, or move both to one fold."
    ),
    "limb_identity": Check(
        "warning",
        "Limb leads that contradict one another",
        "Look at it: leads of different moments, filters or sources?",
    ),
    "electrodes": Check(
        "warning",
        "Limb electrodes perhaps exchanged",
        "Look at it: exchanged electrodes, dextrocardia or an infarct?",
    ),
    "missing_lead": Check("warning", "Standard leads that are absent", "Choose leads=, or bad_leads='zero'."),
    "flat": Check("warning", "Flat leads", "Refused on loading, or zeroed with bad_leads='zero'."),
    "flat_stretch": Check(
        "warning", "Stretches without a signal", "Padding or a loose electrode: cut it off or leave it out."
    ),
    "gaps": Check(
        "warning",
        "Missing samples (NaN)",
        "Gaps beyond max_gap are refused on loading, or zeroed with bad_leads='zero'.",
    ),
    "clipped": Check("warning", "Clipped signals", "The recorder's range was too small: peaks are cut off."),
    "amplitude": Check(
        "warning",
        "Unusual amplitude",
        "Look at it: a gain, an artefact, or a very large or small heart signal?",
    ),
    "duplicate": Check(
        "warning",
        "The same signal under two names",
        "Keep one, or merge their patients: duplicates.group_duplicates.",
    ),
    "stored_gain": Check(
        "warning",
        "Wrong gains in headers, not used here",
        "Read it by its own source: any other reader takes these gains.",
    ),
    "label_split": Check(
        "warning",
        "Labels that one side of the official split lacks",
        "They cannot be learned, or not be scored.",
    ),
    "orphan": Check(
        "warning", "Signal files that no record reads", "A header or a row of the table is missing."
    ),
    "repeated": Check(
        "note",
        "The same signal twice for one patient",
        "Splits by patient keep them together; consider keeping one.",
    ),
    "short_gaps": Check("note", "Short gaps (NaN)", "Interpolated on loading."),
    "lead_order_in_file": Check(
        "note", "Leads stored in another order", "Read them by name, never by position."
    ),
    "rates": Check("note", "Several sampling rates", "Loading resamples to one rate."),
    "lengths": Check("note", "Several lengths", "Loading cuts to one length, and pads what is shorter."),
    "rare_label": Check(
        "note", "Rare labels", "Too few to learn or to score: min_positives leaves them out."
    ),
    "unlabelled": Check(
        "note", "Recordings without a label of the set", "Decide whether they are negatives (label_policy)."
    ),
    "heart_rate": Check("note", "Unusual heart rate", "Look at it: a true rhythm, or noise taken for beats?"),
    "quality": Check("note", "Poor signal quality", "Rated unacceptable by neurokit2 (Zhao & Zhang 2018)."),
    "not_measured": Check("note", "Heart rate not measured", "neurokit2 could not read the lead."),
}


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Args:
        check: a key of `CHECKS`.
        records: the recordings concerned (two or more for a duplicate), as named in the audit; empty for a whole source.
        text: what was found, with its numbers.
        leads: the leads concerned.
        weight: how bad, among findings of the same check; the worst get a picture.

    Raises:
        InputError: an unknown check.
    """

    check: str
    records: tuple[str, ...]
    text: str
    leads: tuple[str, ...] = ()
    weight: float = 0.0

    def __post_init__(self) -> None:
        if self.check not in CHECKS:
            raise InputError("finding", "check", repr(self.check), ", ".join(CHECKS))

    @property
    def severity(self) -> Severity:
        return CHECKS[self.check].severity

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` gives the finding back."""
        return {
            "check": self.check,
            "severity": self.severity,
            "records": list(self.records),
            "leads": list(self.leads),
            "text": self.text,
            "weight": round(float(self.weight), 6),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Finding:
        records, leads = tuple(values["records"]), tuple(values["leads"])
        return cls(values["check"], records, values["text"], leads, values["weight"])


def by_check(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Findings under their checks: errors first, each in the order of `CHECKS`, the worst first."""
    groups: dict[str, list[Finding]] = {name: [] for name in CHECKS}
    for finding in findings:
        groups[finding.check].append(finding)
    # sorted() is stable: equally bad ones stay in the order of the tree.
    ordered = {name: sorted(group, key=lambda f: -f.weight) for name, group in groups.items() if group}
    return dict(sorted(ordered.items(), key=lambda item: SEVERITIES.index(CHECKS[item[0]].severity)))

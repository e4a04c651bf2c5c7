"""An audit as a page with pictures of the worst recordings, and as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgmeta.data.auditing.audit import Audit
from ecgmeta.data.auditing.findings import CHECKS, Finding, by_check
from ecgmeta.data.auditing.pool import COMMON, comparable, pairs_together
from ecgmeta.report.content import Histogram
from ecgmeta.report.paper import paper_notes, plot_ecg, thinned
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import write_text
from ecgmeta.runtime.page.shell import Picture, as_histogram, as_picture, fill

if TYPE_CHECKING:
    from rich.table import Table

PICTURES = 12  # recordings drawn, at most
BUDGET = 4_000_000  # characters of pictures in a page
LISTED = 100  # findings of one check that the page spells out; the JSON has them all
LABELS = 30  # labels whose co-occurrence is shown as a matrix; of more, the commonest pairs
_IN_ONE_LEAD = {
    "clipped",
    "flat_stretch",
    "gaps",
    "short_gaps",
}  # seen best over the whole length of the leads concerned
_PAIRED = {"duplicate", "duplicate_split", "repeated"}
_UNSEEN = {
    "unreadable",
    "truncated",
    "checksum",
    "labels",
    "orphan",
    "lead_names",
    "not_measured",
    "label_split",
}


def write_audit(audit: Audit, folder: Path) -> tuple[Path, Path]:
    """Write ``audit.json`` and ``audit.html`` into a folder (made if need be); each is whole or not there."""
    json_path, html_path = folder / "audit.json", folder / "audit.html"
    write_text(json_path, audit.to_json())
    write_text(html_path, render_audit(audit))
    return json_path, html_path


def render_audit(audit: Audit) -> str:
    """The audit as one self-contained HTML document; the same audit gives the same text."""
    groups = by_check(audit.findings)
    drawn, not_drawn = _pictures(audit, groups)
    return fill(
        "ecgmeta.report",
        "audit.html",
        audit=audit,
        summary=audit.summary,
        verdict=verdict(audit),
        groups=[_group(check, findings) for check, findings in groups.items()],
        pictures=drawn,
        not_drawn=not_drawn,
        charts=_charts(audit),
        labels=[_labels(part) for part in audit.summary["parts"] if part["labels"]["counts"]],
        rhythm=_rhythm_line(audit),
    )


def verdict(audit: Audit) -> str:
    """One sentence: may one train on this?"""
    counts = audit.counts()
    said = ", ".join(f"{count:,} {name}{'s' if count != 1 else ''}" for name, count in counts.items())
    if not audit.ok:
        return f"Training on this would be invalid: {said}."
    return f"Nothing found that would invalidate training: {said}."


def tables(audit: Audit) -> list[Table]:
    """What was read, and what was found, for a terminal."""
    from rich.table import Column, Table

    read = Table(
        "recordings of", Column("number", justify="right"), "rate (Hz)", "length (s)", "leads", "labels"
    )
    for part in audit.summary["parts"]:
        number = f"{part['read']:,}" + (
            f" of {part['recordings']:,}" if part["read"] < part["recordings"] else ""
        )
        labels = len(part["labels"]["counts"])
        cells = (_listed(part["rates"], 3), _range(part["lengths"]), _listed(part["leads"], 2))
        read.add_row(part["name"], number, *cells, f"{labels}" if labels else "—")
    found = Table(
        Column("", min_width=7), "found", Column("times", justify="right"), "such as", show_lines=True
    )
    colours = {"error": "bold red", "warning": "yellow", "note": "dim"}
    for check, findings in by_check(audit.findings).items():
        severity = CHECKS[check].severity
        colour = colours[severity]
        first = _cut(_line(findings[0]), 160)
        from rich.text import Text  # Text is never read as markup, whatever a file is called

        found.add_row(Text(severity, style=colour), CHECKS[check].title, f"{len(findings):,}", Text(first))
    return [read, found] if audit.findings else [read]


def _group(check: str, findings: list[Finding]) -> dict[str, Any]:
    known = CHECKS[check]
    return {
        "severity": known.severity,
        "title": known.title,
        "advice": known.advice,
        "count": len(findings),
        "first": _cut(_line(findings[0]), 220),
        "lines": [_line(finding) for finding in findings[:LISTED]],
        "more": max(0, len(findings) - LISTED),
    }


def _line(finding: Finding) -> str:
    names = " ~ ".join(finding.records[:6]) + (" ..." if len(finding.records) > 6 else "")
    return f"{names}: {finding.text}" if names else finding.text


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


# --- Pictures -------------------------------------------------------------------------------------------------------


def _pictures(audit: Audit, groups: Mapping[str, list[Finding]]) -> tuple[list[Picture], list[str]]:
    """The worst recording of every check that one can see, then the second worst, as far as the page goes."""
    seen = {check: findings for check, findings in groups.items() if check not in _UNSEEN}
    order = [findings[rank] for rank in (0, 1) for findings in seen.values() if rank < len(findings)]
    drawn: list[tuple[Finding, Picture]] = []
    failed: list[str] = []
    size = 0
    for finding in order:
        if not finding.records or len(drawn) == PICTURES:
            continue
        try:
            picture = _draw(audit, finding)
        except InputError as error:
            failed.append(str(error))
            continue
        if size + len(picture.address) > BUDGET:
            continue
        size += len(picture.address)
        drawn.append((finding, picture))
    checks = list(groups)
    drawn.sort(key=lambda item: checks.index(item[0].check))
    return [picture for _, picture in drawn], list(dict.fromkeys(failed))


def _draw(audit: Audit, finding: Finding) -> Picture:
    caption = f"{CHECKS[finding.check].title}: {finding.text}"
    title = _cut(" ~ ".join(finding.records[:2]), 90)
    if finding.check in _PAIRED:
        return _pair(audit, finding, title, caption)
    record = audit.record(finding.records[0])
    signal, fs = thinned(record.signal, record.fs)
    leads = list(record.leads)
    if finding.check in _IN_ONE_LEAD and finding.leads:
        chosen = [
            i for i, name in enumerate(leads) if name.casefold() in {f.casefold() for f in finding.leads}
        ][:3]
        signal, leads = signal[chosen], [leads[i] for i in chosen]
    figure = plot_ecg(signal, fs, leads, title=title)
    alt = f"ECG {title}. {caption}. {'; '.join(paper_notes(signal, fs, leads))}."
    return as_picture(figure, alt, title, caption)


def _pair(audit: Audit, finding: Finding, title: str, caption: str) -> Picture:
    """Both recordings of a pair over one another, as they were compared: at 100 Hz."""
    windows = [comparable(audit.record(name)) for name in finding.records[:2]]
    if windows[0] is None or windows[1] is None:
        raise InputError(title, "signals", "too short to draw", "two seconds")
    first, second = (window.signal for window in windows if window is not None)
    names = (_cut(finding.records[0], 40), _cut(finding.records[1], 40))
    figure = plot_ecg(first, COMMON.fs, COMMON.lead_names, overlay=second, title=_cut(title, 40), names=names)
    return as_picture(figure, f"ECG {title}, one over the other. {caption}.", title, caption)


# --- Distributions --------------------------------------------------------------------------------------------------


def _charts(audit: Audit) -> list[Picture]:
    """Lengths where they differ, heart rates where they were measured."""
    out = []
    lengths = {
        part["name"]: np.repeat([float(x) for x in part["lengths"]], list(part["lengths"].values()))
        for part in audit.summary["parts"]
        if part["lengths"] and not part["version"]
    }
    everything = np.concatenate(list(lengths.values())) if lengths else np.zeros(0)
    if len(np.unique(everything)) > 1:
        title, most = "Lengths", float(np.percentile(everything, 99))
        out.append(_chart(title, "length (s)", {n: np.minimum(x, most) for n, x in lengths.items()}, 24))
    rates = np.array(audit.summary["rhythm"]["heart_rates"], dtype=float)
    if len(rates) > 1:
        out.append(_chart("Heart rate", "beats a minute", {"measured recordings": rates}, 30))
    return out


def _chart(title: str, x_label: str, series: Mapping[str, NDArray[np.floating]], bins: int) -> Picture:
    edges = np.histogram_bin_edges(np.concatenate(list(series.values())), bins)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in series.items()}
    return as_histogram(Histogram(title, x_label, edges.tolist(), counts))


def _labels(part: Mapping[str, Any]) -> dict[str, Any]:
    counts, together = part["labels"]["counts"], part["labels"]["together"]
    most = max(counts.values())
    share = [[value / max(1, row[i]) for value in row] for i, row in enumerate(together)]
    matrix = len(counts) <= LABELS
    return {
        "name": part["name"],
        "counts": sorted(counts.items(), key=lambda item: -item[1]),
        "most": most,
        "of": part["recordings"],
        "unlabelled": part["labels"]["unlabelled"],
        "absent": part["labels"].get("absent", []),
        "names": list(counts),
        "matrix": list(zip(counts, together, share, strict=True)) if matrix else [],
        "pairs": [] if matrix else pairs_together(counts, together),
    }


def _rhythm_line(audit: Audit) -> str:
    rhythm = audit.summary["rhythm"]
    if not rhythm["tried"]:
        return ""
    part = "all" if rhythm["tried"] == rhythm["of"] else f"{rhythm['tried']:,} evenly spaced of"
    said = f"Measured with neurokit2 on {part} {rhythm['of']:,} recordings, on lead {_listed(rhythm['leads'], 3)}."
    rate = rhythm["heart_rate"]
    if rate:
        said += f" Heart rate: median {rate['median']:.0f}, from {rate['min']:.0f} to {rate['max']:.0f} beats a minute."
    quality = ", ".join(f"{name.lower()} {count:,}" for name, count in rhythm["quality"].items())
    return f"{said} Quality: {quality}." if quality else said


def _listed(counts: Mapping[str, int], most: int) -> str:
    """``"500 (106), 257 (5)"``; a single value without its count."""
    if len(counts) == 1:
        return next(iter(counts))
    items = sorted(counts.items(), key=lambda item: -item[1])
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(f"{_cut(name, 40)} ({count:,})" for name, count in items[:most]) + more


def _range(counts: Mapping[str, int]) -> str:
    values = sorted(float(value) for value in counts)
    if not values:
        return "—"
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"

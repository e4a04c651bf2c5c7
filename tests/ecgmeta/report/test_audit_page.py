"""The audit's page, its table and its command line."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from page_tags import Page
from rich.console import Console
from typer.testing import CliRunner

from ecgmeta.cli import app, main
from ecgmeta.data import ArrayDataset, SyntheticCohort, audit
from ecgmeta.data.auditing.audit import Audit
from ecgmeta.report.audit import render_audit, tables, verdict, write_audit

pytestmark = pytest.mark.slow  # runs of the whole path, a second or more each

EVIL = "<script>alert('x')</script>[bold]&"


@pytest.fixture(scope="module")
def spoiled() -> Audit:
    """Thirty records, four of them spoiled, one with a name that is markup."""
    data = SyntheticCohort(30, seed=8)
    x = data.signals.copy()
    x[2, :6] = x[2, [0, 1, 2, 3, 5, 4]]
    x[4] *= 1000
    x[6, 7] = 0
    x[8, 8, 300:450] = np.nan
    x[12] = x[11]
    meta = pd.DataFrame({"record": [EVIL if i == 2 else f"r{i}" for i in range(30)]})
    stored = ArrayDataset(np.nan_to_num(x), data.labels, fs=100, label_names=data.label_names, meta=meta)
    stored.store.array = x  # type: ignore[attr-defined]  # a memory map may hold NaN; an array is refused
    return audit(stored, rhythm=5)


@pytest.fixture(scope="module")
def html(spoiled: Audit) -> str:
    return render_audit(spoiled)


def test_the_page_shows_the_findings_and_draws_the_worst(html: str) -> None:
    page = Page(html)
    assert [a["id"] for a in page.all("section")] == ["findings", "pictures", "recordings", "labels"]
    for title in (
        "Leads under the wrong names",
        "Wrong units",
        "Flat leads",
        "Missing samples",
        "under two names",
    ):
        assert title in html
    pictures = [a for a in page.all("img") if a["alt"].startswith("ECG ")]
    drawn = " ".join(a["alt"] for a in pictures)
    assert len(pictures) >= 5
    for name in ("<script>", "r4", "r6", "r8", "r11 ~ r12"):
        assert f"ECG {name}" in drawn
    for picture in pictures:
        svg = base64.b64decode(picture["src"].removeprefix("data:image/svg+xml;base64,")).decode()
        assert svg.rstrip().endswith("</svg>")
        assert 'id="grid-5mm"' in svg
    assert any(a["alt"].startswith("Heart rate") for a in page.all("img"))


def test_nothing_is_fetched_or_executed(html: str) -> None:
    page = Page(html)
    assert not page.all("script")
    assert not page.all("link")
    assert all(a["src"].startswith("data:") for a in page.all("img"))
    assert EVIL not in html
    assert "default-src 'none'" in html


def test_the_same_audit_gives_the_same_page(spoiled: Audit, html: str) -> None:
    assert render_audit(spoiled) == html


def test_an_audit_from_json_has_no_pictures_and_says_so(spoiled: Audit) -> None:
    html = render_audit(Audit.from_json(spoiled.to_json()))
    assert not [a for a in Page(html).all("img") if a["alt"].startswith("ECG ")]
    assert "an audit read from JSON" in html


def test_a_sound_dataset_makes_a_page_too() -> None:
    found = audit(SyntheticCohort(12, seed=1), rhythm=0)
    html = render_audit(found)
    assert "Nothing found that would invalidate training" in html
    assert not [a for a in Page(html).all("img") if "Wrong" in a["alt"]]


def test_verdict_and_tables(spoiled: Audit) -> None:
    assert verdict(spoiled).startswith("Training on this would be invalid: 2 errors, ")
    console = Console(width=150, record=True, file=io.StringIO())
    for table in tables(spoiled):
        console.print(table)
    text = console.export_text()
    assert "Leads under the wrong names" in text
    assert "[bold]" in text.replace("\n", "")
    assert text.index("error") < text.index("warning")


def test_files_are_written_whole(spoiled: Audit, tmp_path: Path) -> None:
    written = write_audit(spoiled, tmp_path / "new")
    assert [path.name for path in written] == ["audit.json", "audit.html"]
    values = json.loads(written[0].read_text())
    assert values["ok"] is False
    assert {f["severity"] for f in values["findings"]} >= {"error", "warning"}
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["audit.html", "audit.json"]


def invoke(*arguments: object) -> tuple[int, str]:
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["data", "audit", *map(str, arguments)], catch_exceptions=True
    )
    return shown.exit_code, shown.output


def test_exit_codes_of_the_command(real_data: Path, tmp_path: Path) -> None:
    code, text = invoke(real_data / "ptbxl_fixture", "--out", tmp_path / "sound", "--rhythm", 0)
    assert code == 0, text
    assert "Nothing found that would invalidate training" in text
    assert (tmp_path / "sound/audit.html").stat().st_size > 50_000
    code, text = invoke(real_data / "ludb", "--kind", "wfdb", "--out", tmp_path / "wrong", "--rhythm", 0)
    assert code == 1, text
    assert "Leads with gains of their own" in text
    assert "200" in text


def test_bad_input_is_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("data", "audit", tmp_path / "none", "--out", tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["ecgmeta", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: ")
    assert "no such folder" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()

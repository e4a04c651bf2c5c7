"""The report page: what it says, what it leaves out, and that nothing in it is fetched or executed."""

from __future__ import annotations

import base64
import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from page_tags import Page

from ecgmeta.report import (
    AugmenterSummary,
    Curve,
    DatasetSummary,
    Estimate,
    Histogram,
    LabelScore,
    Parameter,
    ReportContent,
    ResultRow,
    ResultsTable,
    ViewPair,
    page,
    render,
    write,
)
from ecgmeta.runtime.errors import InputError

EVIL = "<script>alert('x')</script>&\"$_{"
SECTIONS = ("results", "training", "augmenter", "examples", "data", "cost", "repeat")


def content(text: str = "plain") -> ReportContent:
    """Everything filled, every text field holding `text`."""
    score = {text: LabelScore(Estimate(0.9, 0.8, 0.95), 1234)}
    rows = [
        ResultRow("plain arm", "full", 100, 3, Estimate(0.8123, 0.7704, 0.8496), score),
        ResultRow(
            text, "full", 100, 3, Estimate(0.84249, 0.8006, 0.8794), score, Estimate(0.0302, -0.004, 0.0581)
        ),
        ResultRow("broken", "full", 100, 0, Estimate(math.nan), absent=[text]),
        ResultRow("plain arm", "linear", 50, 3, Estimate(0.7)),
        ResultRow("plain arm", "full", 20, 3, Estimate(0.6, 0.5, 0.7), average_precision=Estimate(0.25)),
    ]
    signal = np.sin(np.arange(500) / 9) * np.ones((2, 1))
    return ReportContent(
        title=text,
        summary=[text, "Second sentence."],
        warnings=[text],
        results=ResultsTable(rows, "plain arm", text, text),
        curves=[
            Curve(text, text, text, {text: ([0, 1, 2], [3.0, math.nan, 0.1]), "_b": ([0], [1])}, True, text)
        ],
        augmenter=AugmenterSummary(
            text,
            [Parameter(text, text, 1.0, -0.25), Parameter("kind", "", text, None)],
            [Histogram(text, text, [0, 1, 2], {"before": [3, 1], text: [0, 0]}, text)],
            text,
        ),
        examples=[ViewPair(text, text, 100, ["I", text], signal, signal + 0.1)],
        data=[DatasetSummary(text, 21799, None, 100, 10, {text: 9514}, [text])],
        cost=[(text, text)],
        command=text,
        environment={text: text},
        config_yaml=text,
    )


@pytest.fixture(scope="module")
def full() -> str:
    return render(content())


def test_every_section_is_there_and_well_formed(full: str) -> None:
    parsed = Page(full)
    assert [a["id"] for a in parsed.all("section")] == list(SECTIONS)
    assert {a["href"] for a in parsed.all("a")} == {f"#{name}" for name in SECTIONS}
    assert len(parsed.all("img")) == 5
    assert all(len(a["alt"]) > 20 for a in parsed.all("img"))
    assert all("scope" in a for a in parsed.all("th"))


def test_nothing_leaves_no_section() -> None:
    html = render(ReportContent("Only a title", results=ResultsTable([]), curves=[Curve("", "", "", {})]))
    parsed = Page(html)
    assert not any(parsed.all(tag) for tag in ("section", "nav", "img", "table", "h2", "a"))
    assert "Only a title" in html


@pytest.mark.parametrize(
    ("field", "section"),
    [
        ("results", "results"),
        ("curves", "training"),
        ("augmenter", "augmenter"),
        ("examples", "examples"),
        ("data", "data"),
        ("cost", "cost"),
        ("command", "repeat"),
        ("environment", "repeat"),
        ("config_yaml", "repeat"),
    ],
)
def test_each_part_alone(field: str, section: str) -> None:
    parsed = Page(render(dataclasses.replace(ReportContent("t"), **{field: getattr(content(), field)})))
    assert [a["id"] for a in parsed.all("section")] == [section]


def test_numbers_are_formatted(full: str) -> None:
    cells = [" ".join(cell.split()) for cell in Page(full).cells]
    for text in (
        "0.842 (0.801–0.879)",
        "0.812 (0.770–0.850)",
        "+0.030 (−0.004 to +0.058)",
        "0.700",
        "0.250",
        "not scored",
        "1,234",
        "21,799",
        "−0.25",
        "plain (9,514)",
    ):
        assert text in cells


def test_rows_are_sorted_and_the_highest_is_marked_in_words(full: str) -> None:
    cells = [" ".join(cell.split()) for cell in Page(full).cells]
    first = [
        "Full fine-tuning, 20 labelled recordings",
        "Full fine-tuning, 100 labelled recordings",
        "plain highest",
        "broken",
        "Linear probe, 50 labelled recordings",
    ]
    places = [cells.index(text) for text in first]
    assert places == sorted(places)
    assert full.count(">highest</span>") == 1  # a group of one arm has no highest


def test_ties_at_the_shown_precision_are_both_highest() -> None:
    rows = [ResultRow(a, "full", 10, 1, Estimate(v)) for a, v in (("a", 0.8001), ("b", 0.7999), ("c", 0.7))]
    assert render(ReportContent("t", results=ResultsTable(rows))).count(">highest</span>") == 2


def pictures(html: str) -> list[str]:
    return [
        base64.b64decode(found).decode() for found in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)
    ]


def test_every_text_is_escaped() -> None:
    html = render(content(EVIL))
    parsed = Page(html)
    assert not parsed.all("script")
    assert "<script" not in html.lower()
    for picture in pictures(html):
        assert "<script" not in picture.lower()
    # 20 places on the page and the arm in the forest plot still show what was written.
    assert html.count("&lt;script&gt;") >= 20
    assert "&lt;script&gt;" in pictures(html)[0]


def test_text_that_is_not_xml_or_not_unicode_survives(tmp_path: Path) -> None:
    bad = "a\x00b\x1fc\udcff心電図"
    target = write(content(bad), tmp_path / "report.html")
    for picture in pictures(target.read_text("utf-8")):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\ud800-\udfff]", picture.replace("\r", ""))


def test_page_is_self_contained(full: str) -> None:
    parsed = Page(full)
    sources = [
        v for _, a in parsed.tags for k, v in a.items() if k in ("src", "href", "srcset", "data", "action")
    ]
    assert sources
    assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in sources)
    assert not any(parsed.all(tag) for tag in ("link", "script", "iframe", "object", "base", "form"))
    style = re.search(r"<style>(.*?)</style>", full, re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "http://" not in full
    assert "https://" not in full


def test_same_content_same_page(full: str) -> None:
    assert render(content()) == full


def test_gaps_in_curves_are_said(full: str) -> None:
    assert "Not drawn: plain: 1 of 3 points not finite." in full


def test_recordings_beyond_the_budget_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PICTURE_BUDGET", 1)
    pair = content().examples[0]
    html = render(ReportContent("t", examples=[pair, pair, pair]))
    assert len(Page(html).all("img")) == 1
    assert "2 more recordings were left out" in html


def test_write_replaces_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    assert write(ReportContent("first"), target) == target

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(InputError, match="No space left"):
        write(ReportContent("second"), target)
    assert "first" in target.read_text("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(InputError, match="no such folder"):
        write(ReportContent("x"), tmp_path / "absent" / "report.html")


def test_content_refuses_what_does_not_fit() -> None:
    signal = np.zeros((2, 10))
    with pytest.raises(InputError, match="augmented view"):
        ViewPair("r", "", 100, ["I", "II"], signal, np.zeros((2, 9)))
    with pytest.raises(InputError, match="original view"):
        ViewPair("r", "", 100, ["I"], signal, signal)
    with pytest.raises(InputError, match="3 x and 2 y"):
        Curve("c", "", "", {"s": ([0, 1, 2], [0, 1])})
    with pytest.raises(InputError, match="one per bin"):
        Histogram("h", "", [0, 1, 2], {"s": [1, 2, 3]})
    with pytest.raises(InputError, match="low <= high"):
        Estimate(0.5, 0.6, 0.4)
    with pytest.raises(InputError, match="'full' or 'linear'"):
        ResultRow("a", cast(Any, "probe"), 1, 1, Estimate(0.5))


@pytest.mark.slow
def test_importing_the_room_is_light_and_rendering_leaves_settings_alone() -> None:
    code = (
        "import sys, ecgmeta.report; heavy = {'matplotlib', 'jinja2', 'torch', 'pandas', 'wfdb'} & set(sys.modules); "
        "assert not heavy, heavy\n"
        "from matplotlib import rcParams as rc; rc['font.size'] = 17\n"  # looking at 'backend' would load pyplot
        "before = {k: rc[k] for k in rc if k != 'backend'}\n"
        "from ecgmeta.report import *; render(ReportContent('t', curves=[Curve('', '', '', {'a': ([1], [1])})]))\n"
        "assert {k: rc[k] for k in before} == before and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)

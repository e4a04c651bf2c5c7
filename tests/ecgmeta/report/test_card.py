"""The augmentation card: nothing from nothing, known changes found, a page that stands alone, a command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from page_tags import Page
from torch import Tensor

from ecgmeta.augment import LearnedPolicy, LearnedWarp
from ecgmeta.augment.learned import Augmenter, Learned
from ecgmeta.cli import app
from ecgmeta.data import SyntheticCohort
from ecgmeta.data.leads import STANDARD_LEADS
from ecgmeta.data.synthetic import Nuisances, Rhythm
from ecgmeta.report.card import Card, as_json, criteria, make_card, summary, verdict, write_card
from ecgmeta.report.card_page import render_card
from ecgmeta.runtime.cli import guarded
from ecgmeta.runtime.errors import InputError

pytestmark = pytest.mark.slow  # runs of the whole path, a second or more each

EVIL = "<script>alert('x')</script>&"


class Stub(Augmenter):
    """An augmenter that does one known thing."""

    def __init__(self, does: Any, share: float = 0.25, fs: float = 100.0) -> None:
        super().__init__(12, fs, None, STANDARD_LEADS, 0.0, 1.0, None)
        self.does, self.share = does, share

    def forward(self, x: Tensor, noise: Any = None, *, generator: torch.Generator | None = None) -> Tensor:
        return self.does(x) if self.training else x

    def learned(self, x: Tensor) -> list[Learned]:
        return [
            Learned("stage 1", "probability", "share", torch.tensor([self.share])),
            Learned("stage 1", EVIL, "mV", torch.linspace(0.1, 0.2, len(x))),
        ]

    def __repr__(self) -> str:
        return f"Stub({EVIL})"


def slower(x: Tensor) -> Tensor:
    """x(t/1.1)."""
    at = torch.arange(x.shape[-1]) / 1.1
    low = at.long()
    return torch.lerp(x[..., low], x[..., low + 1], at - low)


@pytest.fixture(scope="module")
def hearts() -> SyntheticCohort:
    rhythm = Rhythm(fibrillation=0.0, ectopy=0.0)
    return SyntheticCohort(40, seed=5, severity=0.0, nuisances=Nuisances.none(), rhythm=rhythm)


@pytest.fixture(scope="module")
def stretched(hearts: SyntheticCohort) -> Card:
    return make_card(Stub(slower), hearts, before=Stub(slower, 0.5), records=10)


@pytest.fixture(scope="module")
def html(stretched: Card) -> str:
    return render_card(stretched)


def rows(card: Card) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in summary(card)}


def test_an_identity_changes_nothing_and_the_page_says_so(hearts: SyntheticCohort) -> None:
    card = make_card(LearnedWarp(12, 0.0, 100.0), hearts, records=6)
    said, beware = verdict(card)
    assert said.startswith("No change")
    assert not beware
    for row in summary(card):
        assert row["shift"]["mean"] == row["shift"]["sd"] == row["beyond_noise"] == 0
    assert not any(row["appeared"] or row["vanished"] for row in criteria(card))
    html = render_card(card)
    assert "No change: the augmented recordings are the originals." in html
    assert "Changed most" not in html


def test_an_augmenter_in_eval_mode_is_shown_at_work(hearts: SyntheticCohort) -> None:
    assert not make_card(Stub(slower).eval(), hearts, records=2).identical


def test_a_stretch_of_a_tenth_is_measured_and_flagged(stretched: Card) -> None:
    found = rows(stretched)
    rate, qt, qrs = (found[key] for key in ("heart_rate", "qt", "qrs"))
    assert rate["shift"]["mean"] == pytest.approx((1 / 1.1 - 1) * rate["original"]["mean"], rel=0.05)
    assert qt["shift"]["mean"] == pytest.approx(0.1 * qt["original"]["mean"], rel=0.2)
    assert 0 < qrs["shift"]["mean"] < 0.15 * qrs["original"]["mean"]
    assert rate["beyond_noise"] == rate["measurable"] == 1.0
    slow = next(row for row in criteria(stretched) if row["name"] == "Bradycardia")
    assert slow["augmented"] > slow["original"]
    assert slow["augmented"] - slow["original"] == len(slow["appeared"]) - len(slow["vanished"])
    assert set(slow["beyond_noise"]) == set(slow["appeared"])
    said, beware = verdict(stretched)
    assert "Read differently" in said
    assert beware


@pytest.mark.slow
def test_doubled_amplitude_moves_st_alone(hearts: SyntheticCohort) -> None:
    card = make_card(Stub(lambda x: 2 * x), hearts, records=6)
    found = rows(card)
    for key in ("heart_rate", "pr", "qrs", "qt", "axis"):
        assert abs(found[key]["shift"]["mean"]) < 0.1, key
    originals = [case.measures[0]["st_V2"] for case in card.cases]
    np.testing.assert_allclose([case.shift["st_V2"] for case in card.cases], originals, atol=2e-3)


@pytest.mark.slow
def test_the_sample_is_even_and_the_same_seed_gives_the_same_card(hearts: SyntheticCohort) -> None:
    warp = LearnedWarp(12, 1.0, 100.0, lead_names=STANDARD_LEADS)
    first, again, other = (make_card(warp, hearts, records=4, seed=seed) for seed in (3, 3, 4))
    assert [case.name for case in first.cases] == [hearts.meta["record"][row] for row in (0, 13, 26, 39)]
    assert render_card(first) == render_card(again)
    assert not np.array_equal(first.cases[0].signals[1], other.cases[0].signals[1])


def test_looking_leaves_the_augmenter_as_it_was(hearts: SyntheticCohort) -> None:
    warp = LearnedWarp(12, 1.0, 100.0).train()
    before = {name: value.clone() for name, value in warp.state_dict().items()}
    make_card(warp, hearts, records=2)
    assert all(torch.equal(value, before[name]) for name, value in warp.state_dict().items())


def test_leads_are_picked_by_name_and_the_wrong_ones_refused(hearts: SyntheticCohort) -> None:
    some = ("V5", "II", "aVF", "I")
    card = make_card(LearnedWarp(4, 1.0, 100.0, lead_names=some), hearts, records=2)
    assert card.leads == some
    assert all(math.isfinite(case.measures[0]["axis"]) for case in card.cases)
    assert math.isnan(card.cases[0].measures[0]["st_V1"])
    assert render_card(card)
    with pytest.raises(InputError, match="Vx"):
        make_card(LearnedWarp(1, 1.0, 100.0, lead_names=("Vx",)), hearts)
    with pytest.raises(InputError, match="leads"):
        make_card(LearnedWarp(2, 1.0, 100.0), hearts)


def test_a_padded_end_is_not_measured(hearts: SyntheticCohort) -> None:
    x = hearts.signals.copy()
    x[:, :, 700:] = 0
    meta = hearts.meta.assign(valid_samples=700)
    short = type(hearts).__mro__[1](x, fs=100.0, leads=hearts.leads, meta=meta)
    card = make_card(Stub(lambda x: x + 0.0), short, records=3)
    assert all(case.signals.shape == (2, 12, 700) for case in card.cases)


def test_the_page_shows_what_was_learned_before_and_after(html: str) -> None:
    page = Page(html)
    assert [section["id"] for section in page.all("section")] == [
        "learned",
        "measurements",
        "criteria",
        "recordings",
        "method",
    ]
    cells = [cell.strip() for cell in page.cells]
    assert "25 %" in cells
    assert "50 %" in cells
    assert any(cell.startswith("0.15 mV, SD 0.03") for cell in cells)
    assert 'style="width: 25.0%"' in html
    assert 'style="left: 50.0%"' in html
    drawn = [image for image in page.all("img") if image["alt"].startswith("ECG ")]
    assert len(drawn) == 5
    assert all("25 mm/s, 10 mm/mV" in image["alt"] for image in drawn)


def test_the_page_stands_alone(html: str) -> None:
    page = Page(html)
    assert not page.all("script")
    assert not page.all("link")
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert EVIL not in html
    assert " at 0x" not in html
    assert "default-src 'none'" in html


def test_the_numbers_beside_the_page(stretched: Card, tmp_path: Path) -> None:
    page, numbers = write_card(stretched, tmp_path / "new" / "card.html")
    assert page.read_text().startswith("<!DOCTYPE html>")
    values = json.loads(numbers.read_text())
    assert values["records"] == len(values["recordings"]) == 10
    first = values["recordings"][0]
    assert first["augmented"]["heart_rate"] < first["original"]["heart_rate"]
    assert values["learned"][0]["before"]["mean"] == 0.5
    assert as_json(stretched)["verdict"] == values["verdict"]


Run = Callable[..., tuple[object, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line: exit code, standard output, standard error."""

    def command(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as leaving:
            guarded(lambda: app(["augment", "card", *map(str, arguments)]))
        return leaving.value.code, *capsys.readouterr()

    return command


def test_the_command_makes_a_card_of_a_run(run: Run, tmp_path: Path) -> None:
    LearnedWarp(12, 1.0, 100.0).save_pretrained(tmp_path / "run" / "augmenter_before")
    LearnedWarp(12, 0.5, 100.0).save_pretrained(tmp_path / "run" / "augmenter")
    code, out, err = run(tmp_path / "run", "--data", "synthetic", "--records", 4, "--out", tmp_path / "out")
    assert code == 0, err
    assert "card.html" in out
    assert "measuring [4/4]" in err
    values = json.loads((tmp_path / "out" / "card.json").read_text())
    magnitude = values["learned"][0]
    assert (magnitude["before"]["mean"], magnitude["now"]["mean"]) == (1.0, 0.5)


def test_the_command_finds_out_what_a_folder_holds(run: Run, real_data: Path, tmp_path: Path) -> None:
    LearnedWarp(12, 1.0, 100.0).save_pretrained(tmp_path / "warp")
    page = tmp_path / "card.html"
    code, _, err = run(tmp_path / "warp", "--data", real_data / "ptbxl_fixture", "--records", 3, "-o", page)
    assert code == 0, err
    values = json.loads(page.with_suffix(".json").read_text())
    assert values["available"] == 10
    assert values["learned"][0]["before"] is None


def refused(run: Run, said: str, folder: Path, *options: object) -> None:
    """The card of ``folder / "warp"`` ends in one line that says so."""
    code, _, err = run(folder / "warp", *options, "-o", folder / "card.html")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: ")
    assert said in err
    assert "Traceback" not in err
    assert not (folder / "card.html").exists()


@pytest.mark.parametrize(
    ("leads", "options", "said"),
    [
        (12, ("--data", "nowhere"), "no such folder"),
        (12, ("--data", "csv:nowhere"), "data source"),
        (12, ("--data", "synthetic", "--records", "0"), "records"),
        (12, ("--data", "synthetic", "--before", "nowhere/at/all"), "no such folder"),
        (3, ("--data", "synthetic"), "leads of x: found 12, expected 3"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    run: Run, leads: int, options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    LearnedWarp(leads, 1.0, 100.0).save_pretrained(tmp_path / "warp")
    refused(run, said, tmp_path, *options)


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (
            LearnedWarp(3),
            "found a LearnedWarp of 3 leads, expected the LearnedWarp of 12 leads before it learned",
        ),
        (
            LearnedPolicy(12, ops=("gain", "identity")),
            "found a LearnedPolicy of 12 leads, expected the LearnedW",
        ),
        (
            LearnedWarp.paper(),
            "found one that does not learn time warp: displacement, SD, expected the LearnedW",
        ),
        (LearnedWarp(lead_names=[*STANDARD_LEADS[6:], *STANDARD_LEADS[:6]]), "LearnedWarp: leads: found"),
    ],
)
def test_another_augmenter_is_not_what_it_was_before(
    run: Run, before: Augmenter, said: str, tmp_path: Path
) -> None:
    LearnedWarp(12, 1.0, 100.0).save_pretrained(tmp_path / "warp")
    before.save_pretrained(tmp_path / "other")
    options = ("--data", "synthetic", "--records", 2, "--before", tmp_path / "other")
    refused(run, said, tmp_path, *options)


def test_no_augmenter_is_said(run: Run, tmp_path: Path) -> None:
    code, _, err = run(tmp_path / "none", "--data", "synthetic")
    assert code == 2
    assert "no such folder" in err

"""Every example runs, and ends as its docstring says."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ecgmeta.augment.functional import OPERATIONS

pytestmark = pytest.mark.slow  # whole scripts

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def wrong_examples_end_with_smaller_weights(lines: list[str]) -> None:
    right, wrong = map(float, re.findall(r"\d\.\d\d", lines[-1]))
    assert right > wrong + 0.15
    found = re.search(r"of the 40 lowest weights, (\d+) are wrong", lines[-2])
    assert found is not None
    assert int(found[1]) >= 20  # 13 by chance


def a_penalty_a_feature_beats_one_for_all(lines: list[str]) -> None:
    assert float(lines[0].split()[-1]) < 1e-6  # the hypergradient against the closed form
    for line in lines[1:6]:
        shared, own = map(float, re.findall(r"(\d\.\d{3}) with", line))
        assert own < shared
        useful, others = map(float, re.findall(r"[+-]\d+\.\d", line))
        assert useful < others - 1


def the_rotation_is_found_and_helps(lines: list[str]) -> None:
    for line in lines[1:4]:
        turn, angle = map(int, re.findall(r"([+-]\d+)°", line))
        without, learned, ceiling = map(float, re.findall(r"0\.\d{3}", line))
        assert abs(angle - turn) < 20
        assert learned > without + 0.02
        assert learned > ceiling - 0.04


def the_own_source_is_twelve_leads_and_names_the_broken_file(lines: list[str]) -> None:
    assert "11 x 12 leads x 1000 samples at 100 Hz" in lines[0]
    assert "v3.csv: samples: found" in lines[1]
    assert "11 x 2 leads" in lines[-1]


def every_record_may_be_augmented_and_epochs_differ(lines: list[str]) -> None:
    changed = [re.findall(r"(\d+) changed, by (\d\.\d{3})", line)[0] for line in lines]
    assert all(int(count) > 24 for count, _ in changed)
    assert changed[0] != changed[1]


def the_loss_falls(lines: list[str]) -> None:
    losses = [float(line.split()[-1]) for line in lines]
    assert losses[-1] < losses[0] - 0.05


def every_operation_is_drawn_and_seen(lines: list[str]) -> None:
    changes = dict(
        re.findall(r"^(\w+) at .* changes the record by (\d\.\d+) mV", "\n".join(lines), re.MULTILINE)
    )
    assert set(changes) == set(OPERATIONS)
    assert min(map(float, changes.values())) > 0.02
    for name in ("operations.png", "rotation.png"):
        assert (Path("gallery") / name).read_bytes().startswith(b"\x89PNG")


def more_labels_and_width_help(lines: list[str]) -> None:
    few, many = (float(re.findall(r"wide (0\.\d{3})", line)[0]) for line in lines[:2])
    assert many > few + 0.05
    assert float(re.findall(r"[+-]0\.\d{3}", lines[1])[0]) > 0.03
    assert lines[-1] == "12 cells, each scored 1 time"


ENDS: dict[str, Callable[[list[str]], None]] = {
    "01_engine": wrong_examples_end_with_smaller_weights,
    "03_feature_penalties": a_penalty_a_feature_beats_one_for_all,
    "04_learned_rotation": the_rotation_is_found_and_helps,
    "05_your_own_source": the_own_source_is_twelve_leads_and_names_the_broken_file,
    "07_in_a_dataloader": every_record_may_be_augmented_and_epochs_differ,
    "08_in_lightly": the_loss_falls,
    "09_in_lightning": the_loss_falls,
    "10_label_sweep": more_labels_and_width_help,
    "06_augmentation_gallery": every_operation_is_drawn_and_seen,
}
SLOW = {
    *("03_feature_penalties", "04_learned_rotation", "06_augmentation_gallery"),
    *("08_in_lightly", "09_in_lightning", "10_label_sweep"),
}


@pytest.mark.usefixtures("threads")
def test_the_gallery_of_real_recordings_shows_every_operation_too(
    real_data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gallery", "--data", str(real_data)])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "06_augmentation_gallery.py"), run_name="__main__")
    every_operation_is_drawn_and_seen(capsys.readouterr().out.splitlines())


@pytest.fixture
def threads() -> Iterator[None]:
    """An example may choose its number of threads; the other tests keep theirs."""
    kept = torch.get_num_threads()
    yield
    torch.set_num_threads(kept)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in SLOW else ())
        for path in sorted(EXAMPLES.glob("[0-9]*.py"))
    ],
)
@pytest.mark.usefixtures("threads")
def test_example_runs_and_ends_as_it_says(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(path)])
    monkeypatch.chdir(tmp_path)  # what an example writes goes there
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines
    if path.stem in ENDS:
        ENDS[path.stem](lines)

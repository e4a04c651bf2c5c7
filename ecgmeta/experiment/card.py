"""From a saved augmenter and a source of recordings to an augmentation card."""

from __future__ import annotations

from pathlib import Path

from ecgmeta.augment.learned import load_augmenter
from ecgmeta.experiment.cohort import recordings
from ecgmeta.report.card import make_card, verdict, write_card
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.progress import progress_bar, say


def write(
    augmenter: str,
    data: str,
    out: Path,
    *,
    before: str | Path | None = None,
    records: int = 100,
    seed: int = 0,
) -> tuple[str, tuple[Path, Path]]:
    """Write the card of an augmenter: its verdict, and the page and the numbers that were written.

    Args:
        augmenter: folder of a saved augmenter, the run folder that has one, or a hub id.
        data: see :func:`~ecgmeta.experiment.cohort.recordings`.
        out: the page, or a folder for ``card.html``.
        before: the augmenter before it learned; where None, ``augmenter_before`` beside a run's ``augmenter``.
        records: how many recordings are measured.
        seed: of the augmentation.

    Raises:
        InputError: no such augmenter or data, leads that do not fit.
    """
    if records < 1:
        raise InputError("card", "records", records, "at least 1")
    page = out if out.suffix.lower() in (".html", ".htm") else out / "card.html"
    folder = Path(augmenter)
    if (folder / "augmenter").is_dir():
        folder = folder / "augmenter"
    beside = folder.with_name("augmenter_before")
    if before is None and folder.name == "augmenter" and beside.is_dir():
        before = beside
    learned = load_augmenter(folder if folder.is_dir() else augmenter)
    unlearned = None if before is None else load_augmenter(before)
    with progress_bar() as progress:
        found = recordings(data, learned.input_fs, progress, simulated=records)
        say("loading neurokit2")
        card = make_card(
            learned, found, before=unlearned, records=records, seed=seed, name=data, progress=progress
        )
    say("drawing")
    return verdict(card)[0], write_card(card, page)

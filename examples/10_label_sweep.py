"""How much do labels help, and does one encoder use them better than another? A label sweep. Half a minute on a laptop.

Untrained encoders of two widths stand for two pre-trainings (yours: ``ResNet1d.from_pretrained("runs/mine/encoder")``). Every
cell (an encoder, a protocol, a number of labels, a seed) is one file; after a stop the same call reads the finished ones.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from ecgmeta.data import SyntheticCohort
from ecgmeta.data.splits import patient_split
from ecgmeta.encoders import create_encoder
from ecgmeta.evaluation import Arm, CellResult, label_sweep, multilabel_scores, paired_difference
from ecgmeta.runtime.seeds import seeded

LABELS = (60, 240)


def fresh(width: int) -> Arm:
    """Encoders with weights drawn from the seed of a cell."""

    def encoder(seed: int) -> nn.Module:
        with seeded(seed, "encoder"):
            return create_encoder("resnet18", leads=12, width=width)

    return Arm(encoder, pretrained=False)


def sweep(out: Path) -> list[CellResult]:
    data = SyntheticCohort(700, fs=50, duration=5, seed=0)
    pool, test = (data.subset(rows) for rows in patient_split(data.meta, [0.5, 0.5], 0, data.labels))
    return label_sweep(
        {"narrow": fresh(2), "wide": fresh(8)},
        pool,
        test,
        out,
        sizes=LABELS,
        seeds=3,
        protocols=["full"],
        lrs=[1e-3, 1e-2],  # the validation records choose
        epochs=6,
        processes=1,  # more: cells at a time, and the same numbers
    )


def main(out: Path) -> None:
    results = sweep(out)
    first = results[0]
    known = {"targets": first.targets, "label_names": first.label_names, "patients": first.patients}
    for labels in LABELS:
        logits = {
            arm: [r.logits for r in results if (r.cell.arm, r.cell.labels) == (arm, labels)]
            for arm in ("wide", "narrow")
        }
        scores = multilabel_scores(logits["wide"], **known)
        found = paired_difference(logits["wide"], logits["narrow"], resample_seeds="paired", **known)
        low, high = found.interval
        print(
            f"{labels} labels: wide {scores.macro_auroc:.3f}, "
            f"{found.delta:+.3f} ({low:+.3f} to {high:+.3f}, over {found.resampled}) against narrow"
        )
    print(f"{len(results)} cells, each scored {max(r.info['scorings'] for r in results)} time")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with TemporaryDirectory() as folder:
            main(Path(folder))

"""A learned warp in your own PyTorch code: save it, load it, put it in a loop. Seconds on a laptop.

The recordings here are synthetic; yours are an array (records, leads, samples) in mV.
"""

from __future__ import annotations

import tempfile

import torch
from torch.utils.data import DataLoader

from ecgmeta.augment import Compose, LearnedWarp, TwoViews, WhiteNoise, ZeroCrop
from ecgmeta.data import ArrayDataset, SyntheticCohort


def main() -> None:
    cohort = SyntheticCohort(64, duration=5, seed=1)
    data = ArrayDataset(cohort.signals, cohort.labels, fs=cohort.fs, label_names=cohort.label_names)
    generator = torch.Generator().manual_seed(0)

    static = TwoViews(Compose([ZeroCrop(0.5), WhiteNoise(0.1)]))
    torch.manual_seed(0)  # a fresh warp's weights; one that was learned has its own
    with tempfile.TemporaryDirectory() as folder:
        LearnedWarp(fs=data.fs).save_pretrained(folder)
        warp = LearnedWarp.from_pretrained(folder)

    for x, y in DataLoader(data, batch_size=32):
        first, second = static(x, generator=generator)
        warped = warp(x, generator=generator)
        print(
            f"{tuple(x.shape)} mV, labels {tuple(y.shape)}: views differ by {(first - second).square().mean().sqrt():.3f} mV, "
            f"the warp moves the record by {(warped - x).square().mean().sqrt():.3f} mV"
        )
    print("in eval() the warp is the identity:", torch.equal(warp.eval()(x), x))
    print({name: round(value, 4) for name, value in warp.train().describe(x, generator=generator).items()})


if __name__ == "__main__":
    main()

"""A learned augmenter as a transform of a ``torch.utils.data`` data set, in two workers. Seconds on a laptop.

The recordings are synthetic. The augmenter is a fresh one; a learned one is ``load_augmenter("runs/meta/augmenter")``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ecgmeta.augment import LearnedPolicy, OnRecord
from ecgmeta.data import SyntheticCohort


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Any data set of (record, label), its records transformed."""

    def __init__(self, data: SyntheticCohort, transform: Callable[[Tensor], Tensor]) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.data[index]
        return self.transform(x), y


def main() -> None:
    data = SyntheticCohort(48, duration=5, seed=1)
    policy = LearnedPolicy(fs=data.fs, ops=("time_warp", "white_noise", "time_shift"), lead_names=data.leads)
    augmented = Augmented(data, OnRecord(policy))
    for epoch in range(2):
        seeded = torch.Generator().manual_seed(epoch)
        batches = list(DataLoader(augmented, batch_size=16, num_workers=2, generator=seeded))
        x = torch.cat([batch for batch, _ in batches])
        plain = torch.stack([data[i][0] for i in range(len(data))])
        moved = (x - plain).square().mean((1, 2)).sqrt()
        print(
            f"epoch {epoch}: {len(x)} records, {(moved > 0).sum()} changed, by {moved.mean():.3f} mV on average"
        )


if __name__ == "__main__":
    main()

"""A learned warp in lightly: two views a record by ``MultiViewTransform``, NT-Xent on their projections. Seconds on a laptop.

The recordings are synthetic. The warp is a fresh one; a learned one is ``load_augmenter("runs/meta/augmenter")``.
"""

from __future__ import annotations

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ecgmeta.augment import LearnedWarp, OnRecord, paper_static
from ecgmeta.data import SyntheticCohort
from ecgmeta.encoders import create_encoder


class Views(Dataset[list[Tensor]]):
    """The views of each record, as lightly's own data sets return them."""

    def __init__(self, data: SyntheticCohort, transform: MultiViewTransform) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> list[Tensor]:
        views: list[Tensor] = self.transform(self.data[index][0])
        return views


def main() -> None:
    torch.manual_seed(0)
    data = SyntheticCohort(96, duration=5, seed=1)
    warp = OnRecord(LearnedWarp(fs=data.fs, lead_names=data.leads))
    views = Views(data, MultiViewTransform([OnRecord(paper_static()), warp]))
    encoder = create_encoder("resnet18", leads=12, width=4)
    head = SimCLRProjectionHead(encoder.num_features, encoder.num_features, 32)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=3e-3)
    criterion = NTXentLoss(temperature=0.5)
    for epoch in range(4):
        losses = []
        for first, second in DataLoader(views, batch_size=32, shuffle=True, drop_last=True):
            loss = criterion(head(encoder(first)), head(encoder(second)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: NT-Xent {sum(losses) / len(losses):.3f}")


if __name__ == "__main__":
    main()

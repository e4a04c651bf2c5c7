"""Where this process stands among those of a data-parallel run, through Lightning Fabric; `torchrun` starts them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ecgmeta.runtime.progress import console


@dataclass(frozen=True)
class Ranks:
    """This process among ``size``.

    Attributes:
        device: to work on.
        rank: 0 to size − 1; the first leads: it alone writes and speaks.
        size: how many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def agreed(self, number: int | None) -> int | None:
        """The largest of the ranks' numbers, on all of them; None where all have None. All stop where one is asked to."""
        if self.size == 1:
            return number
        largest = torch.tensor(-1 if number is None else number, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return None if int(largest) < 0 else int(largest)

    def part(self) -> None:
        """Wait for the others and leave the group; from here on each is alone."""
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()


def find_ranks(accelerator: str) -> Ranks:
    """The place that ``torchrun`` gave this process; alone where it was not started by it.

    Args:
        accelerator: Lightning Fabric's: ``"cpu"``, ``"cuda"``, ``"auto"``.
    """
    from lightning_fabric import Fabric

    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return Ranks(Fabric(accelerator=accelerator, devices=1).device)
    local, size = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    fabric = Fabric(accelerator=accelerator, strategy="ddp", devices=local, num_nodes=size // local)
    fabric.launch()
    console.quiet = fabric.global_rank > 0
    return Ranks(fabric.device, fabric.global_rank, fabric.world_size)

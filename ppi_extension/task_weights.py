"""φ: one weight a pre-training task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.pretrained import Pretrained

TRANSFORMS = ("sigmoid", "softmax", "exp")


class TaskWeights(nn.Module, Pretrained):
    """One weight a task, ``w = s(z)``, all 1 at z = 0.

    Args:
        tasks: T.
        transform: s. ``"sigmoid"``: ``2·σ(z)``, in (0, 2), each on its own (Raghu et al., 2021). ``"softmax"``:
            ``T·softmax(z)``, of mean 1, so that weight given to one task is taken from the others. ``"exp"``: ``exp(z)``,
            unbounded.
        names: of the tasks, in order; kept with the weights.

    Shapes: () -> (T,), positive. The parameter ``z`` is (T,).
    """

    def __init__(
        self,
        tasks: int,
        transform: Literal["sigmoid", "softmax", "exp"] = "sigmoid",
        names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if tasks < 1:
            raise InputError("TaskWeights", "tasks", tasks, "at least 1")
        if transform not in TRANSFORMS:
            raise InputError("TaskWeights", "transform", transform, f"one of {', '.join(TRANSFORMS)}")
        if len(names) not in (0, tasks):
            raise InputError(
                "TaskWeights", "names", f"{len(names)} names", f"none, or one for each of {tasks} tasks"
            )
        self.transform = transform
        self.names = tuple(names)  # a saved configuration is JSON, which gives a tuple back as a list
        self.z = nn.Parameter(torch.zeros(tasks))

    def forward(self) -> Tensor:
        if self.transform == "sigmoid":
            return 2 * self.z.sigmoid()
        if self.transform == "softmax":
            return len(self.z) * self.z.softmax(0)
        return self.z.exp()

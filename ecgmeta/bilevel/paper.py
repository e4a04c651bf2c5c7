"""The paper's own settings, for comparison."""

from __future__ import annotations

from typing import Any

from ecgmeta.bilevel.inverse import Neumann
from ecgmeta.bilevel.loop import Schedule
from ecgmeta.bilevel.optimizers import Adam
from ecgmeta.bilevel.products import DoubleBackward
from ecgmeta.bilevel.unroll import Unroll


def paper(
    steps: int, warmup: int, *, lr: float = 1e-4, head_lr: float = 1e-4, period: int = 10, terms: int = 1
) -> dict[str, Any]:
    """Keyword arguments with which :func:`~ecgmeta.bilevel.loop.meta_train` does what Raghu et al.'s released code does.

    P = 10; K = 1 step of the head alone, by Adam; a Neumann series of one term whose step size is the pre-training learning
    rate (on a real model thousands of times below what would matter, which leaves ``H⁻¹ ≈ α``); products by double backward
    on a batch of their own, after θ has moved; one draw; φ's gradient neither scaled nor clipped. The rest of it is in the
    state: Adam for θ at ``lr``, and Adam with its default eps for φ, at 1 (task weights) or 1e-4 (augmentation network).

    One thing is ours: a φ step whose series grows is not taken, where theirs would be (give the inverse ``growth=math.inf``).

    Args:
        steps: pre-training steps in all; the paper's are 100 epochs of batches of 32 (graphs), 50 of 256 (ECG).
        warmup: steps before φ moves; the paper's are one epoch.
        lr: of pre-training, and so the Neumann step size.
        head_lr: of the fine-tuning head.
        period: P.
        terms: of the Neumann series.

    Example:
        ``meta_train(problem, state, batches, **paper(steps=5000, warmup=100))``
    """
    return {
        "schedule": Schedule(steps, period, warmup),
        "finetune": Unroll(1, Adam(head_lr)),
        "head_optimizer": Adam(head_lr),
        "inverse": Neumann(terms, lr),
        "products": DoubleBackward,
        "share": False,
        "accumulate": 1,
        "scaling": 1.0,
        "clip": None,
        "control": "none",
    }

"""NT-Xent record by record, for augmenters whose choices have no derivative but a score."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def record_losses(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss of each record and what each record's views change, themselves and as negatives of others.

    With anchors a of 2N views, ``l_a`` their losses and ``p_ar`` the share of both views of record r in the softmax of a, the
    loss of r is the mean of its anchors' and its effect

        e_r = ½ Σ_{a in r} l_a − ½ Σ_{a not in r} log(1 − p_ar).

    The last sum is how much lower the other anchors' losses were without r. What is left out, those losses themselves, does not
    depend on r's views, so ``E[Σ_a l_a ∂log p] = 2 E[Σ_r e_r ∂log p_r]`` exactly, at a fraction of the variance.

    Args:
        first, second: (records, features), projected views.
        temperature: of the softmax.

    Returns:
        losses (records,), whose mean is NT-Xent, and effects (records,).
    """
    n = len(first)
    z = F.normalize(torch.cat([first, second]), dim=-1)
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    chances = F.log_softmax((z @ z.T / temperature).masked_fill(itself, -torch.inf), dim=-1)
    anchors = torch.arange(2 * n, device=z.device)
    losses = -chances[anchors, (anchors + n) % (2 * n)]
    losses = (losses[:n] + losses[n:]) / 2
    shares = chances.exp().view(2 * n, 2, n).sum(1)
    own = torch.eye(n, dtype=torch.bool, device=z.device).repeat(2, 1)
    # The largest share that leaves a float32 remainder.
    without = torch.log1p(-shares.masked_fill(own, 0.0).clamp(max=1 - 1e-6))
    return losses, losses - without.sum(0) / 2

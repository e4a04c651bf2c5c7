"""Does φ learn anything, or does it only walk at random? The statistics of its hypergradients over the φ steps.

A single hypergradient is mostly noise, so its size says nothing. Of each coordinate's gradients g₁ … g_n, with mean m and
standard deviation s, the *signal-to-noise ratio* is m/s, and that of the running sum Σg is ``t = √n·m/s``: noise without a mean
keeps t within Student's distribution for ever, a mean of ratio r makes it grow as r√n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ecgmeta.bilevel.products import cosine
from ecgmeta.bilevel.trees import Tree, clone, flatten, zeros_like

LEVEL = 0.01  # of a false alarm, for each of the two tests
FEWEST = 10  # φ steps before anything is said
NO_FURTHER = "φ moved no further than chance: more labels or more φ steps are needed"
"""What to do where the hypergradients do not drift."""


@dataclass
class Signal:
    """Running mean and variance of every φ coordinate's hypergradient (Welford), in float64: three trees like φ for any n.

    Verdicts assume that the φ steps' noise is independent from step to step, as freshly drawn batches make it. They hold
    however the *coordinates* are correlated (a network's are, strongly), by two tests at a level of 1 % each:

    - the mean of z² over coordinates, 1 without a drift, is above 6.63. It is ``Σ wᵢχ²₁`` with weights that sum to 1, whose
      upper tail is no heavier than that of a single χ²₁ (Székely & Bakirov, 2003). A drift of ratio r in all coordinates
      raises it to ``1 + n·ln(1 + r²)``, so it is found after about ``5.63 / r²`` φ steps;
    - the largest abs z is above what 1 % would see among so many coordinates (Bonferroni), for a drift of a few.

    The level is that of one look: asking at every step finds a drift of nothing more often.
    """

    count: int = 0
    mean: Tree = field(default_factory=dict)
    square: Tree = field(default_factory=dict)  # Σ (g − mean)²
    previous: Tree = field(default_factory=dict)
    cosine_previous: float | None = None

    def update(self, gradient: Mapping[str, Tensor]) -> None:
        """Take in the hypergradient of one φ step, a tree shaped like φ."""
        new = {name: value.detach().double() for name, value in gradient.items()}
        if self.count == 0:
            self.mean, self.square = zeros_like(new), zeros_like(new)
        self.cosine_previous = cosine(self.previous, new) if self.count else None
        self.previous = clone(new)
        self.count += 1
        for name, value in new.items():
            before = value - self.mean[name]
            self.mean[name] = self.mean[name] + before / self.count
            self.square[name] = self.square[name] + before * (value - self.mean[name])

    def z(self) -> Tensor:
        """The running sum of every coordinate in standard deviations, as one vector: standard normal where there is no drift.

        t has heavier tails while n is small, so it is mapped to the normal scale (Wallace, 1959). A coordinate that is always 0
        has z = 0.
        """
        nu = self.count - 1
        mean, square = flatten(self.mean), flatten(self.square)
        ratio = self.count * mean.square() / square  # t² / nu
        z = (nu * ratio.log1p()).sqrt() * (8 * nu + 1) / (8 * nu + 3)
        return torch.where(mean == 0, torch.zeros_like(z), z.copysign(mean))

    def diagnostics(self) -> dict[str, float]:
        """Numbers to log; what noise alone gives is in brackets.

        ``cosine_previous`` between this φ step's hypergradient and the one before (0); from the third step on ``snr_median``,
        the median of abs m/s (0.67/√n); ``snr``, the root mean square of m/s freed of what noise adds to it (0);
        ``z_mean_square`` (1), ``z_max`` (grows as √(2 ln coordinates)), and ``z_share_beyond_2`` (0.0455).
        """
        values = {} if self.cosine_previous is None else {"cosine_previous": self.cosine_previous}
        if self.count < 3 or not self.mean:
            return values
        size = self.z().abs()
        mean, spread = flatten(self.mean), (flatten(self.square) / (self.count - 1)).sqrt()
        ratio = torch.where(mean == 0, torch.zeros_like(mean), mean.abs() / spread)
        mean_square = float(size.square().mean())
        return values | {
            "snr_median": float(ratio.median()),
            "snr": math.sqrt(math.expm1(max(0.0, mean_square - 1) / self.count)),
            "z_mean_square": mean_square,
            "z_max": float(size.max()),
            "z_share_beyond_2": float((size > 2).double().mean()),
        }

    @property
    def drifts(self) -> bool:
        """Whether the sum of the hypergradients is more than a random walk's."""
        if self.count < FEWEST or not self.mean:
            return False
        found = self.diagnostics()
        all_of_them, a_few = self._thresholds()
        return found["z_mean_square"] > all_of_them or found["z_max"] > a_few

    def verdict(self) -> str:
        """In a sentence: it drifts, it walks at random, or it had too few φ steps to tell."""
        if self.count < FEWEST or not self.mean:
            return f"had too few φ steps to tell: {self.count}, at least {FEWEST} are needed"
        found, (all_of_them, a_few) = self.diagnostics(), self._thresholds()
        advice = "" if self.drifts else f"; {NO_FURTHER}"
        return (
            f"{'drifts' if self.drifts else 'walks at random'}: after {self.count} φ steps the mean of z² is "
            f"{found['z_mean_square']:.2f} (noise 1, drift above {all_of_them:.2f}), the largest |z| {found['z_max']:.2f} "
            f"(drift above {a_few:.2f}), and {100 * found['z_share_beyond_2']:.1f} % of coordinates are beyond 2 (noise 4.6 %)"
            f"{advice}"
        )

    def _thresholds(self) -> tuple[float, float]:
        coordinates = sum(value.numel() for value in self.mean.values())
        normal = NormalDist()
        return normal.inv_cdf(1 - LEVEL / 2) ** 2, -normal.inv_cdf(LEVEL / (2 * coordinates))

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything, loadable with ``torch.load(..., weights_only=True)``."""
        trees = {name: clone(getattr(self, name)) for name in ("mean", "square", "previous")}
        return {"count": self.count, "cosine_previous": self.cosine_previous, **trees}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a :meth:`state_dict` exactly."""
        self.count, self.cosine_previous = state["count"], state["cosine_previous"]
        for name in ("mean", "square", "previous"):
            setattr(self, name, clone(state[name]))

"""From a hypergradient to the change of φ: scale, clip, step, and the control that takes the direction away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ecgmeta.bilevel.noise import derive_seed
from ecgmeta.bilevel.state import MetaState
from ecgmeta.bilevel.trees import Tree, axpy, clone, norm


@dataclass(frozen=True)
class PhiStep:
    """What :func:`~ecgmeta.bilevel.loop.meta_train` does with a hypergradient g.

    Args:
        scaling: a factor, or ``"normalise"``: ``g/(‖g‖ + eps)`` over all of φ. Hypergradients are tiny (1e-7 an entry and
            less), and below the eps of φ's own optimiser (1e-8 in Adam) it is eps that decides the step.
        eps: of ``"normalise"``; far below the norms that are seen.
        clip: largest norm handed to φ's optimiser, after scaling; None does not clip.
        control: ``"random_walk"`` lets φ's optimiser take its step and then replaces the displacement of each φ tensor by one
            of the same norm in a random direction, so that φ moves as far as learning would move it and learns nothing. What
            learning would leave where it is (entries that no loss depends on) stays. The optimiser still sees the
            hypergradients, taken where the walk stands.
        seed: of the random directions, which are a function of it and the step; data-parallel ranks share it.
    """

    scaling: float | Literal["normalise"] = 1.0
    eps: float = 1e-12
    clip: float | None = None
    control: Literal["none", "random_walk"] = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        number = isinstance(self.scaling, int | float) and self.scaling > 0
        if not number and self.scaling != "normalise":
            raise ValueError(f"scaling must be a factor above 0 or 'normalise', got {self.scaling!r}")
        if self.eps < 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError(f"eps must be at least 0 and clip above 0, got {self.eps} and {self.clip}")
        if self.control not in ("none", "random_walk"):
            raise ValueError(f"control must be 'none' or 'random_walk', got {self.control!r}")

    def __call__(self, state: MetaState, gradient: Tree) -> dict[str, float]:
        """Move ``state.phi``. Returns numbers to log: ``scaled_norm``, of what φ's optimiser was given, and ``displacement``,
        the norm of what it made of it."""
        size = float(norm(gradient))
        factor = 1 / (size + self.eps) if isinstance(self.scaling, str) else self.scaling
        if self.clip is not None and factor * size > self.clip:
            factor = self.clip / size
        before = clone(state.phi)
        for name, value in state.phi.items():
            value.grad = factor * gradient[name]
        for optimizer in state.phi_optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        moved = axpy(-1.0, before, clone(state.phi))
        if self.control == "random_walk":
            self._turn(state, before, moved)
        return {"scaled_norm": factor * size, "displacement": float(norm(moved))}

    def _turn(self, state: MetaState, before: Tree, moved: Tree) -> None:
        # Drawn on the CPU, in float64: the same walk on every device.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "random walk", state.step))
        with torch.no_grad():
            for name, value in state.phi.items():
                direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                direction *= (moved[name] != 0).cpu()
                length = direction.norm()
                if length > 0:
                    value.copy_(before[name] + (direction / length).to(value) * moved[name].norm())

"""Everything that meta-training changes, in one object that saves and restores exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ecgmeta.bilevel.optimizers import State
from ecgmeta.bilevel.signal import Signal
from ecgmeta.bilevel.trees import Tree, clone


@dataclass
class MetaState:
    """Everything that :func:`meta_train` changes. θ and φ are optimised in place; ψ is replaced.

    Attributes:
        theta, phi: trees of leaf tensors, usually the live parameters of modules.
        psi: the warm fine-tuning head.
        theta_optimizer: a ``torch.optim`` optimiser over the tensors of ``theta``.
        phi_optimizer: one over those of ``phi``, in any parameter groups, or several that share them out.
        head_state: state of the head's functional optimiser.
        step: pre-training steps done.
        signal: statistics of the hypergradients so far.
        route: name of the products' route where :func:`meta_train` chose it, so that a resumed run takes the same.
    """

    theta: Tree
    phi: Tree
    psi: Tree
    theta_optimizer: torch.optim.Optimizer
    phi_optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None
    head_state: State | None = None
    step: int = 0
    signal: Signal = field(default_factory=Signal)
    route: str | None = None

    @property
    def phi_optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """φ's optimisers, however many they are."""
        if self.phi_optimizer is None:
            return ()
        if isinstance(self.phi_optimizer, torch.optim.Optimizer):
            return (self.phi_optimizer,)
        return tuple(self.phi_optimizer)

    def check_phi_optimizers(self) -> None:
        """Raise ``ValueError`` for a φ tensor that no optimiser, or more than one parameter group, would move."""
        groups = [group for optimizer in self.phi_optimizers for group in optimizer.param_groups]
        times = Counter(id(parameter) for group in groups for parameter in group["params"])
        for name, value in self.phi.items():
            if times[id(value)] != 1:
                raise ValueError(
                    f"state.phi_optimizer must hold each tensor of φ once: {name!r} is there {times[id(value)]} times"
                )

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything, loadable with ``torch.load(..., weights_only=True)``."""
        return {
            "step": self.step,
            "theta": clone(self.theta),
            "phi": clone(self.phi),
            "psi": clone(self.psi),
            "head_state": None
            if self.head_state is None
            else {name: clone(tree) for name, tree in self.head_state.items()},
            "theta_optimizer": self.theta_optimizer.state_dict(),
            "phi_optimizers": [optimizer.state_dict() for optimizer in self.phi_optimizers],
            "signal": self.signal.state_dict(),
            "route": self.route,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict` exactly.

        Raises:
            ValueError: the names or shapes of a tree differ (a checkpoint of another architecture), or the number of φ's
                optimisers.
        """
        for name in ("theta", "phi", "psi"):
            _check_same(name, getattr(self, name), state[name])
        saved, own = len(state["phi_optimizers"]), len(self.phi_optimizers)
        if saved != own:
            raise ValueError(f"phi_optimizer: the checkpoint has {saved} optimisers, this state has {own}")
        with torch.no_grad():
            for name in ("theta", "phi"):
                for key, value in getattr(self, name).items():
                    value.copy_(state[name][key])
        self.psi = clone(state["psi"])
        head_state = state["head_state"]
        self.head_state = None if head_state is None else {k: clone(tree) for k, tree in head_state.items()}
        self.theta_optimizer.load_state_dict(state["theta_optimizer"])
        for optimizer, of_phi in zip(self.phi_optimizers, state["phi_optimizers"], strict=True):
            optimizer.load_state_dict(of_phi)
        self.signal.load_state_dict(state["signal"])
        self.route = state["route"]
        self.step = state["step"]


def _check_same(name: str, own: Tree, saved: Tree) -> None:
    for key in [*own, *saved]:
        found = tuple(saved[key].shape) if key in saved else "nothing"
        expected = tuple(own[key].shape) if key in own else "nothing"
        if found != expected:
            raise ValueError(f"{name}.{key}: the checkpoint has {found}, the model has {expected}")

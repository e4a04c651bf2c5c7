"""The limits of an augmenter's parameters, and which keys may cure what failed."""

from __future__ import annotations

from ecgmeta.bilevel import Identity, MetaState, Neumann, Solution, Solver
from ecgmeta.bilevel.inverse import Matvec
from ecgmeta.bilevel.trees import Tree
from ecgmeta.experiment.config import Meta
from ecgmeta.runtime.failures import PhiGuard

MAGNITUDES = ("global_magnitude", "g")
"""Parameters of an augmenter whose square is a magnitude, in units of the operation's typical one."""
LOGITS = ("logits", "gate_logits")
"""Those whose softmax or sigmoid is a chance."""
LOGIT_LIMIT = 20.0
"""At ±20 a chance is within 2e-9 of 0 or 1 and its derivative as small: from there φ does not come back."""

KEYS = {
    "series": "meta.step_size, meta.damping",
    "non-finite": "meta.step_size, pretrain.lr",
    "runaway": "meta.magnitude_lr, meta.lr, meta.clip",
    "loss": "pretrain.lr, meta.head_lr",
    "weights": "pretrain.lr, meta.head_lr",
}
"""What to set where a reason says what to try."""


class AugmenterGuard(PhiGuard):
    """The guard of a run with an augmenter: magnitudes and chances have limits.

    It is itself the :class:`~ecgmeta.bilevel.inverse.Solver` of the run, so that α can change between φ steps.
    """

    def __init__(self, config: Meta, state: MetaState) -> None:
        self._config = config
        policy = "stop" if config.on_failure == "raise" else config.on_failure  # its name in older runs
        super().__init__(policy, config.step_size, state, KEYS, self._largest)

    def solve(self, matvec: Matvec, v: Tree) -> Solution:
        """``H⁻¹v`` by the configured solver at the present α."""
        solver: Solver = Identity(self.step_size)
        if self._config.inverse == "neumann":
            solver = Neumann(self._config.terms, self.step_size, self._config.damping)
        return solver(matvec, v)

    def _largest(self, name: str) -> float:
        last = name.rpartition(".")[2]
        if last in LOGITS:
            return LOGIT_LIMIT
        return self._config.magnitude_limit or float("inf") if last in MAGNITUDES else float("inf")

"""What is done about a φ step that failed, and about numbers that broke: the engine reports, this decides."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ecgmeta.runtime.errors import Diverged
from ecgmeta.runtime.progress import say

MOST_SHRINKS = 20
"""Halvings of one rate before a run is given up: a millionth of what was asked for teaches φ nothing."""

OUTGROWN = ("DIVERGED", "INDEFINITE")
"""Results of an inverse product that a smaller step size may cure."""


@dataclass(frozen=True)
class Failure:
    """Why a φ step was not taken as it came, or why training cannot go on.

    Attributes:
        kind: ``"series"`` (the inverse product grew), ``"non-finite"``, ``"runaway"`` (φ left its limits); and ``"loss"`` and
            ``"weights"``, which are not finite and always stop.
        reason: in words.
        action: ``"stop"``, ``"skip"`` or ``"shrink"``.
    """

    kind: str
    reason: str
    action: str


class Step(Protocol):
    """One step as the engine reports it, see :class:`ecgmeta.bilevel.Report`."""

    @property
    def step(self) -> int: ...

    @property
    def pretrain_loss(self) -> float: ...

    @property
    def hyper(self) -> Any: ...

    @property
    def skipped(self) -> str | None: ...

    @property
    def diagnostics(self) -> dict[str, float]: ...


class State(Protocol):
    """What the engine changes, see :class:`ecgmeta.bilevel.MetaState`."""

    step: int

    @property
    def phi(self) -> dict[str, Tensor]: ...

    @property
    def phi_optimizers(self) -> tuple[torch.optim.Optimizer, ...]: ...


class PhiGuard:
    """Watches φ steps, and follows ``meta.on_failure`` where one fails.

    - ``stop``: the caller logs the step and raises :func:`diverged`; the last checkpoint stands.
    - ``skip``: φ stays as it was before the step. Where it is only some of its entries that left their limits, these stay, and
      the rest of φ takes its step.
    - ``shrink``: as skip, and for the rest of the run α is halved where the inverse product failed, φ's learning rates where φ
      ran away, both where a hypergradient was not finite.

    Args:
        policy: which of the three.
        step_size: α, for whoever takes the inverse product at :attr:`step_size`.
        state: φ and its optimisers.
        keys: by kind of failure, the configuration keys that may cure it.
        limit: name of a φ tensor -> largest size of its entries.
    """

    def __init__(
        self,
        policy: str,
        step_size: float,
        state: State,
        keys: Mapping[str, str],
        limit: Callable[[str], float],
    ) -> None:
        self.policy = policy
        self._step_size, self._state, self._keys, self._limit = step_size, state, keys, limit
        self._shrinks = {"step_size": 0, "lr": 0}
        self._counts: dict[str, int] = {}
        self._before = self._snapshot()

    @property
    def step_size(self) -> float:
        """α as it is now."""
        return self._step_size / 2 ** self._shrinks["step_size"]

    def state_dict(self) -> dict[str, int]:
        # φ's learning rates need no place here: its optimisers save theirs.
        return dict(self._shrinks)

    def load_state_dict(self, saved: Mapping[str, int]) -> None:
        """Take up where an earlier process stood; call it after the state was loaded."""
        self._shrinks |= dict(saved)
        self._before = self._snapshot()

    def __call__(self, report: Step) -> Failure | None:
        """Look at a finished step; where its φ step failed, put φ right and say what was done."""
        if report.hyper is None:
            return None
        if report.skipped is not None:
            series = report.hyper.inverse.result.name in OUTGROWN
            found: tuple[str, str] | None = ("series" if series else "non-finite", report.skipped)
        else:
            found = self._runaway()
        worn = max(self._shrinks.values()) >= MOST_SHRINKS
        failure = None if found is None else Failure(*found, "stop" if worn else self.policy)
        if failure is not None:
            self._act(failure, report.step)
        self._before = self._snapshot()
        return failure

    def _act(self, failure: Failure, step: int) -> None:
        if failure.action == "stop":
            return
        n = self._counts[failure.kind] = self._counts.get(failure.kind, 0) + 1
        done = "φ step not taken"
        if failure.action == "shrink":
            done = self._shrink(failure.kind)
        if n & (n - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: said, and no flood
            times = f", {n} times now" if n > 1 else ""
            say(f"step {step}: {done}{times}: {failure.reason} ({self._keys[failure.kind]})")

    def _shrink(self, kind: str) -> str:
        done = []
        if kind in ("series", "non-finite"):
            self._shrinks["step_size"] += 1
            done.append(f"meta.step_size is {self.step_size:.3g} from here")
        if kind in ("runaway", "non-finite"):
            self._shrinks["lr"] += 1
            for group in self._groups():
                group["lr"] /= 2
            rates = ", ".join(f"{group['lr']:.3g}" for group in self._groups())
            done.append(f"φ's learning rates are {rates} from here")
        return " and ".join(done)

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._state.phi_optimizers for group in optimizer.param_groups]

    def _snapshot(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        phi = {name: value.detach().clone() for name, value in self._state.phi.items()}
        return phi, [copy.deepcopy(optimizer.state_dict()) for optimizer in self._state.phi_optimizers]

    @torch.no_grad()
    def _runaway(self) -> tuple[str, str] | None:
        """Put back what left its limits. Returns kind and reason, or None where all is well."""
        phi, optimizers = self._before
        broken = [name for name, value in self._state.phi.items() if not bool(value.isfinite().all())]
        if broken:  # φ's optimiser has it in its moments, too
            for name, value in self._state.phi.items():
                value.copy_(phi[name])
            for optimizer, before in zip(self._state.phi_optimizers, optimizers, strict=True):
                optimizer.load_state_dict(copy.deepcopy(before))
            return "non-finite", f"φ is not finite, from {broken[0]} on; try smaller learning rates"
        reasons = []
        for name, value in self._state.phi.items():
            limit = self._limit(name)
            beyond = value.abs() > limit
            if bool(beyond.any()):
                reasons.append(
                    f"{name} reached {float(value.abs().max()):.3g}, beyond its limit of {limit:g}"
                )
                value.copy_(torch.where(beyond, phi[name], value))
        if not reasons:
            return None
        return "runaway", f"φ runs away: {'; '.join(reasons)}; try smaller learning rates of φ, or a clip"

    def summary(self) -> str | None:
        """How often what failed in this process, or None."""
        if not self._counts:
            return None
        counts = ", ".join(f"{n} × {kind}" for kind, n in self._counts.items())
        return f"φ steps that failed (meta.on_failure={self.policy}): {counts}"


def diverged(failure: Failure, step: int, keys: Mapping[str, str]) -> Diverged:
    """What to raise for a failure that stops; ``keys`` as :class:`PhiGuard` has them."""
    onwards = (
        "" if failure.kind == "weights" else " The same command with meta.on_failure=skip goes on from it."
    )
    return Diverged(
        f"step {step}: {failure.reason} ({keys[failure.kind]}, in a new run). The last checkpoint stands.{onwards}"
    )


def not_finite(tree: Mapping[str, Tensor]) -> str | None:
    """The first tensor that has an entry that is not finite."""
    return next((name for name, value in tree.items() if not bool(torch.isfinite(value).all())), None)


Reported = TypeVar("Reported", bound=Step)


def finite(
    loop: Iterator[Reported], state: State, note: Callable[[int, Failure], None], keys: Mapping[str, str]
) -> Iterator[Reported]:
    """The engine's reports; a loss that is not finite is said with its step.

    Args:
        note: called with the step that could not be taken, before it is raised.

    Raises:
        Diverged: a loss is not finite.
    """
    try:
        yield from loop
    except FloatingPointError as error:
        failure = Failure("loss", f"{error}; try smaller learning rates", "stop")
        note(state.step, failure)
        raise diverged(failure, state.step, keys) from error

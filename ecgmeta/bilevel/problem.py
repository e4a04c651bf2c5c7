"""The two-stage problem in the engine's terms, and its adapter from ``nn.Module``.

θ are the pre-trained parameters (encoder and pre-training head), φ the pre-training hyperparameters, ψ the fine-tuning head.
A loss is the *same function for the same batch*: whatever noise it uses (views, masks) is part of the batch, so that the
products of one φ step all differentiate one function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ecgmeta.bilevel.trees import Tree


class Problem(Protocol):
    """What the engine needs: two scalar losses over named tensors."""

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        """``L_PT(θ, φ)`` on one pre-training batch: a scalar."""
        ...

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        """``L_FT(θ, ψ)`` on one fine-tuning batch: a scalar."""
        ...


@runtime_checkable
class FeatureProblem(Problem, Protocol):
    """A problem whose fine-tuning loss is a head on features: ``L_FT(θ, ψ) = head_loss(features(θ), ψ)``.

    The engine then computes the features once for a whole unroll of the head.
    """

    def features(self, theta: Tree, batch: Any) -> Tensor: ...

    def head_loss(self, features: Tensor, psi: Tree, batch: Any) -> Tensor: ...


@runtime_checkable
class RecordingProblem(Protocol):
    """A problem with running state (BatchNorm statistics).

    Within ``recording()`` a loss may update that state; outside it must not. The loop records ordinary
    pre-training steps only, so a φ step never moves the statistics.
    """

    def recording(self) -> AbstractContextManager[None]: ...


class ModuleProblem:
    """The two-stage problem of ordinary modules.

    Args:
        pretrain: ``pretrain(batch)`` is the pre-training loss, a scalar. Runs in train mode.
        finetune: ``finetune(batch)`` is the fine-tuning loss, a scalar. It holds the same encoder object as ``pretrain``.
        hyper: the submodule of ``pretrain`` whose parameters are φ, or None.
        finetune_mode: ``"eval"`` (normalisation layers use their running statistics: a v of far lower variance)
            or ``"train"``.

    Roles go by identity. φ: the parameters of ``hyper``; θ: the other trainable parameters of ``pretrain``; ψ: the trainable
    parameters of ``finetune`` that are not θ. Frozen parameters (``requires_grad=False``) stay as they are. Buffers are
    read as they stand and written only while :meth:`recording`.

    ``theta``, ``phi`` and ``psi`` give the live parameters, so optimising them in place trains the modules.
    """

    def __init__(
        self,
        pretrain: nn.Module,
        finetune: nn.Module,
        *,
        hyper: nn.Module | None = None,
        finetune_mode: Literal["eval", "train"] = "eval",
    ) -> None:
        if finetune_mode not in ("eval", "train"):
            raise ValueError(f"finetune_mode must be 'eval' or 'train', got {finetune_mode!r}")
        self.pretrain, self.finetune, self.finetune_mode = pretrain, finetune, finetune_mode
        hyper_ids = {id(p) for p in hyper.parameters()} if hyper is not None else set()
        trainable = {name: p for name, p in pretrain.named_parameters() if p.requires_grad}
        missing = hyper_ids - {id(p) for p in pretrain.parameters()}
        if missing:
            raise ValueError(
                "hyper must be a submodule of pretrain: some of its parameters are not pretrain's"
            )
        self.phi: Tree = {name: p for name, p in trainable.items() if id(p) in hyper_ids}
        self.theta: Tree = {name: p for name, p in trainable.items() if id(p) not in hyper_ids}
        names = {id(p): name for name, p in self.theta.items()}
        self._shared: dict[str, str] = {}  # name in finetune -> name in θ
        self.psi: Tree = {}
        for name, p in finetune.named_parameters():
            if id(p) in names:
                self._shared[name] = names[id(p)]
            elif p.requires_grad:
                self.psi[name] = p
        if not self._shared:
            raise ValueError("finetune shares no parameter with pretrain: pre-training could not help it")
        self._recording = False

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        return self._call(self.pretrain.train(), {**theta, **phi}, "forward", batch)

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        return self._call(self._finetuner(), self._finetune_parameters(theta, psi), "forward", batch)

    @contextmanager
    def recording(self) -> Iterator[None]:
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    def _finetuner(self) -> nn.Module:
        return self.finetune.train(self.finetune_mode == "train")

    def _finetune_parameters(self, theta: Tree, psi: Tree) -> Tree:
        return {name: theta[shared] for name, shared in self._shared.items()} | psi

    def _call(self, module: nn.Module, tensors: Mapping[str, Tensor], method: str, *args: Any) -> Tensor:
        values = {f"module.{name}": value for name, value in tensors.items()}
        if not self._recording:
            # Copies take the in-place updates of running statistics, and are dropped.
            values |= {f"module.{name}": buffer.clone() for name, buffer in module.named_buffers()}
        return functional_call(_Method(module, method), values, args)


class FeatureModuleProblem(ModuleProblem):
    """A :class:`ModuleProblem` whose ``finetune`` module is split at the encoder's output.

    ``finetune`` also has ``features(batch)`` and ``head_loss(features, batch)``, with ``finetune(batch) ==
    head_loss(features(batch), batch)``; the engine computes the features once for a whole unroll of the head.
    """

    @property
    def per_example(self) -> bool:
        """Whether an example's features do not depend on its batch, so that a pool may be encoded in any pieces."""
        return self.finetune_mode == "eval"

    def features(self, theta: Tree, batch: Any) -> Tensor:
        return self._call(self._finetuner(), self._finetune_parameters(theta, {}), "features", batch)

    def head_loss(self, features: Tensor, psi: Tree, batch: Any) -> Tensor:
        return self._call(self._finetuner(), psi, "head_loss", features, batch)


class _Method(nn.Module):
    """A module's method as a ``forward``, which is all that ``functional_call`` can call."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Any) -> Any:
        return getattr(self.module, self.method)(*args)


def check_scalar(loss: Tensor, name: str) -> None:
    """Raise ``FloatingPointError`` where a loss is not one finite number: nothing after it would mean anything."""
    if loss.ndim != 0:
        raise ValueError(f"{name} must be a scalar, got shape {tuple(loss.shape)}")
    if not bool(torch.isfinite(loss)):
        raise FloatingPointError(f"{name} is {float(loss.detach())}")

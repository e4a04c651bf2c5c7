"""The two-stage problem in the engine's terms, and its adapter from ``nn.Module``.

θ are the pre-trained parameters (encoder and pre-training head), φ the pre-training hyperparameters, ψ the fine-tuning head.
A loss is the *same function for the same batch*, so that the products of one φ step all differentiate one function: the noise
of views is part of the batch, and noise drawn inside modules (dropout) is held fixed within a step (:class:`NoisyProblem`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ecgmeta.bilevel.noise import derive_seed, held_noise
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


@runtime_checkable
class NoisyProblem(Protocol):
    """A problem whose losses draw noise of their own (dropout).

    Between two calls of ``at_step`` every loss must be one function of its arguments, and the same numbers must give the same
    noise again. The loop calls it before each pre-training step, and before each draw that a φ step averages over.
    """

    def at_step(self, step: int, draw: int = 0) -> None: ...


@runtime_checkable
class CurvatureProblem(Protocol):
    """A problem whose pre-training batches can be divided, so that ``Hu`` may be taken on a part of one.

    A Hessian that only shapes a direction needs fewer examples than the gradient does (Byrd et al., 2011; Martens, 2010), and
    an unbiased one keeps the expectation of a Neumann term (Ghadimi & Wang, 2018). Only for losses that are means over
    examples, or nearly so: a part has its own batch statistics, and a contrastive loss has other negatives in it.

    Measure before use: a small part's curvature is noisier and larger. On the planted problem of protein graphs (one seed),
    ``Hu`` on 8 graphs of 32 took the hypergradient further from that of many graphs than leaving the Neumann term out.
    """

    def curvature_batch(self, batch: Any, share: float) -> Any:
        """A part of ``batch``, chosen at random or by its place in a batch that was: about ``share`` of its examples, 0 <
        share < 1. Raises ``ValueError`` where that is less than an example."""
        ...


def curvature_part(problem: Problem, batch: Any, share: float) -> Any:
    """The part of a pre-training batch that Hessian-vector products are taken on: ``batch`` itself where ``share`` is 1.

    Raises:
        ValueError: as :func:`check_curvature` does, or the batch is too small to be divided so.
    """
    check_curvature(problem, share)
    return (
        problem.curvature_batch(batch, share)
        if isinstance(problem, CurvatureProblem) and share < 1
        else batch
    )


def check_curvature(problem: Problem, share: float) -> None:
    """Raise ``ValueError`` for a share that is not above 0 and at most 1, and below 1 for a problem that cannot divide."""
    if not 0 < share <= 1:
        raise ValueError(f"curvature must be a share above 0 and at most 1, got {share}")
    if share < 1 and not isinstance(problem, CurvatureProblem):
        raise ValueError(
            f"curvature {share} needs a problem that divides its batches: {type(problem).__name__} has no curvature_batch"
        )


class ModuleProblem:
    """The two-stage problem of ordinary modules.

    Args:
        pretrain: ``pretrain(batch)`` is the pre-training loss, a scalar. Runs in train mode.
        finetune: ``finetune(batch)`` is the fine-tuning loss, a scalar. It holds the same encoder object as ``pretrain``.
        hyper: the submodule of ``pretrain`` whose parameters are φ, or None.
        statistics: of the normalisation layers in the pre-training loss. ``"update"``: the batch's; the running ones move once
            an ordinary pre-training step. ``"batch"``: the batch's; the running ones never move, so a fine-tuning loss in eval
            mode reads what they held at the start. ``"frozen"``: the running ones, which never move.
        finetune_mode: ``"eval"`` (normalisation layers use their running statistics: a v of far lower variance)
            or ``"train"``.
        seed: of the noise that modules draw from torch's global generators (dropout), see below; None leaves it to them, and
            then no two evaluations see one function. Data-parallel ranks should differ in it.

    Roles go by identity. φ: the parameters of ``hyper``; θ: the other trainable parameters of ``pretrain``; ψ: the trainable
    parameters of ``finetune`` that are not θ. A parameter under several names counts once. Frozen parameters
    (``requires_grad=False``) stay as they are. Buffers are read as they stand and written only while :meth:`recording`.

    Noise is a function of (seed, step, draw), set by :meth:`at_step`, and starts anew in every evaluation: the batches of one
    unroll share their dropout masks, those of another step have others. Generators outside a loss are not moved by it.

    ``theta``, ``phi`` and ``psi`` give the live parameters, so optimising them in place trains the modules.

    Raises:
        ValueError: ``hyper`` is no part of ``pretrain``; ``finetune`` shares nothing with ``pretrain``, or holds a part of φ.
    """

    def __init__(
        self,
        pretrain: nn.Module,
        finetune: nn.Module,
        *,
        hyper: nn.Module | None = None,
        statistics: Literal["update", "batch", "frozen"] = "update",
        finetune_mode: Literal["eval", "train"] = "eval",
        seed: int | None = 0,
    ) -> None:
        if finetune_mode not in ("eval", "train"):
            raise ValueError(f"finetune_mode must be 'eval' or 'train', got {finetune_mode!r}")
        if statistics not in ("update", "batch", "frozen"):
            raise ValueError(f"statistics must be 'update', 'batch' or 'frozen', got {statistics!r}")
        self.pretrain, self.finetune = pretrain, finetune
        self.statistics, self.finetune_mode, self.seed = statistics, finetune_mode, seed
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
            if id(p) in hyper_ids and p.requires_grad:
                raise ValueError(f"finetune holds {name}, a part of φ: its direct effect would be missed")
            if id(p) in names:
                self._shared[name] = names[id(p)]
            elif p.requires_grad:
                self.psi[name] = p
        if not self._shared:
            raise ValueError("finetune shares no parameter with pretrain: pre-training could not help it")
        self._recording = False
        self._noise_at = (0, 0)

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        return self._call(self._pretrainer(), {**theta, **phi}, "forward", batch)

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        return self._call(self._finetuner(), self._finetune_parameters(theta, psi), "forward", batch)

    @contextmanager
    def recording(self) -> Iterator[None]:
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    def at_step(self, step: int, draw: int = 0) -> None:
        """From here on, losses draw the noise of ``(seed, step, draw)``."""
        self._noise_at = (step, draw)

    def _pretrainer(self) -> nn.Module:
        self.pretrain.train()
        if self.statistics == "frozen":
            for layer in _normalisers(self.pretrain).values():
                layer.eval()
        return self.pretrain

    def _finetuner(self) -> nn.Module:
        return self.finetune.train(self.finetune_mode == "train")

    def _finetune_parameters(self, theta: Tree, psi: Tree) -> Tree:
        return {name: theta[shared] for name, shared in self._shared.items()} | psi

    def _call(self, module: nn.Module, tensors: Mapping[str, Tensor], method: str, *args: Any) -> Tensor:
        values = {f"module.{name}": value for name, value in tensors.items()}
        # Copies take the in-place updates of running statistics, and are dropped.
        values |= {f"module.{name}": buffer.clone() for name, buffer in self._untouchable(module).items()}
        with self._noise(method, tensors):
            return functional_call(_Method(module, method), values, args)

    def _untouchable(self, module: nn.Module) -> Mapping[str, Tensor]:
        if not self._recording:
            return dict(module.named_buffers())
        if self.statistics == "update":
            return {}
        layers = _normalisers(module)
        return {name: b for n, layer in layers.items() for name, b in layer.named_buffers(prefix=n)}

    def _noise(self, method: str, tensors: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        if self.seed is None:
            return nullcontext()
        # The method is part of the seed: a head's noise is another than its encoder's.
        return held_noise(
            derive_seed(self.seed, method, *self._noise_at), {t.device for t in tensors.values()}
        )


def _normalisers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that keep running statistics, by name."""
    return {n: m for n, m in module.named_modules() if isinstance(getattr(m, "running_mean", None), Tensor)}


class FeatureModuleProblem(ModuleProblem):
    """A :class:`ModuleProblem` whose ``finetune`` module is split at the encoder's output.

    ``finetune`` also has ``features(batch)`` and ``head_loss(features, batch)``, with ``finetune(batch) ==
    head_loss(features(batch), batch)``; the engine computes the features once for a whole unroll of the head. For an
    :class:`~ecgmeta.bilevel.implicit_head.ImplicitHead` it has ``targets(batch)``, too, and where examples belong together
    ``groups(batch)``.
    """

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        # By way of the split, so that both routes draw the same noise.
        return self.head_loss(self.features(theta, batch), psi, batch)

    @property
    def per_example(self) -> bool:
        """Whether an example's features do not depend on its batch, so that a pool may be encoded in any pieces."""
        return self.finetune_mode == "eval"

    def features(self, theta: Tree, batch: Any) -> Tensor:
        return self._call(self._finetuner(), self._finetune_parameters(theta, {}), "features", batch)

    def head_loss(self, features: Tensor, psi: Tree, batch: Any) -> Tensor:
        return self._call(self._finetuner(), psi, "head_loss", features, batch)

    def targets(self, batch: Any) -> Tensor:
        found: Tensor = _Method(self.finetune, "targets")(batch)
        return found

    def groups(self, batch: Any) -> Tensor | None:
        found = getattr(self.finetune, "groups", None)
        return found(batch) if callable(found) else None


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

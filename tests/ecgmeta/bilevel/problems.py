"""Two-stage problems with exact answers, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ecgmeta.bilevel.trees import Tree


def spd(n: int, generator: torch.Generator, *, low: float = 1.0, high: float = 10.0) -> Tensor:
    """A symmetric matrix with eigenvalues spaced evenly from ``low`` to ``high``."""
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (q * torch.linspace(low, high, n, dtype=torch.float64)) @ q.T


@dataclass
class Quadratic:
    """``L_PT = ½(θ−Bφ)ᵀA(θ−Bφ)``, ``L_FT = ½‖ψ−Cθ‖²`` in training and ``½‖ψ+Dθ−t‖²`` in validation.

    Then ``θ* = Bφ``; K gradient steps of size η from ψ₀ give ``ψ_K = (1−η)ᴷψ₀ + (1−(1−η)ᴷ)Cθ``; and both the direct part
    (through D) and the unrolled part (through C) of v are non-zero.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    t: Tensor

    @classmethod
    def random(cls, seed: int, n: int = 6, n_phi: int = 4, n_psi: int = 3, **spectrum: float) -> Quadratic:
        g = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        return cls(spd(n, g, **spectrum), draw(n, n_phi), draw(n_psi, n), draw(n_psi, n), draw(n_psi))

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        r = theta["w"] - self.B @ phi["p"]
        return 0.5 * r @ self.A @ r

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        if batch == "validation":
            return 0.5 * (psi["h"] + self.D @ theta["w"] - self.t).square().sum()
        return 0.5 * (psi["h"] - self.C @ theta["w"]).square().sum()

    def v(self, theta: Tensor, psi: Tensor, steps: int, lr: float) -> Tensor:
        """``dL_val/dθ`` after K gradient steps on ψ, by hand."""
        kept = (1 - lr) ** steps
        psi_k = kept * psi + (1 - kept) * self.C @ theta
        return ((1 - kept) * self.C + self.D).T @ (psi_k + self.D @ theta - self.t)

    def hypergradient(self, phi: Tensor, psi: Tensor, steps: int, lr: float) -> Tensor:
        """``dL_val/dφ = Bᵀv`` at θ* = Bφ, because ``−MᵀH⁻¹ = (AB)ᵀA⁻¹ = Bᵀ``."""
        return self.B.T @ self.v(self.B @ phi, psi, steps, lr)

    def v_momentum(
        self, theta: Tensor, psi: Tensor, buffer: Tensor, steps: int, *, lr: float, momentum: float, decay: float,
        encoder: bool,
    ) -> Tensor:  # fmt: skip
        """``dL_val/dθ`` after K steps ``b ← μb + Gw``, ``w ← w − ηb`` on w = (θ, ψ), as powers of one matrix.

        ``G = QᵀQ + λI`` with ``Q = [−C, I]``; without ``encoder`` its rows of θ are zero. b starts from (0, ``buffer``).
        """
        n, m = len(theta), len(psi)
        eye = torch.eye(n + m, dtype=theta.dtype)
        q = torch.cat([-self.C, torch.eye(m, dtype=theta.dtype)], 1)
        g = q.T @ q + decay * eye
        if not encoder:
            g[:n] = 0
        step = torch.cat(
            [torch.cat([eye - lr * g, -lr * momentum * eye], 1), torch.cat([g, momentum * eye], 1)]
        )
        power = torch.linalg.matrix_power(step, steps)
        end = (power @ torch.cat([theta, psi, torch.zeros_like(theta), buffer]))[: n + m]
        out = torch.cat([self.D, torch.eye(m, dtype=theta.dtype)], 1)
        return (power[: n + m].T @ (out.T @ (out @ end - self.t)))[:n]

    def best_phi(self, psi: Tensor, steps: int, lr: float) -> Tensor:
        """The φ that minimises the validation loss when fine-tuning starts from the given ψ."""
        kept = (1 - lr) ** steps
        return torch.linalg.lstsq(((1 - kept) * self.C + self.D) @ self.B, self.t - kept * psi).solution


@dataclass
class Ridge:
    """Ridge regression with one log-penalty a feature: ``L_PT = ½‖Xθ−y‖²/n + ½Σ e^{φᵢ}θᵢ²``; validation on held-out rows.

    There is no head to fine-tune: ``v`` is the gradient of the validation loss itself (K = 0).
    """

    X: Tensor
    y: Tensor
    X_val: Tensor
    y_val: Tensor

    @classmethod
    def random(cls, seed: int, n: int = 40, d: int = 5) -> Ridge:
        g = torch.Generator().manual_seed(seed)
        X, X_val = (torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(2))
        w = torch.randn(d, generator=g, dtype=torch.float64)
        noise = torch.randn(2, n, generator=g, dtype=torch.float64)
        return cls(X, X @ w + noise[0], X_val, X_val @ w + noise[1])

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        w = theta["w"]
        return 0.5 * (self.X @ w - self.y).square().mean() + 0.5 * (phi["log_penalty"].exp() * w * w).sum()

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        return 0.5 * (self.X_val @ theta["w"] - self.y_val).square().mean()

    def hessian(self, phi: Tensor) -> Tensor:
        return self.X.T @ self.X / len(self.y) + torch.diag(phi.exp())

    def solution(self, phi: Tensor) -> Tensor:
        """``θ*(φ)``."""
        return torch.linalg.solve(self.hessian(phi), self.X.T @ self.y / len(self.y))

    def hypergradient(self, phi: Tensor) -> Tensor:
        """``d L_val(θ*(φ)) / dφ`` by hand: ``−e^φ θ* ⊙ H⁻¹ ∇L_val``."""
        w = self.solution(phi)
        v = self.X_val.T @ (self.X_val @ w - self.y_val) / len(self.y_val)
        return -phi.exp() * w * torch.linalg.solve(self.hessian(phi), v)


@dataclass
class Multitask:
    """Weighted least squares: ``L_PT = Σ_t e^{φ_t} ‖X_tθ−y_t‖²/2n + ½μ‖θ‖²``; ``L_FT = ½‖ψ−Cθ‖²``, validation ``½‖ψ+Dθ−t‖²``.

    So ``H = Σ_t e^{φ_t} X_tᵀX_t/n + μI``, and column t of ``∂²L_PT/∂θ∂φ`` is the weighted gradient of task t.
    """

    X: Tensor  # (tasks, n, d)
    y: Tensor  # (tasks, n)
    stage: Quadratic
    decay: float = 0.1

    @classmethod
    def random(cls, seed: int, tasks: int = 3, n: int = 10, d: int = 4) -> Multitask:
        g = torch.Generator().manual_seed(seed)
        X = torch.randn(tasks, n, d, generator=g, dtype=torch.float64)
        return cls(
            X, torch.randn(tasks, n, generator=g, dtype=torch.float64), Quadratic.random(seed + 1, n=d)
        )

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Any) -> Tensor:
        w = theta["w"]
        losses = 0.5 * (self.X @ w - self.y).square().mean(1)
        return phi["log_weight"].exp() @ losses + 0.5 * self.decay * (w @ w)

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Any) -> Tensor:
        return self.stage.finetune_loss(theta, psi, batch)

    def hessian(self, phi: Tensor) -> Tensor:
        grams = self.X.mT @ self.X / self.X.shape[1]
        return torch.einsum("t,tij->ij", phi.exp(), grams) + self.decay * torch.eye(
            self.X.shape[2], dtype=torch.float64
        )

    def solution(self, phi: Tensor) -> Tensor:
        """``θ*(φ)``."""
        moments = torch.einsum("t,tni,tn->i", phi.exp(), self.X, self.y) / self.X.shape[1]
        return torch.linalg.solve(self.hessian(phi), moments)

    def hypergradient(self, phi: Tensor, psi: Tensor, steps: int, lr: float) -> Tensor:
        """``dL_val/dφ`` after K gradient steps on ψ."""
        return self.pull_back(phi, self.stage.v(self.solution(phi), psi, steps, lr))

    def pull_back(self, phi: Tensor, v: Tensor, damping: float = 0.0) -> Tensor:
        """From v at θ*(φ) to φ: ``−e^{φ_t} ⟨X_tᵀ(X_tθ*−y_t)/n, (H + damping·I)⁻¹v⟩``."""
        w = self.solution(phi)
        u = torch.linalg.solve(self.hessian(phi) + damping * torch.eye(len(v), dtype=v.dtype), v)
        residuals = self.X @ w - self.y
        return -phi.exp() * torch.einsum("tni,tn,i->t", self.X, residuals, u) / self.X.shape[1]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())

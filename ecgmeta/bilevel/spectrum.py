"""How large and how negative the Hessian's eigenvalues are, from a few products with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ecgmeta.bilevel.inverse.diagonal import Diagonal, read_diagonal
from ecgmeta.bilevel.inverse.solution import Matvec
from ecgmeta.bilevel.trees import Tree, flatten, unflatten


@dataclass(frozen=True)
class Spectrum:
    """Ritz values at the two ends of a spectrum, and what is proposed from them.

    A Ritz value never lies outside the spectrum, so after a short run λmax is above ``largest`` and λmin below ``smallest``.
    The proposals therefore count each end's residual norm on top: an eigenvalue lies within it of the Ritz value (Parlett,
    *The Symmetric Eigenvalue Problem*). That is no proof that it is the extreme one. On spectra shaped like a network's (few
    large eigenvalues, a bulk around 0, λmin a thirtieth of λmax) proposals from the default 12 products were safe for each
    of 40 starting vectors; from 4 products the damping was too small for nearly all.

    Attributes:
        largest, smallest: estimates of λmax and λmin.
        iterations: products spent.
        largest_error, smallest_error: residual norms ``‖Ay − θy‖ = |β_k s_k|`` of the two Ritz pairs; 0 where the run was
            long enough to be exact.
        preconditioned: whether these are eigenvalues of ``P^½(H + μI)P^½``.
    """

    largest: float
    smallest: float
    iterations: int
    largest_error: float = 0.0
    smallest_error: float = 0.0
    preconditioned: bool = False

    @property
    def damping(self) -> float:
        """A damping that makes the operator positive definite, ``1.1 (error − smallest)``, or 0 where that is negative. After a
        short run it may be positive for an operator that is definite already.

        Raises:
            ValueError: the spectrum is a preconditioned one, whose eigenvalues are not in the units of a damping of H.
        """
        if self.preconditioned:
            raise ValueError("damping is added to H itself: take it from lanczos without a preconditioner")
        return max(0.0, 1.1 * (self.smallest_error - self.smallest))

    @property
    def step_size(self) -> float:
        """A Neumann step size, ``1/(largest + error + damping)``: half of the limit on the operator damped by :attr:`damping`.
        A preconditioned spectrum has its damping in it already: ``1/(largest + error)``.

        Raises:
            ValueError: no curvature was seen.
        """
        scale = self.largest + self.largest_error + (0.0 if self.preconditioned else self.damping)
        if scale <= 0:
            raise ValueError(f"no positive curvature was seen (largest Ritz value {self.largest:.3g})")
        return 1.0 / scale


def lanczos(
    matvec: Matvec,
    like: Tree,
    iterations: int = 12,
    *,
    seed: int = 0,
    preconditioner: Diagonal | None = None,
    damping: float = 0.0,
) -> Spectrum:
    """Extreme eigenvalues of a symmetric operator by the Lanczos process with full reorthogonalisation.

    For a preconditioned series, first the damping and then the step size with it::

        damping = lanczos(hvp, theta).damping
        step_size = lanczos(hvp, theta, preconditioner=diagonal, damping=damping).step_size

    Args:
        matvec: the operator H.
        like: a tree of the shape it acts on.
        iterations: products to spend, at most the dimension.
        seed: of the starting vector.
        preconditioner: the diagonal of P, as :class:`~ecgmeta.bilevel.inverse.neumann.Neumann` takes it; the eigenvalues are
            then those of ``P^½(H + μI)P^½``, which decide that series' convergence.
        damping: μ.

    Raises:
        ValueError: a setting is out of range, or the preconditioner is not positive or not shaped like ``like``.
        FloatingPointError: a product is not finite.
    """
    if iterations < 1 or not damping >= 0:
        raise ValueError(f"lanczos needs iterations >= 1 and damping >= 0, got {iterations} and {damping}")
    flat = flatten(like)
    root = None if preconditioner is None else flatten(read_diagonal(preconditioner, like)).sqrt()

    def operator(q: torch.Tensor) -> torch.Tensor:
        x = q if root is None else root * q
        image = flatten(matvec(unflatten(x, like))) + damping * x
        return image if root is None else root * image

    generator = torch.Generator(device=flat.device).manual_seed(seed)
    q = torch.randn(flat.numel(), generator=generator, dtype=flat.dtype, device=flat.device)
    basis = [q / q.norm()]
    diagonal: list[float] = []
    off: list[float] = []  # β_k: the last one belongs to no entry of the matrix, and gives the residuals
    scale = 0.0
    for _ in range(min(iterations, flat.numel())):
        w = operator(basis[-1])
        if not bool(w.isfinite().all()):
            raise FloatingPointError("a Hessian-vector product is not finite")
        scale = max(scale, float(w.norm()))
        diagonal.append(float(w @ basis[-1]))
        for _ in range(2):  # twice is enough, in floating point
            span = torch.stack(basis)
            w = w - span.T @ (span @ w)
        off.append(float(w.norm()))
        # An invariant subspace: its Ritz values are eigenvalues, and what is left of w is rounding.
        if off[-1] <= 10 * torch.finfo(flat.dtype).eps * scale * len(basis):
            break
        basis.append(w / off[-1])
    n = len(diagonal)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for k in range(n - 1):
        matrix[k, k + 1] = matrix[k + 1, k] = off[k]
    values, vectors = torch.linalg.eigh(matrix)
    errors = off[-1] * vectors[-1].abs()
    return Spectrum(
        float(values[-1]), float(values[0]), n, float(errors[-1]), float(errors[0]), root is not None
    )

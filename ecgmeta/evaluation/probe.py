"""Linear probe: multilabel logistic regression on the features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ecgmeta.evaluation.predictor import (
    Labelled,
    Predictor,
    Progress,
    check_classes,
    check_splits,
    copy_of,
    linear_head,
    num_features_of,
    one_class,
    run_batches,
    validation,
)
from ecgmeta.runtime.errors import InputError

L2_GRID: tuple[float, ...] = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Penalties tried by default, on standardised features: from nearly a class-mean direction to nearly none."""

_GRADIENT_TOLERANCE = 1e-6  # largest entry of the gradient, in nats

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LogisticFit:
    """Minimiser of the penalised cross-entropy.

    Attributes:
        weight: (C, F).
        bias: (C,), not penalised.
        gradient: largest absolute entry of the objective's gradient at the end.
        iterations: of L-BFGS.
        converged: whether L-BFGS met its tolerance.
    """

    weight: Floats
    bias: Floats
    gradient: float
    iterations: int
    converged: bool


def fit_logistic(
    features: Floats, targets: npt.NDArray[np.int64], l2: float, start: LogisticFit | None = None
) -> LogisticFit:
    """Minimise  sum_c [ mean_n BCE(w_c·x_n + b_c, y_nc) + l2/2 |w_c|² ]  by full-batch L-BFGS in float64.

    The labels share nothing but the penalty. In scikit-learn's terms C = 1 / (N·l2).

    Args:
        features: (N, F), standardised.
        targets: (N, C) of 0 and 1, both classes in each label.
        l2: penalty, > 0, so that the minimum is unique and finite even for separable classes.
        start: where to start; zero without it.
    """
    from scipy.optimize import minimize

    n, width = features.shape
    labels = targets.shape[1]

    def objective(flat: Floats) -> tuple[float, Floats]:
        weight, bias = flat[: labels * width].reshape(labels, width), flat[labels * width :]
        z = features @ weight.T + bias
        value = (np.logaddexp(0.0, z) - targets * z).sum() / n + l2 / 2 * (weight**2).sum()
        # Logistic function as a tanh: it cannot overflow.
        residual = ((1 + np.tanh(z / 2)) / 2 - targets) / n
        gradient = np.concatenate([(residual.T @ features + l2 * weight).ravel(), residual.sum(axis=0)])
        return float(value), gradient

    zero = np.zeros(labels * (width + 1))
    initial = zero if start is None else np.concatenate([start.weight.ravel(), start.bias])
    result = minimize(
        objective,
        initial,
        jac=True,
        method="L-BFGS-B",
        # ftol = 0: only the gradient decides, else a flat objective (small l2) stops far from its minimum.
        options={"maxiter": 2000, "maxfun": 4000, "maxcor": 20, "gtol": _GRADIENT_TOLERANCE, "ftol": 0.0},
    )
    weight, bias = result.x[: labels * width].reshape(labels, width), result.x[labels * width :]
    gradient = float(np.abs(result.jac).max())
    return LogisticFit(weight, bias, gradient, int(result.nit), gradient <= _GRADIENT_TOLERANCE)


def linear_probe(
    encoder: nn.Module,
    train: Labelled,
    val: Labelled,
    test: Labelled | None = None,
    *,
    l2_grid: Sequence[float] = L2_GRID,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Predictor:
    """Fit a linear head on frozen features; the penalty is the one with the best validation macro AUROC.

    Features are computed once, in eval mode, and standardised by the training set; the standardisation is then
    folded into the head. Features that do not vary over the training set get weight 0 and are counted in
    `chosen["constant_features"]`. Labels with one class in `val` take no part in the choice and are named in
    `chosen["val_absent"]`; where no label is left, the validation cross-entropy chooses, and
    `chosen["selected_by"]` says so. Ties go to the larger penalty. The problem is convex and starts from zero:
    there is nothing to seed.

    Args:
        encoder: (batch, leads, samples) in mV -> (batch, num_features); copied, never modified.
        train: the head is fitted on it.
        val: the penalty is chosen on it.
        test: scored once, after the choice, into `test_logits`.
        l2_grid: penalties to try, each > 0 (see `fit_logistic`).
        batch_size: records encoded at once.
        device: where the encoder runs; the logistic regression runs on the CPU.
        progress: called with the number of records encoded.

    Raises:
        InputError: labels that differ between the splits, a training label with one class, an empty split.
        FloatingPointError: a feature is not finite.
    """
    check_splits(train=train, val=val, test=test)
    if not l2_grid or min(l2_grid) <= 0:
        raise InputError("linear_probe", "l2_grid", list(l2_grid), "penalties above 0")
    names = tuple(train.label_names)
    frozen = copy_of(encoder, device).eval().requires_grad_(False)
    x_train, y_train = _features(frozen, train, batch_size, progress, "train")
    check_classes("train", y_train, names)
    x_val, y_val = _features(frozen, val, batch_size, progress, "val")
    mean, scale = _standardisation(x_train)
    z_train, z_val = (x_train - mean) * scale, (x_val - mean) * scale

    history: list[dict[str, Any]] = []
    fits: list[LogisticFit] = []
    ranks: list[tuple[float, float]] = []
    for l2 in sorted(l2_grid, reverse=True):
        # From strong to weak, each started at the last: the early problems are the easy ones.
        fits.append(fit_logistic(z_train, y_train, l2, fits[-1] if fits else None))
        auroc, loss = validation(z_val @ fits[-1].weight.T + fits[-1].bias, y_val)
        undefined = bool(np.isnan(auroc))
        ranks.append((0.0, -loss) if undefined else (auroc, 0.0))
        entry = {"l2": l2, "val_macro_auroc": None if undefined else auroc, "val_loss": loss}
        history.append({**entry, "iterations": fits[-1].iterations, "converged": fits[-1].converged})
    best = max(range(len(ranks)), key=ranks.__getitem__)  # the first of equals: the larger penalty

    predictor = Predictor(frozen, _fold(fits[best], mean, scale).to(device), names)
    predictor.history = history
    predictor.chosen = {
        **history[best],
        "selected_by": "val_loss" if history[best]["val_macro_auroc"] is None else "val_macro_auroc",
        "val_absent": one_class(y_val, names),
        "constant_features": int((scale == 0).sum()),
    }
    predictor.eval()
    if test is not None:
        predictor.test_logits = predictor.predict(test, batch_size, progress)
    return predictor


def _features(
    encoder: nn.Module, split: Labelled, batch_size: int, progress: Progress | None, name: str
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Features (N, F) and targets (N, C) of a split."""
    values, targets = run_batches(encoder, split, batch_size, progress, f"features of {name}")
    if values.shape[1] != num_features_of(encoder):
        raise InputError(
            "encoder", "features", values.shape[1], f"{num_features_of(encoder)}, its num_features"
        )
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        raise FloatingPointError(
            f"linear_probe: features of {name}: found {bad} of {len(values)} records not finite"
        )
    return values.astype(np.float64), targets


def _standardisation(features: Floats) -> tuple[Floats, Floats]:
    """Mean and reciprocal standard deviation (F,); 0 in place of the latter where a feature does not vary."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    # Features are float32: a spread near their rounding error is noise, and dividing by it would amplify it.
    varies = spread > 1e-6 * np.maximum(np.abs(mean), spread.max())
    return mean, np.divide(1.0, spread, out=np.zeros_like(spread), where=varies)


def _fold(fit: LogisticFit, mean: Floats, scale: Floats) -> nn.Linear:
    """The head on raw features:  w·(x − mean)·scale + b  =  (w·scale)·x + (b − (w·scale)·mean)."""
    weight = fit.weight * scale
    head = linear_head(weight.shape[1], weight.shape[0], torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(weight))
        head.bias.copy_(torch.as_tensor(fit.bias - weight @ mean))
    return head.requires_grad_(False)

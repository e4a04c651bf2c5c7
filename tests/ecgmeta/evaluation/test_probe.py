"""The linear probe against the optimum's own conditions, scikit-learn, and hand-made features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ecgmeta.evaluation import linear_probe
from ecgmeta.evaluation.bootstrap import label_auroc
from ecgmeta.evaluation.probe import L2_GRID, fit_logistic
from ecgmeta.runtime.errors import InputError

Make = Callable[..., Any]


def _problem(n: int = 40, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, width))
    y = (x @ generator.normal(size=(width, 2)) + generator.normal(size=(n, 2)) > 0).astype(np.int64)
    return x, y


@pytest.mark.parametrize("l2", L2_GRID)
def test_the_gradient_vanishes_at_the_fit(l2: float) -> None:
    x, y = _problem()
    fit = fit_logistic(x, y, l2)
    residual = (1 / (1 + np.exp(-(x @ fit.weight.T + fit.bias))) - y) / len(x)
    assert fit.converged
    np.testing.assert_allclose(residual.T @ x + l2 * fit.weight, 0, atol=1e-6)
    np.testing.assert_allclose(residual.sum(axis=0), 0, atol=1e-6)


@pytest.mark.slow  # for the import of scikit-learn
@pytest.mark.parametrize("l2", [1.0, 1e-3])
def test_the_fit_is_that_of_scikit_learn(l2: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = _problem()
    fit = fit_logistic(x, y, l2)
    for c in range(2):
        reference = linear_model.LogisticRegression(C=1 / (len(x) * l2), tol=1e-10, max_iter=5000).fit(
            x, y[:, c]
        )
        np.testing.assert_allclose(fit.weight[c], reference.coef_[0], rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(fit.bias[c], reference.intercept_[0], rtol=2e-3, atol=1e-4)


def test_many_features_and_separable_classes_still_converge() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(80, 256)), np.arange(160).reshape(80, 2) // 3 % 2
    assert fit_logistic(x, y.astype(np.int64), min(L2_GRID)).converged


def test_the_head_on_raw_features_is_the_fit_on_standardised_ones(
    make_records: Make, means: nn.Module
) -> None:
    train, val = make_records(0), make_records(1)
    predictor = linear_probe(means, train, val, l2_grid=[0.01])
    features = means(train.x).double().numpy()
    z = (features - features.mean(axis=0)) / features.std(axis=0)
    fit = fit_logistic(z, train.y.numpy(), 0.01)
    np.testing.assert_allclose(predictor.predict(train), z @ fit.weight.T + fit.bias, atol=1e-3)


def test_the_penalty_is_the_best_on_validation(make_records: Make, make_encoder: Make) -> None:
    train, val = make_records(0, noise=3), make_records(1, noise=3)
    predictor = linear_probe(make_encoder(), train, val)
    aurocs = [entry["val_macro_auroc"] for entry in predictor.history]
    assert len(set(aurocs)) > 1, "the toy must tell penalties apart"
    assert predictor.chosen["val_macro_auroc"] == max(aurocs)
    first = next(entry for entry in predictor.history if entry["val_macro_auroc"] == max(aurocs))
    assert predictor.chosen["l2"] == first["l2"], "of equals, the largest penalty"
    alone = linear_probe(make_encoder(), train, val, l2_grid=[first["l2"]])
    np.testing.assert_allclose(predictor.predict(val), alone.predict(val), atol=2e-3)
    assert label_auroc(predictor.predict(val), val.y.numpy()).mean() == pytest.approx(max(aurocs), abs=5e-3)


def test_one_class_in_validation_is_said_and_the_loss_chooses(make_records: Make, means: nn.Module) -> None:
    train, val = make_records(0), make_records(1)
    val.y[:, 0] = 1
    predictor = linear_probe(means, train, val)
    assert predictor.chosen["val_absent"] == ["A"]
    assert predictor.chosen["selected_by"] == "val_macro_auroc"
    val.y[:, 1] = 0
    predictor = linear_probe(means, train, val)
    losses = [entry["val_loss"] for entry in predictor.history]
    assert predictor.chosen["selected_by"] == "val_loss"
    assert predictor.chosen["val_loss"] == min(losses)


def test_the_encoder_is_left_alone_and_the_result_repeats(make_records: Make, make_encoder: Make) -> None:
    encoder = make_encoder(dropout=0.5).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    train, val, test = make_records(0), make_records(1), make_records(2)
    first, second = (linear_probe(encoder, train, val, test) for _ in range(2))
    assert encoder.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    for key, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
        torch.testing.assert_close(first.encoder.state_dict()[key], value, rtol=0, atol=0)
    assert first.test_logits is not None
    np.testing.assert_array_equal(first.test_logits, second.test_logits)
    np.testing.assert_allclose(first.test_logits, first.predict(test, batch_size=7), rtol=1e-4, atol=1e-5)


def test_a_feature_that_does_not_vary_gets_no_weight(make_records: Make) -> None:
    class Dead(nn.Module):
        num_features = 3

        def forward(self, x: Tensor) -> Tensor:
            # The middle feature is constant but for the rounding of float32.
            noisy = 7 + 1e-6 * x[:, 0, :1]
            return torch.cat([x[:, 0].mean(1, keepdim=True), noisy, x[:, 1, :1]], dim=1)

    predictor = linear_probe(Dead(), make_records(0), make_records(1))
    assert predictor.chosen["constant_features"] == 1
    assert (predictor.head.weight[:, 1] == 0).all()
    assert (predictor.head.weight[:, 0] != 0).all()


def test_progress_counts_records(make_records: Make, means: nn.Module) -> None:
    calls: list[tuple[int, int, str]] = []
    linear_probe(
        means,
        make_records(0),
        make_records(1, n=10),
        batch_size=32,
        progress=lambda *call: calls.append(call),
    )
    assert calls == [
        (32, 48, "features of train"),
        (48, 48, "features of train"),
        (10, 10, "features of val"),
    ]


def test_bad_input_is_named(make_records: Make, means: nn.Module) -> None:
    train, val = make_records(0), make_records(1)
    other = make_records(1)
    other.label_names = ("A", "C")
    with pytest.raises(
        InputError, match=r"^val: label_names: found \['A', 'C'\], expected \['A', 'B'\], as in train$"
    ):
        linear_probe(means, train, other)
    with pytest.raises(InputError, match=r"^test: label_names"):
        linear_probe(means, train, val, other)
    with pytest.raises(InputError, match="l2_grid"):
        linear_probe(means, train, val, l2_grid=[0.0])
    with pytest.raises(InputError, match=r"^val: records: found 0"):
        linear_probe(means, train, make_records(1, n=0))
    with pytest.raises(InputError, match="num_features: found None"):
        linear_probe(nn.Flatten(), train, val)
    train.y[:, 1] = 0
    with pytest.raises(
        InputError, match=r"^train: labels\.B: found 0 positives of 48, expected at least one of each"
    ):
        linear_probe(means, train, val)


def test_features_that_are_not_finite_stop_it(make_records: Make, means: nn.Module) -> None:
    train = make_records(0)
    train.x[3, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="features of train: found 1 of 48 records not finite"):
        linear_probe(means, train, make_records(1))

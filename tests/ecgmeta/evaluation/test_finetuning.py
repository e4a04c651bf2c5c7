"""Fine-tuning on a toy task: it learns, repeats, selects, and leaves the caller's encoder alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import ecgmeta.evaluation
from ecgmeta.evaluation import finetune
from ecgmeta.evaluation.bootstrap import label_auroc
from ecgmeta.evaluation.finetuning import _steps
from ecgmeta.runtime.errors import InputError

Make = Callable[..., Any]


def test_the_name_is_the_function_not_a_module() -> None:
    assert callable(ecgmeta.evaluation.finetune)
    assert set(ecgmeta.evaluation.__all__) <= set(dir(ecgmeta.evaluation))
    for name in ecgmeta.evaluation.__all__:
        assert getattr(ecgmeta.evaluation, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'fine_tune'"):
        _ = ecgmeta.evaluation.fine_tune


def test_it_learns_and_the_encoder_moves(make_records: Make, make_encoder: Make) -> None:
    encoder = make_encoder()
    train, val, test = make_records(0, n=96), make_records(1), make_records(2, n=200)
    predictor = finetune(encoder, train, val, test, epochs=60, lr=0.02, patience=None)
    assert predictor.test_logits is not None
    assert label_auroc(predictor.test_logits, test.y.numpy()).min() > 0.9
    assert not torch.equal(predictor.encoder.get_parameter("conv.weight"), encoder.conv.weight)
    torch.testing.assert_close(
        torch.as_tensor(predictor.test_logits), predictor(test.x).detach(), rtol=1e-4, atol=1e-5
    )
    assert len(json.dumps(predictor.history, allow_nan=False)) > 0


def test_the_encoder_given_is_not_touched(make_records: Make, make_encoder: Make) -> None:
    encoder = make_encoder().train().requires_grad_(False)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    predictor = finetune(encoder, make_records(0), make_records(1), epochs=2, train_norm=True)
    for key, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert all(parameter.requires_grad for parameter in predictor.parameters())


def test_norm_statistics_are_frozen_unless_asked(make_records: Make, make_encoder: Make) -> None:
    encoder, train, val = make_encoder(), make_records(0), make_records(1)
    frozen: Any = finetune(encoder, train, val, epochs=3).encoder.get_submodule("norm")
    assert torch.equal(frozen.running_mean, encoder.norm.running_mean)
    assert torch.equal(frozen.running_var, encoder.norm.running_var)
    assert int(frozen.num_batches_tracked) == 0
    predictor = finetune(encoder, train, val, epochs=3, patience=None, train_norm=True)
    trained: Any = predictor.encoder.get_submodule("norm")
    assert not torch.equal(trained.running_mean, encoder.norm.running_mean)
    assert int(trained.num_batches_tracked) == predictor.chosen["epoch"]  # one batch an epoch


def test_the_same_seed_repeats_and_the_global_generator_is_left_alone(
    make_records: Make, make_encoder: Make
) -> None:
    encoder, train, val = make_encoder(dropout=0.3), make_records(0), make_records(1)

    def run(seed: int, noise: int) -> np.ndarray:
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        logits = finetune(encoder, train, val, seed=seed, epochs=3, batch_size=16).predict(val)
        assert torch.equal(torch.get_rng_state(), state)
        return logits

    np.testing.assert_array_equal(run(4, noise=0), run(4, noise=1))
    assert not np.array_equal(run(4, noise=0), run(5, noise=0))


def test_the_best_epoch_is_returned(make_records: Make, make_encoder: Make) -> None:
    # A step this long ruins the weights now and then, so the last epoch is not the best.
    train, val = make_records(0, n=24, noise=3), make_records(1, noise=3)
    predictor = finetune(make_encoder(), train, val, epochs=30, lr=0.3, patience=None)
    aurocs = [entry["val_macro_auroc"] for entry in predictor.history]
    assert len(aurocs) == 30
    assert predictor.chosen["val_macro_auroc"] == max(aurocs)
    assert aurocs[-1] < max(aurocs), "the toy must get worse at the end"
    assert predictor.chosen["epoch"] == predictor.history[predictor.chosen["epoch"] - 1]["epoch"]
    again = label_auroc(predictor.predict(val), val.y.numpy()).mean()
    assert again == pytest.approx(predictor.chosen["val_macro_auroc"], abs=1e-9)


def test_patience_stops_early_at_the_same_weights(make_records: Make, make_encoder: Make) -> None:
    train, val = make_records(0, n=24, noise=3), make_records(1, noise=3)
    full = finetune(make_encoder(), train, val, epochs=30, lr=0.3, patience=None)
    stopped = finetune(make_encoder(), train, val, epochs=30, lr=0.3, patience=4)
    assert stopped.chosen["epochs_run"] == stopped.chosen["epoch"] + 4
    assert stopped.chosen["epochs_run"] < 30
    assert stopped.history == full.history[: len(stopped.history)]


def test_where_no_label_has_both_classes_the_loss_selects(make_records: Make, make_encoder: Make) -> None:
    train, val = make_records(0), make_records(1)
    val.y[:] = torch.tensor([1, 0])
    predictor = finetune(make_encoder(), train, val, epochs=5, patience=None)
    assert predictor.chosen["selected_by"] == "val_loss"
    assert predictor.chosen["val_absent"] == ["A", "B"]
    assert predictor.chosen["val_loss"] == min(entry["val_loss"] for entry in predictor.history)
    assert all(entry["val_macro_auroc"] is None for entry in predictor.history)


def test_head_epochs_train_the_head_alone(make_records: Make, make_encoder: Make) -> None:
    encoder, train, val = make_encoder(), make_records(0), make_records(1)
    predictor = finetune(encoder, train, val, epochs=0, head_epochs=4, train_norm=True)
    for key, value in encoder.state_dict().items():
        torch.testing.assert_close(predictor.encoder.state_dict()[key], value, rtol=0, atol=0)
    losses = [entry["train_loss"] for entry in predictor.history]
    assert losses[-1] < losses[0]
    both = finetune(encoder, train, val, epochs=3, head_epochs=4, patience=2)
    assert [entry["phase"] for entry in both.history][:5] == ["head"] * 4 + ["full"]
    assert both.history[:4] == predictor.history


def test_no_step_has_a_single_record_and_none_is_lost() -> None:
    order = np.random.default_rng(0).permutation(65)
    steps = _steps(order, 32)
    assert [len(step) for step in steps] == [32, 33]
    np.testing.assert_array_equal(np.concatenate(steps), order)
    assert [len(step) for step in _steps(order[:1], 32)] == [1]


def test_progress_counts_epochs(make_records: Make, make_encoder: Make) -> None:
    calls: list[tuple[int, int, str]] = []
    finetune(
        make_encoder(), make_records(0), make_records(1), epochs=2, progress=lambda *call: calls.append(call)
    )
    assert [call[:2] for call in calls] == [(1, 2), (2, 2)]
    assert calls[0][2].startswith("val AUROC 0.")


def test_predict_refuses_other_labels_and_puts_modes_back(make_records: Make, make_encoder: Make) -> None:
    val = make_records(1)
    predictor = finetune(make_encoder(), make_records(0), val, epochs=1)
    predictor.train()
    conv, norm = predictor.encoder.get_submodule("conv"), predictor.encoder.get_submodule("norm")
    norm.eval()
    predictor.predict(val)
    assert predictor.training
    assert conv.training
    assert not norm.training
    val.label_names = ("B", "A")
    with pytest.raises(
        InputError, match=r"^dataset: label_names: found \['B', 'A'\], expected \['A', 'B'\]$"
    ):
        predictor.predict(val)


def test_bad_input_is_named(make_records: Make, make_encoder: Make) -> None:
    encoder, train, val = make_encoder(), make_records(0), make_records(1)
    with pytest.raises(InputError, match=r"^finetune: epochs: found 0"):
        finetune(encoder, train, val, epochs=0)
    with pytest.raises(InputError, match=r"^finetune: patience: found 0"):
        finetune(encoder, train, val, patience=0)
    train.label_names = ()
    with pytest.raises(InputError, match=r"^train: label_names: found none"):
        finetune(encoder, train, val)
    train.label_names = ("A", "B")
    train.y[:, 0] = 1
    with pytest.raises(
        InputError, match=r"^train: labels\.A: found 48 positives of 48, expected at least one of each"
    ):
        finetune(encoder, train, val)


def test_a_loss_that_is_not_finite_stops_it(make_records: Make, make_encoder: Make) -> None:
    train, val = make_records(0), make_records(1)
    train.x[5] = torch.inf
    with pytest.raises(FloatingPointError, match="training loss: found nan in epoch 1"):
        finetune(make_encoder(), train, val, epochs=2)
    val.x[5] = torch.nan
    with pytest.raises(FloatingPointError, match="validation logits: found nan in epoch 1"):
        finetune(make_encoder(), make_records(0), val, epochs=2)

"""Scores and intervals against brute force, torchmetrics and simulated truth."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from ecgmeta.evaluation import bootstrap, multilabel_scores, paired_difference
from ecgmeta.evaluation.bootstrap import Ranking, bootstrap_auroc, label_auroc, macro, patient_weights
from ecgmeta.runtime.errors import InputError

NAMES = ["NORM", "MI", "STTC"]


def _cohort(seed: int, n: int = 60, ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, 3) that know something, on a grid of eighths where `ties`, and targets (n, 3)."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((n, 3)) < 0.4).astype(int)
    scores = generator.normal(size=(n, 3)) + targets
    return (np.round(scores * 2) / 8 if ties else scores), targets


def _brute_force(score: np.ndarray, target: np.ndarray) -> float:
    """Every pair of a positive and a negative: 1 for a win, 1/2 for a tie."""
    pairs = [(p > n) + (p == n) / 2 for p in score[target == 1] for n in score[target == 0]]
    return float(np.mean(pairs)) if pairs else float("nan")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 4)), min_size=1, max_size=25))
def test_weighted_auroc_is_the_auroc_of_the_repeated_records(records: list[tuple[int, bool, int]]) -> None:
    score = np.array([float(r[0]) for r in records])
    target = np.array([int(r[1]) for r in records])
    times = np.array([r[2] for r in records])
    got = Ranking.of(score, target).auroc(times[:, None].astype(float))[0]
    expected = _brute_force(np.repeat(score, times), np.repeat(target, times))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_weighted_auroc_matches_torchmetrics_on_the_resampled_arrays() -> None:
    from torchmetrics.functional.classification import binary_auroc

    scores, targets = _cohort(1)
    patients = np.arange(60) // 3
    replicates = bootstrap_auroc([scores], targets, patients, 20, seed=5)[0]
    weights = np.concatenate(list(patient_weights(patients, 20, seed=5)), axis=1).astype(int)
    for b in range(20):
        rows = np.repeat(np.arange(60), weights[:, b])
        for c in range(3):
            preds = torch.as_tensor(1 / (1 + np.exp(-scores[rows, c])))
            expected = float(binary_auroc(preds, torch.as_tensor(targets[rows, c])))
            assert replicates[b, c] == pytest.approx(expected, abs=1e-6)


def test_point_estimates_match_torchmetrics_and_brute_force() -> None:
    from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision

    scores, targets = _cohort(2)
    result = multilabel_scores(scores, targets, NAMES, n_boot=0)
    # Shifted into [0, 1] by a line, which keeps the order, so torchmetrics applies no sigmoid of its own.
    preds = torch.as_tensor((scores - scores.min()) / np.ptp(scores))
    truth = torch.as_tensor(targets)
    assert result.macro_auroc == pytest.approx(float(multilabel_auroc(preds, truth, 3)), abs=1e-6)
    assert result.macro_ap == pytest.approx(float(multilabel_average_precision(preds, truth, 3)), abs=1e-6)
    assert [s.auroc for s in result.labels] == pytest.approx(label_auroc(scores, targets), abs=1e-6)
    assert result.labels[0].auroc == pytest.approx(_brute_force(scores[:, 0], targets[:, 0]), abs=1e-6)
    assert [s.positives for s in result.labels] == targets.sum(axis=0).tolist()


def test_only_the_order_of_the_scores_counts() -> None:
    scores, targets = _cohort(3, ties=False)
    plain = multilabel_scores(scores, targets, NAMES, n_boot=50)
    # At 40 and above a float sigmoid is 1: a metric that applied one would see nothing but ties.
    assert multilabel_scores(1000 + 50 * scores, targets, NAMES, n_boot=50) == plain


def test_an_absent_label_is_named_and_left_out() -> None:
    scores, targets = _cohort(4)
    targets[:, 1] = 0
    result = multilabel_scores(scores, targets, NAMES, patients=range(60), n_boot=20)
    assert result.absent == ("MI",)
    assert np.isnan(result.labels[1].auroc)
    assert np.isnan(result.labels[1].interval).all()
    assert result.macro_auroc == pytest.approx((result.labels[0].auroc + result.labels[2].auroc) / 2)
    assert "2 of 3 labels" in result.note
    assert "MI" in result.note
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["labels"][1]["auroc"] is None
    assert plain["labels"][1]["interval"] == [None, None]
    assert plain["absent"] == ["MI"]


def test_no_warning_where_a_label_is_absent() -> None:
    scores, targets = _cohort(4)
    targets[:, 1] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        multilabel_scores(scores, targets, NAMES, patients=range(60), n_boot=20)


def test_resamples_that_lose_a_class_are_counted_and_dropped() -> None:
    scores, targets = _cohort(5)
    targets[:, 2] = 0
    targets[7, 2] = 1  # one positive record: about exp(-1) of the resamples miss it
    result = multilabel_scores(scores, targets, NAMES, patients=range(60), n_boot=2000)
    assert result.labels[2].dropped == pytest.approx(2000 * (59 / 60) ** 60, rel=0.1)
    assert result.labels[0].dropped == 0
    assert f"STTC {result.labels[2].dropped}" in result.note
    assert not np.isnan(result.macro_interval).any()


def test_macro_leaves_out_undefined_labels_only() -> None:
    table = np.array([[0.5, np.nan, 0.7], [np.nan, np.nan, np.nan], [0.2, 0.4, 0.6]])
    np.testing.assert_allclose(macro(table), [0.6, np.nan, 0.4])


def test_the_records_of_a_patient_move_together() -> None:
    patients = np.array([0, 1, 0, 2, 1, 0])
    weights = np.concatenate(list(patient_weights(patients, 500, seed=0)), axis=1)
    assert (weights[0] == weights[2]).all()
    assert (weights[0] == weights[5]).all()
    assert (weights[1] == weights[4]).all()
    np.testing.assert_array_equal(weights[[0, 1, 3]].sum(axis=0), 3)  # three patients a resample
    np.testing.assert_allclose(weights.mean(axis=1), 1, atol=0.15)


def test_patient_numbers_do_not_depend_on_their_kind() -> None:
    scores, targets = _cohort(6)
    numbers = np.arange(60) // 2
    by_number = multilabel_scores(scores, targets, NAMES, patients=numbers, n_boot=50)
    by_name = multilabel_scores(scores, targets, NAMES, patients=[f"p{k}" for k in numbers], n_boot=50)
    assert by_number == by_name
    assert by_number.n_patients == 30
    assert by_number.by_patient
    assert "one by one" in multilabel_scores(scores, targets, NAMES, n_boot=0).note


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, targets = _cohort(7)
    whole = bootstrap_auroc([scores], targets, np.arange(60), 30, seed=1)
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 60 * 7)
    np.testing.assert_array_equal(bootstrap_auroc([scores], targets, np.arange(60), 30, seed=1), whole)


def test_clustered_records_need_the_wider_interval_of_patients() -> None:
    generator = np.random.default_rng(8)
    target = np.repeat(generator.random(60) < 0.5, 10).astype(int)
    score = np.repeat(generator.normal(size=60), 10) + target + 0.1 * generator.normal(size=600)
    patients = np.repeat(np.arange(60), 10)
    by_patient = multilabel_scores(score[:, None], target[:, None], ["x"], patients=patients, n_boot=500)
    by_record = multilabel_scores(score[:, None], target[:, None], ["x"], n_boot=500)
    # Ten near copies of each heart: the honest interval is about sqrt(10) times the naive one.
    ratio = np.diff(by_patient.macro_interval)[0] / np.diff(by_record.macro_interval)[0]
    assert 2.2 < ratio < 4.2


def test_the_interval_covers_the_true_auroc() -> None:
    # Binormal scores, one unit apart: AUROC = Φ(1/sqrt(2)).
    generator = np.random.default_rng(9)
    truth, covered = norm.cdf(2**-0.5), 0
    for _ in range(300):
        target = (np.arange(120) < 50).astype(int)[:, None]
        score = generator.normal(size=(120, 1)) + target
        seed = int(generator.integers(2**31))
        replicates = bootstrap_auroc([score], target, np.arange(120), 400, seed)[0]
        low, high = bootstrap.percentile_interval(macro(replicates), 0.95)
        covered += low <= truth <= high
    # 95 % of 300 is 285 with a standard deviation of 3.8; the percentile interval is a little short.
    assert 270 <= covered <= 297


def test_paired_difference_of_a_predictor_with_itself_is_nothing() -> None:
    scores, targets = _cohort(11)
    result = paired_difference(scores, scores, targets, NAMES, patients=range(60), n_boot=100)
    assert result.delta == 0
    assert result.interval == (0.0, 0.0)


def test_paired_difference_is_a_minus_b_and_narrower_than_unpaired() -> None:
    scores, targets = _cohort(12, n=300, ties=False)
    noise = np.random.default_rng(0).normal(size=scores.shape)
    worse = scores + 0.6 * noise
    result = paired_difference(scores, worse, targets, NAMES, patients=range(300), n_boot=400)
    a = multilabel_scores(scores, targets, NAMES, patients=range(300), n_boot=400)
    b = multilabel_scores(worse, targets, NAMES, patients=range(300), n_boot=400)
    assert result.delta == pytest.approx(a.macro_auroc - b.macro_auroc, abs=1e-6)
    assert result.interval[0] < result.delta < result.interval[1]
    assert result.interval[0] > 0
    assert (
        np.diff(result.interval)[0] < 0.8 * np.hypot(np.diff(a.macro_interval), np.diff(b.macro_interval))[0]
    )


def test_paired_difference_averages_the_macro_of_each_seed() -> None:
    sets = [_cohort(seed)[0] for seed in range(4)]
    _, targets = _cohort(0)
    result = paired_difference(sets[:3], sets[3], targets, NAMES, n_boot=40)
    macros = [label_auroc(scores, targets).mean() for scores in sets]
    assert result.seeds_a == pytest.approx(macros[:3])
    assert result.delta == pytest.approx(np.mean(macros[:3]) - macros[3])
    stacked = paired_difference(np.stack(sets[:3]), [sets[3]], targets, NAMES, n_boot=40)
    assert stacked == result
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["n_boot"] == 40


def _raise(
    scores: npt.ArrayLike | None = None,
    targets: npt.ArrayLike | None = None,
    names: list[str] = NAMES,
    patients: Sequence[object] | None = None,
) -> str:
    """The message for a good cohort with one part replaced."""
    good_scores, good_targets = _cohort(13)
    values = good_scores if scores is None else scores
    truth = good_targets if targets is None else targets
    with pytest.raises(InputError) as caught:
        multilabel_scores(values, truth, names, patients=patients, n_boot=3)
    return str(caught.value)


def test_bad_input_is_named() -> None:
    scores, targets = _cohort(13)
    holed = scores.copy()
    holed[3, 1] = np.nan
    assert _raise(scores=holed) == "scores: values: found NaN in 1 of 60 records, expected a number for each"
    assert _raise(scores=scores[:5]).startswith("scores: shape: found (5, 3), expected (60, 3)")
    unlabelled = targets.copy()
    unlabelled[4, 2] = -1
    assert _raise(targets=unlabelled) == "targets: [4].STTC: found -1, expected 0 or 1"
    assert "NORM 0, MI 0, STTC 0" in _raise(targets=np.zeros((60, 3)))
    assert _raise(patients=[1, 2]) == "patients: length: found 2, expected 60, one for each record"
    assert _raise(patients=[np.nan] * 60).startswith("patients: [0]: found nan")
    assert _raise(names=["a"]).startswith("targets: shape: found (60, 3)")


def test_several_seeds_give_the_mean_of_each_and_the_interval_of_the_mean() -> None:
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 2, (60, 2))
    sets = [targets + rng.normal(0, spread, (60, 2)) for spread in (0.5, 1.0, 2.0)]
    together = multilabel_scores(sets, targets, ["A", "B"], n_boot=300, seed=1)
    alone = [multilabel_scores(one, targets, ["A", "B"], n_boot=300, seed=1) for one in sets]
    assert together.macro_auroc == pytest.approx(np.mean([s.macro_auroc for s in alone]))
    assert together.macro_ap == pytest.approx(np.mean([s.macro_ap for s in alone]))
    assert together.labels[1].auroc == pytest.approx(np.mean([s.labels[1].auroc for s in alone]))
    assert together.seeds == pytest.approx([s.macro_auroc for s in alone])
    # Seeds whose errors are independent average out: the mean moves less with the patients than its worst part does.
    widths = [s.macro_interval[1] - s.macro_interval[0] for s in (together, alone[2])]
    assert widths[0] < widths[1]
    against_nothing = paired_difference(sets, [np.zeros((60, 2))], targets, ["A", "B"], n_boot=300, seed=1)
    assert against_nothing.interval == pytest.approx(tuple(edge - 0.5 for edge in together.macro_interval))

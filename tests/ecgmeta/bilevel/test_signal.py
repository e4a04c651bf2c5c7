"""Noise is called noise, a drift is found when theory says it is, and the state is exact."""

from __future__ import annotations

import io
import math
import statistics

import pytest
import torch
from torch import Tensor

from ecgmeta.bilevel import Signal
from ecgmeta.bilevel.signal import NO_FURTHER
from ecgmeta.bilevel.trees import Tree


def draws(n: int, coordinates: int, ratio: float, seed: int, rank: int | None = None) -> list[Tree]:
    """Gradients of signal-to-noise ``ratio`` and widely different scales; ``rank`` directions of noise, or all."""
    g = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.linspace(-9, 0, coordinates, dtype=torch.float64)
    mix = torch.randn(rank or 1, coordinates, generator=g, dtype=torch.float64)
    mix = mix / mix.norm(dim=0)
    found = []
    for _ in range(n):
        if rank is None:
            noise = torch.randn(coordinates, generator=g, dtype=torch.float64)
        else:
            noise = torch.randn(rank, generator=g, dtype=torch.float64) @ mix
        value = scales * (noise + ratio)
        found.append({"a": value[: coordinates // 3].reshape(-1, 1), "b": value[coordinates // 3 :]})
    return found


def after(gradients: list[Tree]) -> Signal:
    signal = Signal()
    for gradient in gradients:
        signal.update(gradient)
    return signal


def test_mean_variance_and_cosine_equal_those_of_the_whole_list() -> None:
    gradients = draws(7, 30, 0.3, 0)
    signal = after(gradients)
    for name in ("a", "b"):
        whole = torch.stack([g[name] for g in gradients])
        torch.testing.assert_close(signal.mean[name], whole.mean(0))
        torch.testing.assert_close(signal.square[name] / 6, whole.var(0))
    last, before = (torch.cat([g["a"].flatten(), g["b"]]) for g in (gradients[-1], gradients[-2]))
    expected = float(torch.cosine_similarity(last, before, dim=0))
    assert signal.diagnostics()["cosine_previous"] == pytest.approx(expected)
    assert "cosine_previous" not in after(gradients[:1]).diagnostics()


@pytest.mark.parametrize("n", [5, 20, 300])
def test_pure_noise_is_a_random_walk(n: int) -> None:
    # z is standard normal from few steps on: t alone would put 12 % beyond 2 at n = 5.
    signal = after(draws(n, 20_000, 0.0, n))
    found = signal.diagnostics()
    assert found["z_share_beyond_2"] == pytest.approx(0.0455, abs=0.006)  # 4 standard errors
    assert found["z_mean_square"] == pytest.approx(1, abs=0.06)
    assert found["snr"] < 1.5 * 0.25 / n**0.5
    assert not signal.drifts
    if n >= 10:
        assert found["snr_median"] == pytest.approx(0.6745 / n**0.5, rel=0.06)
        assert signal.verdict().startswith(f"walks at random: after {n} φ steps")
        assert signal.verdict().endswith(NO_FURTHER)
    else:
        assert signal.verdict() == "had too few φ steps to tell: 5, at least 10 are needed"


@pytest.mark.slow
def test_correlated_noise_is_a_random_walk_at_the_promised_level() -> None:
    # Noise of one or two directions moves all coordinates together: a binomial test of the share would call 4 to 15 % of runs
    # a drift at a nominal 0.003 %.
    for rank, misled in ((1, 4), (2, 15)):
        signals = [after(draws(30, 300, 0.0, seed, rank)) for seed in range(200)]
        shares = [signal.diagnostics()["z_share_beyond_2"] for signal in signals]
        assert sum(share > 0.0455 + 4 * (0.0455 * 0.9545 / 300) ** 0.5 for share in shares) > misled
        assert sum(signal.drifts for signal in signals) <= 6  # 1 % of 200, and three standard deviations more


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_a_drift_is_found_after_the_predicted_number_of_steps(ratio: float) -> None:
    predicted = 5.63 / math.log1p(ratio**2)
    crossed: list[int] = []
    found: list[int] = []
    for seed in range(5):
        signal = Signal()
        for gradient in draws(round(2 * predicted), 400, ratio, seed):
            signal.update(gradient)
            if signal.drifts and len(found) == seed:
                found.append(signal.count)
            if signal.diagnostics().get("z_mean_square", 0) > 6.63:
                break
        crossed.append(signal.count)
    assert statistics.mean(crossed) == pytest.approx(predicted, rel=0.2)
    # The largest of 400 independent coordinates is seen before their mean is, never after it.
    assert all(10 <= early <= late for early, late in zip(found, crossed, strict=True))
    assert after(draws(round(predicted), 4000, ratio, 9)).diagnostics()["snr"] == pytest.approx(
        ratio, rel=0.1
    )


def test_a_drift_of_one_coordinate_among_many_is_found() -> None:
    gradients = draws(60, 900, 0.0, 3)
    assert not after(gradients).drifts
    for gradient in gradients:
        gradient["b"][7] += gradient["b"][
            7
        ].abs()  # half its draws are 0 now, the others doubled: a mean of one sign
    signal = after(gradients)
    found = signal.diagnostics()
    assert found["z_mean_square"] < 2
    assert signal.drifts
    assert signal.verdict().startswith("drifts: after 60 φ steps")
    assert NO_FURTHER not in signal.verdict()


def test_z_has_the_sign_of_the_sum_and_no_value_is_undefined() -> None:
    def gradient(noise: float) -> dict[str, Tensor]:
        return {"p": torch.tensor([0.0, 1.0 + noise, -1.0 + noise, 2.0])}

    z = after([gradient(0.1 * (-1) ** i) for i in range(20)]).z()
    assert float(z[0]) == 0  # never touched
    assert float(z[1]) > 5
    assert float(z[2]) == pytest.approx(-float(z[1]))
    assert float(z[3]) == float("inf")  # a constant is no noise at all
    nothing = Signal()
    for _ in range(12):
        nothing.update({})
    assert nothing.diagnostics() == {"cosine_previous": 0.0}
    assert not nothing.drifts


def test_a_restored_signal_goes_on_to_the_same_numbers() -> None:
    gradients = draws(25, 40, 0.2, 5)
    whole, first = after(gradients), after(gradients[:11])
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = Signal()
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert second.diagnostics() == first.diagnostics()
    for gradient in gradients[11:]:
        second.update(gradient)
    assert second.diagnostics() == whole.diagnostics()
    assert second.verdict() == whole.verdict()
    saved = whole.state_dict()
    whole.update(gradients[0])
    assert torch.equal(saved["mean"]["b"], second.mean["b"])

"""Gains and masks: their distributions, lengths and windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import betainc
from torch import Tensor

from ecgmeta.augment import functional
from ecgmeta.augment.functional import OPERATIONS
from ecgmeta.runtime.errors import InputError


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=_generator(seed), dtype=torch.float64)


def _ones(batch: int, leads: int, samples: int) -> Tensor:
    return torch.ones(batch, leads, samples, dtype=torch.float64)


@pytest.mark.parametrize("name", ["gain", "lead_gain"])
def test_gains_are_log_normal_and_one_a_record_or_one_a_lead(name: str) -> None:
    x = _ones(4000, 3, 10)
    factor = getattr(functional, name)(x, 0.2, noise=OPERATIONS[name].draw(x, _generator()))
    assert torch.equal(factor, factor[..., :1].expand_as(factor))
    log = factor[..., 0].log()
    assert float(log.std()) == pytest.approx(0.2, rel=0.04)  # 4,000 records: 1.1 %; the bound takes 0.8 %
    assert float(log.median()) == pytest.approx(0, abs=0.015)
    correlation = np.corrcoef(log[:, 0].numpy(), log[:, 1].numpy())[0, 1]
    assert correlation == pytest.approx(1.0 if name == "gain" else 0.0, abs=0.06)


def test_no_gain_leaves_a_tenth_to_ten() -> None:
    x = _ones(100, 1, 4)
    factor = functional.gain(x, 1e6, noise=OPERATIONS["gain"].draw(x, _generator()))
    assert float(factor.max()) == pytest.approx(10)
    assert float(factor.min()) == pytest.approx(0.1)


@pytest.mark.parametrize("length", [0.0, 0.02, 0.31, 2.0])
def test_the_area_that_a_time_mask_hides_is_its_length(length: float) -> None:
    fs, x = 1000.0, _ones(40, 2, 4000)
    kept = functional.time_mask(x, length, noise=0.1 + 0.8 * _uniform(40, 1, 1), fs=fs, edge=0.05)
    torch.testing.assert_close(
        (1 - kept).sum(-1) / fs, torch.full((40, 2), length).double(), rtol=0, atol=1e-6
    )


def test_a_time_mask_is_zero_inside_and_leaves_the_rest_untouched() -> None:
    fs, edge, u = 500.0, 0.05, _uniform(30, 1, 1)
    x = torch.randn(30, 3, 2000, generator=_generator(1), dtype=torch.float64)
    out = functional.time_mask(x, 0.8, noise=u, fs=fs, edge=edge)
    t = torch.arange(2000) / fs
    start = u * (4.0 - 0.8)  # uniform where the stretch fits
    far = (t < start - edge / 2 - 1e-9) | (t > start + 0.8 + edge / 2 + 1e-9)
    inside = (t > start + edge / 2 + 1e-9) & (t < start + 0.8 - edge / 2 - 1e-9)
    assert torch.equal(torch.where(far, out, 0.0), torch.where(far, x, 0.0))
    assert float((out * inside).abs().max()) < 1e-12
    assert int(inside.sum()) > 30 * 0.7 * fs


def test_the_edge_of_a_stretch_is_the_quintic_step() -> None:
    """Which is the distribution function of Beta(3, 3)."""
    start, length = (torch.full((1, 1, 1), value, dtype=torch.float64) for value in (0.5, 0.4))
    window = functional.soft_stretch(start, length, samples=1000, fs=1000.0, edge=0.1)[0, 0].numpy()
    t = np.arange(1000) / 1000
    rise, fall = (betainc(3, 3, np.clip((t - at) / 0.1 + 0.5, 0, 1)) for at in (0.5, 0.9))
    np.testing.assert_allclose(window, rise - fall, atol=1e-12)


def test_a_mask_longer_than_the_record_hides_all_of_it() -> None:
    out = functional.time_mask(_ones(20, 1, 100), 50.0, noise=_uniform(20, 1, 1), fs=100.0)
    assert float(out.abs().max()) < 1e-12


@pytest.mark.parametrize(("share", "count"), [(0.5, 6), (0.25, 3), (0.01, 1), (1.0, 12)])
def test_a_lead_mask_weakens_so_many_leads_and_each_as_often(share: float, count: int) -> None:
    x = _ones(3000, 12, 12)
    out = functional.lead_mask(x, 0.7, noise=_uniform(3000, 12, 1), share=share)
    weak = torch.isclose(out[..., 0], torch.tensor(0.3).double())
    assert bool((weak | (out[..., 0] == 1)).all())
    assert bool((weak.sum(1) == count).all())
    # Binomial: SD of a share below 0.91 %; twelve leads.
    assert float((weak.double().mean(0) - count / 12).abs().max()) < 0.03


@pytest.mark.parametrize("probability", [0.05, 0.25, 0.6])
@pytest.mark.parametrize("temperature", [0.05, 0.2, 0.5])
def test_leads_are_lost_with_the_probability_given(probability: float, temperature: float) -> None:
    kept = functional.lead_dropout(
        _ones(4000, 3, 3), probability, noise=_uniform(4000, 3, 1), temperature=temperature
    )[..., 0]
    assert bool(((kept >= 0) & (kept <= 1)).all())
    lost = float((kept < 0.5).double().mean())
    assert lost == pytest.approx(probability, abs=0.018)  # 12,000 draws: SD at most 0.45 %
    if temperature == 0.05:  # all but decided
        assert float(((kept > 0.1) & (kept < 0.9)).double().mean()) < 0.07


def test_the_relaxed_bernoulli_is_its_usual_formula_and_decided_at_both_ends() -> None:
    p, u = _uniform(1000, seed=1), _uniform(1000, seed=2)
    expected = torch.sigmoid((torch.logit(p) + torch.logit(u)) / 0.3)
    torch.testing.assert_close(functional.relaxed_bernoulli(p, u, 0.3), expected)
    ends = torch.tensor([0.0, 1.0]).double().unsqueeze(1).expand(-1, 1000)
    assert torch.equal(functional.relaxed_bernoulli(ends, u, 0.3), ends)
    for probability in (1e-9, 1 - 1e-9):  # nothing underflows into 0/0
        sharp = functional.relaxed_bernoulli(torch.tensor(probability), torch.tensor([0.0, 0.5, 1.0]), 0.01)
        assert sharp.isfinite().all()


def test_the_paper_layout_shows_each_lead_in_its_quarter_and_the_rhythm_lead_throughout() -> None:
    x = _ones(20, 12, 1000)
    out = functional.paper_layout(x, 1.0, noise=_uniform(20, 3), jitter=0.05)
    assert set(out.unique().tolist()) == {0.0, 1.0}
    for lead in range(12):
        column = lead // 3
        first = int(max(0, 250 * column - 13)) if column else 0
        last = 250 * (column + 1) + 13
        quarter = out[:, lead, max(0, 250 * column + 13) if column else 0 : 250 * (column + 1) - 13]
        assert bool((quarter == 1).all())
        outside = torch.cat([out[:, lead, :first], out[:, lead, last:]], dim=-1)
        assert bool((outside == (1 if lead == 1 else 0)).all())
    # At each moment one column of three leads, and lead II.
    assert set(out.sum(1).unique().tolist()) == {3.0, 4.0}


def test_the_paper_layouts_changes_of_column_are_where_the_noise_says() -> None:
    noise = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64)
    out = functional.paper_layout(_ones(1, 12, 400), 1.0, noise=noise, rhythm=None, jitter=0.1)
    edges = [out[0, lead].nonzero().flatten()[[0, -1]].tolist() for lead in (0, 3, 6, 9)]
    assert edges == [[0, 89], [90, 199], [200, 309], [310, 399]]
    half = functional.paper_layout(_ones(1, 12, 400), 0.5, noise=noise, rhythm="V5")
    assert set(half[0, 0].tolist()) == {1.0, 0.5}
    assert bool((half[0, 10] == 1).all())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("time_mask", {"fs": 100.0, "edge": 0.0}, "edge"),
        ("lead_mask", {"share": 0.0}, "share"),
        ("lead_dropout", {"temperature": 0.6}, "temperature"),
        ("spectral_mask", {"temperature": 0.0}, "temperature"),
        ("paper_layout", {"rhythm": "V7"}, "rhythm"),
        ("paper_layout", {"jitter": 0.5}, "jitter"),
        ("cutmix", {"fs": 100.0, "edge": -1.0}, "edge"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    name: str, settings: dict[str, float | str], message: str
) -> None:
    x = _ones(2, 12, 100)
    with pytest.raises(InputError, match=rf"^{name}: {message}: found "):
        getattr(functional, name)(x, 0.5, noise=OPERATIONS[name].draw(x), **settings)

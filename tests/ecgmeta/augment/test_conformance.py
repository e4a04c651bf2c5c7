"""One suite for every operation in the registry: what the contract promises, and what it refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ecgmeta.augment import functional
from ecgmeta.augment.functional import OPERATIONS, Operation
from ecgmeta.runtime.errors import InputError

FS = 125.0
MIXES_RECORDS = {"mixup", "cutmix"}
# In s; the short records of the derivative checks are shorter than what is typical.
SHORT = {"time_mask": 0.04, "time_shift": 0.03, "time_warp": 0.02}


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _records(batch: int, leads: int, samples: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random records; of 12 leads, the limb leads obey their identities."""
    x = torch.randn(batch, leads, samples, generator=_generator(1), dtype=torch.float64)
    if leads == 12:
        one, two = x[:, 0], x[:, 1]
        x[:, 2], x[:, 3], x[:, 4], x[:, 5] = two - one, -(one + two) / 2, one - two / 2, two - one / 2
    return x.to(dtype)


def _noise(spec: Operation, x: Tensor, seed: int = 2) -> Tensor:
    if spec.noise is None:
        return torch.randn(
            x.shape, generator=_generator(seed), dtype=torch.promote_types(x.dtype, torch.float32)
        )
    return spec.draw(x, _generator(seed))


def _settings(spec: Operation) -> dict[str, Any]:
    return {"fs": FS} if spec.timed else {}


def _public(spec: Operation) -> Callable[..., Tensor]:
    return getattr(functional, spec.name)


def _apply(spec: Operation, x: Tensor, magnitude: Tensor | float, noise: Tensor | None = None) -> Tensor:
    noise = _noise(spec, x) if noise is None else noise
    return _public(spec)(x, magnitude, noise=noise, **_settings(spec))


def _limb_error(x: Tensor) -> float:
    one, two = x[:, 0], x[:, 1]
    expected = torch.stack([two - one, -(one + two) / 2, one - two / 2, two - one / 2], 1)
    return float((x[:, 2:6] - expected).abs().max())


def _between(spec: Operation, *shape: int) -> Tensor:
    """Magnitudes from a fifth of the typical one to it."""
    return spec.typical * (0.2 + 0.8 * torch.rand(shape, generator=_generator(3), dtype=torch.float64))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Steps this small only wait for one another on busy cores."""
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(kept)


@pytest.fixture(params=sorted(OPERATIONS))
def spec(request: pytest.FixtureRequest) -> Operation:
    return OPERATIONS[request.param]


def test_every_operation_is_public_and_says_what_it_takes(spec: Operation) -> None:
    assert spec.name in functional.__all__
    text = spec.function.__doc__ or ""
    for word in ("Args:", "mV", "magnitude:", "noise: (batch, "):
        assert word in text
    assert 0 < spec.typical <= spec.limit


def test_every_operation_has_its_formula_and_its_source(spec: Operation) -> None:
    about, _, _ = (spec.function.__doc__ or "").partition("Args:")
    formulas = re.findall(r"``[^`]+``", about)
    assert any(re.search(r"[·−+^/(]", formula) for formula in formulas), about
    assert re.search(r"\b(19|20)\d\d\b|of this package|Of this package", about), about


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_it_is_exactly_the_identity_at_zero_and_changes_the_record_at_its_typical_magnitude(
    spec: Operation, dtype: torch.dtype
) -> None:
    x = _records(3, 12, 500, dtype)
    before = x.clone()
    untouched, changed = _apply(spec, x, 0.0), _apply(spec, x, spec.typical)
    assert torch.equal(untouched, x)
    assert torch.equal(x, before)
    assert not torch.equal(changed, x)
    for out in (untouched, changed):
        assert (out.shape, out.dtype, out.device) == (x.shape, dtype, x.device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_result_of_double_to_its_own_precision(
    spec: Operation, dtype: torch.dtype
) -> None:
    x = _records(2, 12, 250, dtype)
    noise = _noise(spec, x)
    magnitude = torch.tensor(spec.typical / 2, dtype=dtype)
    exact = _apply(spec, x.double(), magnitude.double(), noise.double())
    # A few roundings, of values up to a few mV.
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(
        _apply(spec, x, magnitude, noise).double(), exact, rtol=4 * step, atol=16 * step
    )


def test_the_generator_decides(spec: Operation) -> None:
    x, state = _records(3, 12, 500), torch.random.get_rng_state()
    first, again, other = (_apply(spec, x, spec.typical, _noise(spec, x, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_records_differ_from_one_another(spec: Operation) -> None:
    x = _records(1, 12, 500).expand(3, -1, -1).contiguous()
    if spec.name not in MIXES_RECORDS:
        out = _apply(spec, x, spec.typical)
        assert not torch.equal(out[0], out[1])


def test_a_magnitude_for_each_record_is_that_record_alone(spec: Operation) -> None:
    x = _records(4, 12, 500)
    magnitude, noise = _between(spec, 4), _noise(spec, x)
    together = _apply(spec, x, magnitude, noise)
    torch.testing.assert_close(_apply(spec, x, magnitude.view(4, 1, 1), noise), together)
    for row in range(4):
        if spec.name in MIXES_RECORDS:
            alone = _apply(spec, x, magnitude[row], noise)[row]
        else:
            alone = _apply(spec, x[row : row + 1], magnitude[row], noise[row : row + 1])[0]
        torch.testing.assert_close(alone, together[row])


def test_a_magnitude_for_each_lead_acts_on_that_lead_or_is_refused(spec: Operation) -> None:
    x = _records(2, 12, 500)
    magnitude, noise = _between(spec, 1, 12, 1), _noise(spec, x)
    if not spec.per_lead:
        with pytest.raises(InputError, match=rf"^{spec.name}: shape of magnitude"):
            _apply(spec, x, magnitude, noise)
        return
    out = _apply(spec, x, magnitude, noise)
    for lead in (0, 5, 11):
        expected = _apply(spec, x, magnitude[0, lead, 0], noise)
        torch.testing.assert_close(out[:, lead], expected[:, lead])


def test_the_limb_lead_identities_survive_exactly_where_that_is_promised(spec: Operation) -> None:
    x = _records(3, 12, 500)
    assert _limb_error(x) == 0
    error = _limb_error(_apply(spec, x, _between(spec, 3)))
    assert error < 1e-11 if spec.identities else error > 1e-3


def _derivative_case(spec: Operation) -> tuple[Tensor, Tensor, float]:
    x = _records(2, spec.leads or 3, 26)
    return x, _noise(spec, x), SHORT.get(spec.name, spec.typical)


def _magnitudes(spec: Operation, leads: int, typical: float) -> list[Tensor]:
    shapes: list[tuple[int, ...]] = [(), (2,), (2, 1, 1)]
    shapes += [(1, leads, 1), (2, leads, 1)] if spec.per_lead else []
    unit = [torch.rand(shape, generator=_generator(4), dtype=torch.float64) for shape in shapes]
    return [(typical * (0.3 + 0.6 * u)).requires_grad_() for u in unit]


def test_first_and_second_derivatives_in_the_magnitude(spec: Operation) -> None:
    x, noise, typical = _derivative_case(spec)
    for magnitude in _magnitudes(spec, x.shape[1], typical):

        def of_magnitude(m: Tensor) -> Tensor:
            return _apply(spec, x, m, noise)

        # Against random projections: against each of the outputs takes a minute.
        assert gradcheck(of_magnitude, (magnitude,), fast_mode=True)
        assert gradgradcheck(of_magnitude, (magnitude,), fast_mode=True)


def test_first_and_second_derivatives_in_the_record(spec: Operation) -> None:
    x, noise, typical = _derivative_case(spec)
    magnitude = torch.tensor([0.5 * typical, 0.8 * typical], dtype=torch.float64, requires_grad=True)

    def of_both(x: Tensor, m: Tensor) -> Tensor:
        return _apply(spec, x, m, noise)

    inputs = (x.requires_grad_(), magnitude)
    assert gradcheck(of_both, inputs, fast_mode=True)
    assert gradgradcheck(of_both, inputs, fast_mode=True)


def test_forward_mode_is_reverse_mode(spec: Operation) -> None:
    x, noise, typical = _derivative_case(spec)
    magnitude = torch.tensor([0.5 * typical, 0.8 * typical], dtype=torch.float64)
    tangents = (_noise(OPERATIONS["white_noise"], x, 5), torch.tensor([0.7, -1.3], dtype=torch.float64))
    cotangent = _noise(OPERATIONS["white_noise"], x, 6)

    def of_both(x: Tensor, m: Tensor) -> Tensor:
        return _apply(spec, x, m, noise)

    forward = torch.func.jvp(of_both, (x, magnitude), tangents)[1]
    pull = torch.func.vjp(of_both, x, magnitude)[1]
    reverse = sum((g * t).sum() for g, t in zip(pull(cotangent), tangents, strict=True))
    torch.testing.assert_close((forward * cotangent).sum(), reverse)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_magnitudes_is_one_at_a_time(spec: Operation) -> None:
    x, noise, typical = _derivative_case(spec)
    magnitudes = typical * torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    mapped = torch.func.vmap(lambda m: _apply(spec, x, m, noise))(magnitudes)
    torch.testing.assert_close(mapped, torch.stack([_apply(spec, x, m, noise) for m in magnitudes]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_derivatives_are_finite_at_extreme_magnitudes(spec: Operation, dtype: torch.dtype) -> None:
    x = _records(2, 12, 250, dtype).requires_grad_()
    for extreme in (0.0, 1e-6, 1e3, 1e6):
        magnitude = torch.full((2,), min(extreme, spec.limit), dtype=dtype, requires_grad=True)
        out = _apply(spec, x, magnitude)
        assert out.isfinite().all()
        first = torch.autograd.grad(out.sin().sum(), (x, magnitude), create_graph=True)
        total = first[0].sum() + first[1].sum()
        second = torch.autograd.grad(total, (x, magnitude), materialize_grads=True)
        for gradient in (*first, *second):
            assert gradient.isfinite().all()


def test_flat_leads_have_finite_derivatives(spec: Operation) -> None:
    x = torch.zeros(2, 12, 250, dtype=torch.float64, requires_grad=True)
    magnitude = torch.tensor(spec.typical, dtype=torch.float64, requires_grad=True)
    out = _apply(spec, x, magnitude)
    for gradient in torch.autograd.grad(out.square().sum() + out.sum(), (x, magnitude)):
        assert gradient.isfinite().all()


def test_fewer_leads_are_taken_unless_the_geometry_of_twelve_is_needed(spec: Operation) -> None:
    for leads in (1, 2, 11):
        x = _records(2, leads, 250)
        if spec.leads:
            with pytest.raises(InputError, match=rf"^{spec.name}: leads of x: found {leads}, expected 12"):
                _apply(spec, x, spec.typical)
        else:
            out = _apply(spec, x, spec.typical)
            assert out.shape == x.shape
            assert not torch.equal(out, x)


def test_another_layout_is_refused(spec: Operation) -> None:
    noise = _noise(spec, _records(2, 12, 250))
    for shape in ((2, 250, 12), (12, 250)):
        with pytest.raises(
            InputError, match=rf"^{spec.name}: shape of x: found .*, expected \(batch, leads, samples\)"
        ) as raised:
            _apply(spec, torch.zeros(shape), spec.typical, noise)
        assert str(shape) in str(raised.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_refused(spec: Operation, value: float) -> None:
    x = _records(2, 12, 250)
    x[1, 3, 7] = value
    with pytest.raises(InputError, match=rf"^{spec.name}: samples of x: .* in record 1, expected finite mV"):
        _apply(spec, x, spec.typical)


@pytest.mark.parametrize("which", ["negative", "nan", "above"])
def test_a_magnitude_out_of_range_is_refused(spec: Operation, which: str) -> None:
    wrong = {"negative": -0.1, "nan": math.nan, "above": 1.01 * spec.limit}[which]
    if which == "above" and spec.limit == math.inf:
        wrong = math.nan
    magnitude = torch.tensor([spec.typical, wrong], dtype=torch.float64)
    with pytest.raises(InputError, match=rf"^{spec.name}: magnitude: found .*, expected 0 (or more|to )"):
        _apply(spec, _records(2, 12, 250), magnitude)


def test_magnitudes_of_another_number_of_records_are_refused(spec: Operation) -> None:
    with pytest.raises(InputError, match=rf"^{spec.name}: shape of magnitude: found \(3,\)"):
        _apply(spec, _records(2, 12, 250), torch.full((3,), spec.typical))


def test_noise_of_another_shape_is_refused(spec: Operation) -> None:
    x = _records(2, 12, 250)
    with pytest.raises(InputError, match=rf"^{spec.name}: shape of noise: found \(3, "):
        _apply(spec, x, spec.typical, _noise(spec, _records(3, 12, 250)))


@pytest.mark.parametrize("name", sorted(name for name, spec in OPERATIONS.items() if spec.timed))
def test_a_rate_that_is_missing_or_impossible_is_refused(name: str) -> None:
    spec, x = OPERATIONS[name], _records(2, 12, 250)
    for given in ({}, {"fs": 0.0}, {"fs": -100.0}, {"fs": math.nan}, {"fs": math.inf}):
        with pytest.raises(
            InputError, match=rf"^{name}: fs: found .*, expected the sampling rate of x in Hz"
        ):
            _public(spec)(x, spec.typical, noise=_noise(spec, x), **given)


@pytest.mark.slow
def test_each_compiles_into_one_graph_without_a_break(spec: Operation) -> None:
    x = _records(2, 12, 250)
    noise = _noise(spec, x)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, m: _apply(spec, x, m, noise), backend="eager", fullgraph=True)
    magnitude = torch.tensor(spec.typical, dtype=torch.float64)
    torch.testing.assert_close(compiled(x, magnitude), _apply(spec, x, magnitude, noise))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_gives_what_the_processor_gives() -> None:
    for spec in OPERATIONS.values():
        x = _records(2, 12, 500)
        noise = _noise(spec, x)
        there = _apply(spec, x.cuda(), spec.typical, noise.cuda())
        assert there.is_cuda
        torch.testing.assert_close(there.cpu(), _apply(spec, x, spec.typical, noise))
        assert spec.noise is None or spec.draw(x.cuda()).is_cuda

"""The encoders: sizes, derivatives, independence of the batch, and their life on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ecgmeta.encoders import Normalize, ResNet1d, create_encoder, list_encoders
from ecgmeta.runtime.errors import InputError


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _small(norm: str = "batch", name: str = "resnet18", leads: int = 3, width: int = 4) -> ResNet1d:
    return create_encoder(name, leads=leads, width=width, norm=norm, generator=_generator())


def _x(batch: int = 4, leads: int = 3, samples: int = 100, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, leads, samples, generator=_generator(1), dtype=dtype)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_papers_encoder_has_its_4_7_million_parameters_with_the_head() -> None:
    encoder = create_encoder("resnet18")
    assert _parameters(encoder) == 4_630_848
    assert encoder.num_features == 256


@pytest.mark.parametrize("name", list_encoders())
@pytest.mark.parametrize("norm", ["batch", "group"])
class TestFamily:
    @pytest.mark.parametrize("samples", [1, 50, 101, 333])
    def test_any_length_gives_one_row_of_features_a_record(self, name: str, norm: str, samples: int) -> None:
        features = _small(norm, name).eval()(_x(samples=samples))
        assert features.shape == (4, 32)
        assert features.isfinite().all()

    def test_width_is_a_setting_even_where_eight_does_not_divide_it(self, name: str, norm: str) -> None:
        encoder = create_encoder(name, leads=3, width=6, norm=norm)
        assert encoder(_x()).shape == (4, encoder.num_features) == (4, 48)

    def test_features_are_the_mean_of_the_maps_over_time(self, name: str, norm: str) -> None:
        encoder = _small(norm, name).eval()
        maps = encoder.forward_features(_x())
        assert maps.shape[:2] == (4, 32)
        torch.testing.assert_close(encoder(_x()), maps.mean(-1))

    def test_a_generator_decides_every_weight(self, name: str, norm: str) -> None:
        torch.manual_seed(1)
        first = _small(norm, name).state_dict()
        torch.manual_seed(2)
        again = _small(norm, name).state_dict()
        other = create_encoder(name, leads=3, width=4, norm=norm, generator=_generator(1)).state_dict()
        assert all(torch.equal(value, again[key]) for key, value in first.items())
        assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])

    def test_the_second_derivative_is_that_of_finite_differences(self, name: str, norm: str) -> None:
        """``Hv`` of a loss in train mode and float64, along one direction, against differences of its gradient."""
        encoder, x = _small(norm, name, width=2).double(), _x(samples=48, dtype=torch.float64)
        names, values = zip(*encoder.named_parameters(), strict=True)
        direction = [
            torch.randn(v.shape, generator=_generator(i), dtype=v.dtype) for i, v in enumerate(values)
        ]
        length = torch.cat([d.flatten() for d in direction]).norm()
        direction = [d / length for d in direction]

        def gradient(step: float, create_graph: bool = False) -> tuple[list[Tensor], list[Tensor]]:
            at = [(v.detach() + step * d).requires_grad_() for v, d in zip(values, direction, strict=True)]
            features = functional_call(encoder, dict(zip(names, at, strict=True)), (x,))
            loss = (features.square() * torch.arange(features.shape[1])).sum()
            return list(torch.autograd.grad(loss, at, create_graph=create_graph)), at

        first, at = gradient(0.0, create_graph=True)
        inner = sum((g * d).sum() for g, d in zip(first, direction, strict=True))
        assert isinstance(inner, Tensor)
        exact = torch.cat([h.flatten() for h in torch.autograd.grad(inner, at)])
        step = 1e-6  # far below the distance to the nearest kink of a ReLU, far above float64's rounding
        above, below = gradient(step)[0], gradient(-step)[0]
        numeric = torch.cat([((a - b) / (2 * step)).flatten() for a, b in zip(above, below, strict=True)])
        assert exact.norm() > 1e-3
        assert float((exact - numeric).norm() / exact.norm()) < 1e-5

    def test_saving_and_loading_gives_the_same_bits_in_evaluation(
        self, name: str, norm: str, tmp_path: Path
    ) -> None:
        leads = ("I", "II", "V2")
        encoder = create_encoder(name, leads=3, width=4, norm=norm, fs=250.0, lead_names=leads)
        encoder.normalize.set(0.1, torch.tensor([0.5, 1.0, 2.0]))
        encoder(_x())  # moves the running statistics
        encoder.save_pretrained(tmp_path / "encoder")
        loaded = ResNet1d.from_pretrained(tmp_path / "encoder")
        assert not loaded.training
        assert (loaded.leads, loaded.fs, loaded.lead_names) == (3, 250.0, leads)
        state = encoder.state_dict()
        assert loaded.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
        assert torch.equal(loaded(_x()), encoder.eval()(_x()))
        card = (tmp_path / "encoder" / "README.md").read_text()
        assert "from ecgmeta.encoders import ResNet1d" in card


def test_with_group_norm_a_record_does_not_know_its_batch_and_with_batch_norm_it_does() -> None:
    for norm, same in (("group", True), ("batch", False)):
        encoder = _small(norm)
        alone, together = encoder(_x()[:2])[0], encoder(_x())[0]
        assert torch.allclose(alone, together, rtol=1e-4, atol=1e-5) is same


def test_an_unknown_name_or_norm_is_refused() -> None:
    with pytest.raises(InputError, match=r"encoder: name: found 'resnet19', expected one of \['resnet18'"):
        create_encoder("resnet19")
    with pytest.raises(InputError, match="encoder: norm: found 'layer', expected 'batch' or 'group'"):
        create_encoder("resnet18", norm="layer")


@pytest.mark.parametrize("shape", [(4, 100, 3), (3, 100), (4, 2, 100), (4, 1, 3, 100)])
def test_another_layout_or_number_of_leads_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"encoder: shape of x: found .*expected \(batch, 3, samples\)"):
        _small()(torch.zeros(shape))


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    _small(width=4).save_pretrained(tmp_path / "narrow")
    _small(width=8).save_pretrained(tmp_path / "wide")
    (tmp_path / "wide" / "model.safetensors").replace(tmp_path / "narrow" / "model.safetensors")
    with pytest.raises(
        InputError, match=r"stem.0.weight: found shape \(8, 3, 1, 15\), expected shape \(4, 3, 1, 15\)"
    ):
        ResNet1d.from_pretrained(tmp_path / "narrow")


def test_the_normalisation_is_applied_to_millivolts() -> None:
    encoder = _small().eval()
    plain = encoder(_x())
    mean, sd = torch.tensor([0.1, -0.2, 3.0]), torch.tensor([0.5, 1.0, 20.0])
    encoder.normalize.set(mean, sd)
    shifted = _x() * sd.view(3, 1) + mean.view(3, 1)
    torch.testing.assert_close(encoder(shifted), plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoder(_x()), plain, atol=1e-3)


def test_one_constant_serves_all_leads_and_is_no_parameter() -> None:
    layer = Normalize(3)
    layer.set(2.0, 4)
    assert torch.equal(layer(torch.full((1, 3, 5), 10.0)), torch.full((1, 3, 5), 2.0))
    assert not list(layer.parameters())
    assert set(layer.state_dict()) == {"mean", "sd"}


@pytest.mark.parametrize(
    ("mean", "sd"), [(0.0, 0.0), (0.0, -1.0), (float("nan"), 1.0), (0.0, float("inf")), (0.0, float("nan"))]
)
def test_constants_that_would_spoil_every_number_are_refused(mean: float, sd: float) -> None:
    layer = Normalize(3)
    with pytest.raises(InputError, match="normalisation: mean, sd: found"):
        layer.set(mean, sd)
    assert torch.equal(layer.sd, torch.ones(3, 1))


@pytest.mark.slow
def test_odd_batches_of_narrow_networks_leave_memory_whole() -> None:
    # In a process of its own: oneDNN's weight gradient of a strided 1x1 convolution wrote outside its buffers here, which
    # ends a process at some later allocation, if at all.
    code = (
        "import torch\n"
        "from ecgmeta.encoders import create_encoder\n"
        "encoder = create_encoder('resnet18', width=8).eval()\n"
        "for _ in range(40):\n"
        "    encoder(torch.randn(31, 12, 500)).sum().backward()\n"
        "    kept = [torch.randn(n) for n in range(1, 2000, 50)]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

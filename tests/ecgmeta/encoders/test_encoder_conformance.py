"""One suite for every encoder, and for a user's own ``nn.Module``: what the rest of the project takes for granted of each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from ecgmeta.bilevel import CentralDifference, DoubleBackward, ForwardOverReverse, LowPrecision
from ecgmeta.bilevel.products import Linearization, Products
from ecgmeta.encoders import Encoder, create_encoder, list_encoders, load_encoder
from ecgmeta.encoders.export import export_onnx
from ecgmeta.runtime.errors import InputError

pytestmark = pytest.mark.slow  # every encoder under the whole contract

OWN = ["own_networks:Maps", "own_networks:Features"]
CASES = [(name, "batch") for name in (*list_encoders(), *OWN)]
CASES += [(name, "group") for name in ("resnet18", "resnet50", "xresnet1d50")]  # one of each kind of block
_DEEP = ("resnet34", "xresnet1d101")  # more of what resnet18 and xresnet1d50 are made of
EVERY = pytest.mark.parametrize(
    ("name", "norm"),
    [pytest.param(*case, marks=pytest.mark.slow if case[0] in _DEEP else ()) for case in CASES],
)

Tree = dict[str, Tensor]


def _draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def _make(name: str, norm: str = "batch", width: int = 4, seed: int = 0, stirred: bool = True) -> Encoder:
    """A small encoder; stirred, so that no block is dead and running statistics are not those of a fresh one."""
    generator = torch.Generator().manual_seed(seed)
    encoder = create_encoder(name, leads=3, width=width, norm=norm, generator=generator)
    if stirred:
        with torch.no_grad():
            for k, parameter in enumerate(encoder.parameters()):
                parameter.add_(0.1 * _draw(*parameter.shape, seed=k))
            for k in range(4):
                encoder(_draw(8, 3, 200, seed=k))
    return encoder


def _flat(tree: Tree) -> Tensor:
    return torch.cat([value.double().flatten() for value in tree.values()])


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _products(
    route: Products, encoder: Encoder, x: Tensor, size: float = 1.0
) -> tuple[Linearization, Tensor, Tensor]:
    """``Hu`` and ``Mᵀu`` of a loss in train mode, for φ that distort the records and u of length ``size``."""
    theta = {name: value.detach() for name, value in encoder.named_parameters()}
    weights = torch.linspace(1.0, 2.0, encoder.num_features, dtype=x.dtype)

    def loss(theta: Tree, phi: Tree) -> Tensor:
        features = functional_call(encoder, theta, (x + phi["square"] * x.square(),))
        return (features.square() * weights).mean()

    u = {name: _draw(*v.shape, seed=k, dtype=x.dtype) for k, (name, v) in enumerate(theta.items())}
    length = float(_flat(u).norm())
    u = {name: value * (size / length) for name, value in u.items()}
    point = route(loss, theta, {"square": torch.full((3, 1), 0.1, dtype=x.dtype)})
    return point, _flat(point.hvp(u)), _flat(point.mixed(u))


@EVERY
class TestShapes:
    @pytest.mark.parametrize("samples", [1, 50, 101, 333])
    def test_any_length_gives_one_row_of_features_a_record(self, name: str, norm: str, samples: int) -> None:
        encoder = _make(name, norm).eval()
        features = encoder(_draw(4, 3, samples))
        assert features.shape == (4, encoder.num_features)
        assert features.isfinite().all()

    def test_features_are_the_mean_of_the_maps_over_time(self, name: str, norm: str) -> None:
        encoder = _make(name, norm).eval()
        maps = encoder.forward_features(_draw(4, 3, 100))
        assert maps.shape[:2] == (4, encoder.num_features)
        torch.testing.assert_close(encoder(_draw(4, 3, 100)), maps.mean(-1))

    @pytest.mark.parametrize("shape", [(4, 100, 3), (3, 100), (4, 2, 100), (4, 1, 3, 100), (4, 3, 0)])
    def test_another_layout_or_number_of_leads_is_refused(
        self, name: str, norm: str, shape: tuple[int, ...]
    ) -> None:
        with pytest.raises(InputError, match=r"encoder: shape of x: found .*expected \(batch, 3, samples\)"):
            _make(name, norm, stirred=False)(torch.zeros(shape))

    def test_the_normalisation_is_applied_to_millivolts(self, name: str, norm: str) -> None:
        encoder, x = _make(name, norm).eval().double(), _draw(4, 3, 100, dtype=torch.float64)
        plain = encoder(x)
        mean, sd = torch.tensor([0.1, -0.2, 3.0]).double(), torch.tensor([0.5, 1.0, 20.0]).double()
        encoder.normalize.set(mean, sd)
        torch.testing.assert_close(encoder(x * sd.view(3, 1) + mean.view(3, 1)), plain)
        assert not torch.allclose(encoder(x), plain, atol=1e-3)


@EVERY
class TestDeterminism:
    def test_a_generator_decides_every_weight(self, name: str, norm: str) -> None:
        torch.manual_seed(1)
        first = _make(name, norm, stirred=False).state_dict()
        torch.manual_seed(2)
        before = torch.get_rng_state()
        again = _make(name, norm, stirred=False).state_dict()
        other = _make(name, norm, seed=1, stirred=False).state_dict()
        assert all(torch.equal(value, again[key]) for key, value in first.items())
        assert not all(torch.equal(value, other[key]) for key, value in first.items())
        if name in OWN:  # the constructor's draws are from the generator given and leave torch's own alone
            assert torch.equal(torch.get_rng_state(), before)

    def test_the_same_batch_gives_the_same_loss_and_gradient_to_the_last_bit(
        self, name: str, norm: str
    ) -> None:
        encoder, x = _make(name, norm).train(), _draw(4, 3, 100)
        gradients = []
        for _ in range(2):
            value = encoder(x).square().sum()
            gradients.append([value, *torch.autograd.grad(value, list(encoder.parameters()))])
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

    def test_in_evaluation_a_record_does_not_know_its_batch(self, name: str, norm: str) -> None:
        encoder, x = _make(name, norm).eval().double(), _draw(5, 3, 100, dtype=torch.float64)
        alone = torch.cat([encoder(x[k : k + 1]) for k in range(len(x))])
        torch.testing.assert_close(encoder(x), alone, rtol=1e-9, atol=1e-12)

    def test_without_a_graph_the_numbers_are_the_same(self, name: str, norm: str) -> None:
        encoder, x = _make(name, norm).eval().double(), _draw(4, 3, 100, dtype=torch.float64)
        with torch.no_grad():
            plain = encoder(x)
        torch.testing.assert_close(plain, encoder(x), rtol=1e-12, atol=1e-12)


@EVERY
class TestSecondDerivatives:
    def test_double_backward_is_that_of_finite_differences(self, name: str, norm: str) -> None:
        encoder, x = _make(name, norm, width=2).double().train(), _draw(4, 3, 64, dtype=torch.float64)
        _, hvp, mixed = _products(DoubleBackward, encoder, x)
        # Of gradients at a distance below that to the nearest kink of a ReLU, and above float64's rounding.
        _, numeric_hvp, numeric_mixed = _products(CentralDifference(1e-9), encoder, x)
        assert min(hvp.norm(), mixed.norm()) > 1e-4
        assert _error(numeric_hvp, hvp) < 1e-4
        assert _error(numeric_mixed, mixed) < 1e-4

    def test_forward_over_reverse_agrees_or_says_that_it_cannot(self, name: str, norm: str) -> None:
        encoder, x = _make(name, norm).double().train(), _draw(4, 3, 64, dtype=torch.float64)
        if norm == "group":
            with pytest.raises(NotImplementedError, match="forward AD"):
                _products(ForwardOverReverse, encoder, x)
            return
        exact, found = _products(DoubleBackward, encoder, x), _products(ForwardOverReverse, encoder, x)
        torch.testing.assert_close(found[0].loss, exact[0].loss)
        assert _error(_flat(found[0].gradient), _flat(exact[0].gradient)) < 1e-10
        assert _error(found[1], exact[1]) < 1e-10
        assert _error(found[2], exact[2]) < 1e-10

    def test_low_precision_is_as_near_as_its_arithmetic(self, name: str, norm: str) -> None:
        encoder, x = _make(name, norm).train(), _draw(8, 3, 128)
        exact, found = _products(DoubleBackward, encoder, x), _products(LowPrecision(), encoder, x)
        assert torch.equal(found[0].loss, exact[0].loss)
        assert torch.equal(_flat(found[0].gradient), _flat(exact[0].gradient))
        for low, full in zip(found[1:], exact[1:], strict=True):
            assert 0 < _error(low, full) < 0.15
            assert torch.cosine_similarity(low, full, dim=0) > 0.99


@EVERY
def test_saving_and_loading_gives_the_same_bits_in_evaluation(name: str, norm: str, tmp_path: Path) -> None:
    leads, prepared = ("I", "II", "V2"), {"fs": 250.0, "duration": 4.0}
    encoder = create_encoder(
        name, leads=3, width=4, norm=norm, fs=250.0, lead_names=leads, preprocess=prepared
    )
    encoder.normalize.set(0.1, torch.tensor([0.5, 1.0, 2.0]))
    encoder(_draw(4, 3, 100))  # moves the running statistics
    encoder.save_pretrained(tmp_path / "encoder")
    for loaded in (
        load_encoder(tmp_path / "encoder"),
        type(encoder).from_pretrained(tmp_path / "encoder"),
    ):
        assert type(loaded) is type(encoder)
        assert not loaded.training
        assert (loaded.leads, loaded.fs, loaded.lead_names) == (3, 250.0, leads)
        assert (loaded.preprocess, loaded.num_features) == (prepared, encoder.num_features)
        state = encoder.state_dict()
        assert loaded.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
        assert torch.equal(loaded(_draw(4, 3, 100)), encoder.eval()(_draw(4, 3, 100)))
    card = (tmp_path / "encoder" / "README.md").read_text()
    assert f"from ecgmeta.encoders import {type(encoder).__name__}" in card


# Seconds each, most of it in the exporter; every day test_export.py exports one encoder, of a run.
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_the_exported_graph_answers_as_the_encoder_for_any_batch_and_length(
    name: str, norm: str, tmp_path: Path
) -> None:
    ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    encoder = _make(name, norm)
    encoder.normalize.set(torch.tensor([0.1, 0.0, -0.3]), torch.tensor([0.5, 1.0, 2.0]))
    done = export_onnx(encoder, tmp_path / "encoder.onnx", {"random": _draw(3, 3, 300)})
    assert done.dynamic == ("batch", "samples")
    session = ort.InferenceSession(done.file.read_bytes(), providers=["CPUExecutionProvider"])
    assert encoder.training  # the encoder itself is as it was
    encoder.eval()
    for batch, samples in ((1, 300), (5, 301), (2, 50), (2, 1000)):
        x = 0.5 * _draw(batch, 3, samples, seed=samples)
        expected = encoder(x).detach()
        (found,) = session.run(["features"], {"ecg": x.numpy()})
        assert found.shape == expected.shape
        assert float((torch.from_numpy(found) - expected).abs().max()) < 1e-4 * max(1, expected.abs().max())

"""What is particular to each encoder: sizes, parts, refusals. What all have in common is in test_encoder_conformance."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgmeta.encoders import Encoder, Normalize, ResNet1d, XResNet1d, create_encoder, load_encoder
from ecgmeta.encoders.vit1d import Attention
from ecgmeta.runtime.errors import InputError


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _small(norm: str = "batch", name: str = "resnet18", width: int = 4) -> Encoder:
    return create_encoder(name, leads=3, width=width, norm=norm, generator=_generator())


def _x(batch: int = 4, leads: int = 3, samples: int = 100, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, leads, samples, generator=_generator(1), dtype=dtype)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Counted by hand from the papers' descriptions: convolutions, and two numbers a channel for each normalisation.
def _bottleneck(channels_in: int, channels: int, kernel: int, projected: bool) -> int:
    out = 4 * channels
    count = channels_in * channels + channels**2 * kernel + channels * out + 2 * (2 * channels + out)
    return count + (channels_in * out + 2 * out if projected else 0)


def _xresnet(blocks: tuple[int, ...]) -> int:
    stem = 5 * (12 * 32 + 32 * 32 + 32 * 64) + 2 * (32 + 32 + 64)
    return stem + _bottleneck(64, 64, 5, True) + (sum(blocks) - 1) * _bottleneck(256, 64, 5, False)


def _resnet50() -> int:
    count, channels = 12 * 32 * 15 + 2 * 32, 32
    for stage, depth in enumerate((3, 4, 6, 3)):
        for place in range(depth):
            count += _bottleneck(channels, 32 * 2**stage, 15, place == 0)
            channels = 4 * 32 * 2**stage
    return count


def _transformer(dim: int, depth: int) -> int:
    block = 4 * (dim**2 + dim) + (dim * 4 * dim + 4 * dim) + (4 * dim * dim + dim) + 2 * 2 * dim
    return 12 * 25 * dim + dim + depth * block + 2 * dim


@pytest.mark.parametrize(
    ("name", "parameters", "features"),
    [
        ("resnet18", 4_630_848, 256),  # 4.7 million in the paper, with the head
        ("resnet50", _resnet50(), 1024),
        ("xresnet1d50", _xresnet((3, 4, 6, 3)), 256),
        ("xresnet1d101", _xresnet((3, 4, 23, 3)), 256),
        ("vit", _transformer(256, 6), 256),
    ],
)
def test_the_papers_sizes(name: str, parameters: int, features: int) -> None:
    encoder = create_encoder(name)
    assert _parameters(encoder) == parameters
    assert encoder.num_features == features


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "xresnet1d50", "vit"])
def test_width_is_a_setting_even_where_eight_does_not_divide_it(name: str, norm: str) -> None:
    encoder = create_encoder(name, leads=3, width=6, norm=norm)
    assert encoder(_x()).shape == (4, encoder.num_features)
    assert encoder.num_features == (192 if name == "resnet50" else 48)


def test_arguments_of_the_class_pass_through_and_others_are_named() -> None:
    assert create_encoder("resnet18", leads=3, width=4, kernel=7)(_x()).shape == (4, 32)
    blocks = create_encoder("vit", leads=3, width=4, depth=2).get_submodule("blocks")
    assert len(list(blocks.children())) == 2
    with pytest.raises(InputError, match=r"settings: found .*'kernle', expected arguments of ResNet1d"):
        create_encoder("resnet18", kernle=7)


def test_a_block_of_the_benchmarks_network_starts_as_its_shortcut() -> None:
    block = create_encoder("xresnet1d50", leads=3, width=4).eval().get_submodule("stages.1")
    x = torch.rand(2, 32, 1, 20, generator=_generator())
    torch.testing.assert_close(block(x), x)
    stepping = create_encoder("xresnet1d50", leads=3, width=4).eval().get_submodule("stages.3")
    odd = x[..., :19]
    pairs = (
        torch.cat([odd, odd[..., -1:]], -1).unflatten(-1, (10, 2)).mean(-1)
    )  # the last one is a single sample's
    torch.testing.assert_close(stepping(odd), pairs)


def test_attention_is_torchs_own() -> None:
    layer = Attention(16, 4).double()
    x = _x(leads=7, samples=16, dtype=torch.float64)
    query, key, value = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=-1))
    expected = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x), layer.out(expected))


def test_the_transformer_knows_where_in_time_a_patch_is() -> None:
    encoder = create_encoder("vit", leads=3, width=4, generator=_generator()).eval()
    x = _x(samples=100)
    swapped = torch.cat([x[..., 25:50], x[..., :25], x[..., 50:]], -1)
    assert not torch.allclose(encoder(x), encoder(swapped), atol=1e-3)
    # A length that is no whole number of patches is filled up with the training mean.
    encoder.normalize.set(2.0, 1.0)
    filled = torch.cat([x[..., :90], torch.full((4, 3, 10), 2.0)], -1)
    torch.testing.assert_close(encoder(x[..., :90]), encoder(filled))


def test_patches_last_as_long_at_any_rate() -> None:
    frames = [
        create_encoder("vit", width=2, fs=fs).maps(torch.zeros(1, 12, int(10 * fs))).shape[-1]
        for fs in (100, 500)
    ]
    assert frames == [40, 40]


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


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    _small(width=4).save_pretrained(tmp_path / "narrow")
    _small(width=8).save_pretrained(tmp_path / "wide")
    (tmp_path / "wide" / "model.safetensors").replace(tmp_path / "narrow" / "model.safetensors")
    with pytest.raises(
        InputError, match=r"stem.0.weight: found shape \(8, 3, 1, 15\), expected shape \(4, 3, 1, 15\)"
    ):
        ResNet1d.from_pretrained(tmp_path / "narrow")


def test_a_folder_says_whose_it_is(tmp_path: Path) -> None:
    _small(name="xresnet1d50").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"config.json: class: found XResNet1d, expected ResNet1d"):
        ResNet1d.from_pretrained(tmp_path)
    assert isinstance(load_encoder(tmp_path), XResNet1d)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("XResNet1d", "YResNet1d"))
    with pytest.raises(InputError, match="class: found 'YResNet1d', expected one of"):
        load_encoder(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        load_encoder(tmp_path / "nothing")


def test_a_hub_id_gives_the_encoder_and_its_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = create_encoder("vit", leads=3, width=2, preprocess={"fs": 100.0, "duration": 4.0})
    encoder.save_pretrained(tmp_path)
    asked = set()

    def download(repo_id: str, filename: str, revision: str | None = None, **rest: object) -> str:
        asked.add((repo_id, filename, revision))
        return str(tmp_path / filename)

    for module in ("ecgmeta.runtime.pretrained", "huggingface_hub.hub_mixin"):
        monkeypatch.setattr(f"{module}.hf_hub_download", download)
    loaded = load_encoder("some-lab/vit-ecg", revision="v2")
    assert asked == {("some-lab/vit-ecg", name, "v2") for name in ("config.json", "model.safetensors")}
    assert torch.equal(loaded(_x()), encoder.eval()(_x()))
    assert loaded.preprocess == {"fs": 100.0, "duration": 4.0}


def test_what_earlier_versions_saved_is_a_residual_network(tmp_path: Path) -> None:
    encoder = _small().eval()
    encoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for later in ("class", "bottleneck"):
        del config[later]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(load_encoder(tmp_path)(_x()), encoder(_x()))


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

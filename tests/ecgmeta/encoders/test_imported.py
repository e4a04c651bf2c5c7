"""Your own network by import path: what it is given, what it must give, and what is said where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import own_networks
import pytest
import torch

from ecgmeta.encoders import ImportedEncoder, create_encoder, load_encoder
from ecgmeta.encoders.export import export_onnx
from ecgmeta.runtime.errors import InputError


def test_the_class_gets_what_its_signature_names() -> None:
    encoder = create_encoder("own_networks:Maps", leads=3, width=5, norm="group", fs=250.0, kernel=9)
    assert isinstance(encoder, ImportedEncoder)
    network = encoder.network
    assert isinstance(network, own_networks.Maps)
    assert network.get_submodule("net.0").get_parameter("weight").shape == (5, 3, 9)
    assert encoder.num_features == 15  # found by a forward pass
    everything = create_encoder("own_networks:Features", leads=3, width=5, fs=250.0, deep=True)
    assert isinstance(everything, ImportedEncoder)
    assert everything.network.offered == {
        "width": 5,
        "norm": "batch",
        "fs": 250.0,
        "lead_names": None,
        "deep": True,
    }
    assert everything.num_features == 7


def test_the_probe_leaves_running_statistics_and_mode_alone() -> None:
    encoder = create_encoder("own_networks:Maps", leads=3)
    norm = encoder.get_submodule("network.net.1")
    assert torch.equal(norm.get_buffer("running_mean"), torch.zeros(32))
    assert all(part.training for part in encoder.modules())


@pytest.mark.slow
def test_a_network_of_one_length_is_probed_at_the_length_of_its_recordings(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    prepared = {"fs": 50.0, "duration": 2.0}
    encoder = create_encoder("own_networks:FixedLength", leads=2, fs=50.0, preprocess=prepared)
    assert encoder.num_features == 5
    done = export_onnx(encoder, tmp_path / "encoder.onnx", {"random": torch.randn(2, 2, 100)})
    assert done.dynamic == ("batch",)
    described = json.loads(done.sidecar.read_text())
    assert described["input"]["shape"] == ["batch", 2, 100]
    assert described["preprocess"] == prepared


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (
            "no_such_package.net:Net",
            "import: found No module named 'no_such_package'.*install 'no_such_package'",
        ),
        ("own_networks:Missing", "import: found module 'own_networks' has no attribute 'Missing'"),
        ("own_networks:NOT_A_CLASS", "class: found <built-in function print>.*a subclass of torch.nn.Module"),
        ("own_networks:NoLeads", "leads: found an argument it does not take, expected one of"),
        ("own_networks:NeedsMore", "constructor: found .*'heads'"),
        ("own_networks:Tuple", r"output: found tuple, expected \(batch, features\)"),
        ("subprocess:Popen", "class: found <class 'subprocess.Popen'>"),
        (":Net", "encoder: name: found ':Net', expected an import path"),
        ("own_networks:a.b", "encoder: name: found 'own_networks:a.b', expected an import path"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(path: str, line: str) -> None:
    with pytest.raises(InputError, match=line):
        create_encoder(path, leads=3)


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(InputError, match="kernle: found an argument it does not take"):
        create_encoder("own_networks:Maps", leads=3, kernle=9)


def test_a_saved_encoder_needs_its_class(tmp_path: Path) -> None:
    create_encoder("own_networks:Maps", leads=3).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("own_networks", "left_at_home"))
    with pytest.raises(InputError, match=r"left_at_home:Maps: import: .* put its folder on PYTHONPATH"):
        load_encoder(tmp_path)


def test_a_wrong_shape_later_is_refused() -> None:
    encoder = create_encoder("own_networks:Maps", leads=3)
    encoder.num_features = 4
    with pytest.raises(
        InputError, match=r"own_networks:Maps: output: found \(2, 96, 50\), expected \(batch, 4\)"
    ):
        encoder(torch.zeros(2, 3, 100))

"""Encoders leave a run: every kind can be pre-trained, and is exported to what other programs read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from run_helpers import call, contents, error_line, metrics, pretrain

from ecgmeta.encoders import Encoder, create_encoder, load_encoder
from ecgmeta.encoders import export as exporter
from ecgmeta.experiment.export import simulated
from ecgmeta.runtime.errors import InputError

pytestmark = pytest.mark.slow  # runs of the whole path, a second or more each

OWN = """
from torch import nn

class Small(nn.Module):
    def __init__(self, leads, width):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(leads, width, 9, 4), nn.GELU(), nn.Conv1d(width, width, 9, 4))

    def forward(self, x):
        return self.net(x)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "static"
    assert pretrain(folder, "pretrain.arm=simclr", "pretrain.max_steps=2", "through=pretrain") == 0
    return folder


@pytest.fixture
def needs_onnx() -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


@pytest.mark.parametrize(
    "name",
    ["vit", "xresnet1d50", "brought_along:Small"],
)
def test_each_kind_of_encoder_learns_with_its_augmenter(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brought_along.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "run"
    assert pretrain(folder, f"encoder.name={name}", "pretrain.max_steps=4", "finetune.protocols=[full]") == 0
    assert [line["hyper"]["norm"] > 0 for line in metrics(folder) if "hyper" in line] == [True, True]
    encoder = load_encoder(folder / "encoder")
    assert encoder(torch.zeros(2, 12, 250)).shape == (2, encoder.num_features)
    assert (folder / "report.html").is_file()


@pytest.mark.usefixtures("needs_onnx")
def test_a_run_becomes_a_graph_with_its_description(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    before = contents(run)
    assert call("export", run) == 0
    said = capsys.readouterr().out
    assert "largest difference in onnxruntime, random records: " in said
    assert "largest difference in onnxruntime, simulated records: " in said
    after = contents(run)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"encoder.onnx", "encoder.json"}

    encoder = load_encoder(run / "encoder")
    described = json.loads((run / "encoder.json").read_text())
    assert described["input"] == {
        "name": "ecg",
        "shape": ["batch", 12, "samples"],
        "dtype": "float32",
        "units": "mV",
        "fs": 50.0,
        "leads": list(encoder.lead_names or ()),
    }
    assert described["preprocess"] == json.loads(json.dumps(encoder.preprocess))
    assert described["normalisation"]["mean"] == encoder.normalize.mean.flatten().tolist()
    assert max(described["verified"]["differences"].values()) < 1e-4
    session = onnxruntime.InferenceSession(after["encoder.onnx"], providers=["CPUExecutionProvider"])
    x = simulated(encoder)[:3]  # raw mV: the normalisation is inside
    (found,) = session.run(["features"], {"ecg": x.numpy()})
    np.testing.assert_allclose(found, encoder(x).detach().numpy(), atol=1e-4)


def test_weights_and_configuration_are_copied_whole(run: Path, tmp_path: Path) -> None:
    for arguments, target in ((["--out", tmp_path / "out"], tmp_path / "out"), ([], run / "export")):
        assert call("export", run, "--format", "safetensors", *arguments) == 0
        assert contents(target) == contents(run / "encoder")
    assert call("export", run / "encoder", "--format=safetensors", "--out", tmp_path / "again") == 0
    assert contents(tmp_path / "again") == contents(run / "encoder")


def test_simulated_records_have_the_encoders_leads() -> None:
    every = simulated(create_encoder("resnet18", width=2))
    some = simulated(create_encoder("resnet18", leads=3, width=2, lead_names=("v1", "AVR", "X")))
    assert torch.equal(some[:, :2], every[:, [6, 3]])
    assert torch.equal(some[:, 2], every[:, 2])  # no lead of that name: another's signal
    assert simulated(create_encoder("resnet18", width=2, fs=20.0)).shape == (4, 12, 200)


class Crooked(Encoder):
    """Answers otherwise for one record than for several, which the exporter bakes in as it saw it: several."""

    num_features = 12

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        return x + (0.001 if x.shape[0] == 1 else 0.0)


@pytest.mark.usefixtures("needs_onnx")
def test_a_graph_that_answers_otherwise_is_not_written(tmp_path: Path) -> None:
    file, records = tmp_path / "encoder.onnx", {"random": torch.zeros(2, 12, 50)}
    with (
        mock.patch.object(exporter, "_free_axes", return_value=iter([("batch",)])),
        pytest.raises(InputError, match=r"Crooked: difference of features: found 1.0e-03 on random records"),
    ):
        exporter.export_onnx(Crooked(), file, records)
    assert not list(tmp_path.iterdir())
    # A graph for two records only answers as it should, and says that it is for two.
    done = exporter.export_onnx(Crooked(), file, records)
    assert done.dynamic == ()
    assert json.loads(done.sidecar.read_text())["input"]["shape"] == [2, 12, 50]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--format", "pickle"], "export: --format: found pickle, expected onnx or safetensors"),
        (["--out", "encoder.bin"], "export: --out: found encoder.bin, expected a file name"),
        (["--format=safetensors", "--out", "RUN/encoder"], "other than the encoder's own"),
    ],
)
def test_arguments_that_cannot_be_are_named(
    arguments: list[str], line: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    assert call("export", run, *(text.replace("RUN", str(run)) for text in arguments)) == 2
    assert line in error_line(capsys.readouterr().err)
    assert contents(run) == before


def test_a_run_without_an_encoder_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert call("export", tmp_path) == 2
    assert "encoder: found no finished pre-training" in error_line(capsys.readouterr().err)
    assert call("export", tmp_path / "nothing") == 2
    assert "found no such folder" in error_line(capsys.readouterr().err)


def test_a_missing_package_names_the_extra(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    with mock.patch.object(exporter, "find_spec", lambda name: None if name == "onnxscript" else found(name)):
        assert call("export", run) == 2
    line = error_line(capsys.readouterr().err)
    assert line == "error: export: package: found no onnxscript, expected pip install 'ecgmeta[onnx]'"

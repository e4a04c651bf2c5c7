"""An encoder as an ONNX graph that answers as it does, or is not written."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecgmeta.encoders.base import Encoder
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import write_atomic, write_json

OPSET = 18
TOLERANCE = 1e-4  # of the largest feature, and absolute where that is below 1
INPUT, OUTPUT = "ecg", "features"


@dataclass(frozen=True)
class OnnxExport:
    """What was written, and how far it is from the encoder.

    Attributes:
        file: the graph; normalisation is inside, so its input is in mV.
        sidecar: JSON with what a reader needs to prepare recordings for it.
        dynamic: which of the input's axes may have any size: ``"batch"``, ``"samples"``.
        differences: largest ``|Δ| / max(1, largest |feature|)`` against onnxruntime, by kind of record.
    """

    file: Path
    sidecar: Path
    dynamic: tuple[str, ...]
    differences: dict[str, float]

    @property
    def difference(self) -> float:
        return max(self.differences.values())


def export_onnx(encoder: Encoder, file: Path, records: Mapping[str, Tensor]) -> OnnxExport:
    """Write ``file`` and, beside it, a ``.json`` of the same name.

    Batch size and length are free where the exporter and the network allow it; the graph is then tried with others as well.

    Args:
        encoder: exported in eval mode, from a copy on the CPU.
        records: what it is verified on, by kind: (batch, leads, samples) in mV, at least two records each.

    Raises:
        InputError: a package is missing, the network cannot be exported, or onnxruntime gives other features.
    """
    _need_packages()
    encoder = deepcopy(encoder).cpu().float().eval()
    example = next(iter(records.values()))
    graph, dynamic, differences = _verified(encoder, example, records)
    sidecar = file.with_suffix(".json")
    write_atomic(file, lambda out: out.write(graph))
    write_json(sidecar, _description(encoder, example, dynamic, differences))
    return OnnxExport(file, sidecar, dynamic, differences)


def _verified(
    encoder: Encoder, example: Tensor, records: Mapping[str, Tensor]
) -> tuple[bytes, tuple[str, ...], dict[str, float]]:
    """The graph with the most free axes that answers as the encoder; those axes; the differences."""
    name, reason = type(encoder).__name__, None
    for dynamic in _free_axes(encoder, example):
        try:
            graph = _graph(encoder, example, dynamic)
            differences = {kind: _difference(encoder, graph, x, dynamic) for kind, x in records.items()}
            _check(name, differences)
            return graph, dynamic, differences
        except Exception as error:  # exporters and runtimes raise of many kinds, and less freedom may help
            reason = error
    if isinstance(reason, InputError):
        raise reason
    raise InputError(name, "ONNX export", reason, "operations that ONNX has") from reason


def _need_packages() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(name) is None:
            raise InputError("export", "package", f"no {name}", "pip install 'ecgmeta[onnx]'")


def _free_axes(encoder: Encoder, x: Tensor) -> Iterator[tuple[str, ...]]:
    """Sets of free axes to try, the largest first; the batch alone where the network itself refuses another length."""
    try:
        with torch.no_grad():
            encoder(_other_length(x))
        yield "batch", "samples"
    except (InputError, RuntimeError):
        pass
    yield ("batch",)
    yield ()


def _other_length(x: Tensor) -> Tensor:
    return x[..., : x.shape[-1] * 2 // 3 + 1]


def _graph(encoder: Encoder, x: Tensor, dynamic: tuple[str, ...]) -> bytes:
    axes = {axis: name for axis, name in ((0, "batch"), (2, "samples")) if name in dynamic}
    with torch.no_grad(), warnings.catch_warnings():  # in which the encoders' own layers are torch's
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            encoder,
            (x,),
            dynamo=True,
            dynamic_shapes=(axes,) if axes else None,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave nothing")
    return program.model_proto.SerializeToString()


def _difference(encoder: Encoder, graph: bytes, x: Tensor, dynamic: tuple[str, ...]) -> float:
    """The largest over the records as they are and, where axes are free, over a part of them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()  # its own idle ones would spin
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    tried = [x]
    if "batch" in dynamic:
        tried.append(x[:1])
    if "samples" in dynamic:
        tried.append(_other_length(x))
    largest = 0.0
    for records in tried:
        with torch.no_grad():
            expected = encoder(records)
        found = torch.from_numpy(session.run([OUTPUT], {INPUT: records.contiguous().numpy()})[0])
        if found.shape != expected.shape:
            raise RuntimeError(f"onnxruntime gives {tuple(found.shape)}, not {tuple(expected.shape)}")
        scale = max(1.0, float(expected.abs().max()))
        error = float((found - expected).abs().max()) / scale
        largest = max(largest, error if error == error else float("inf"))
    return largest


def _check(name: str, differences: Mapping[str, float]) -> None:
    for kind, value in differences.items():
        if not value <= TOLERANCE:
            found = f"{value:.1e} on {kind} records in onnxruntime"
            raise InputError(name, "difference of features", found, f"at most {TOLERANCE:g}")


def _description(
    encoder: Encoder, x: Tensor, dynamic: tuple[str, ...], differences: Mapping[str, float]
) -> dict[str, Any]:
    """What stands beside the graph, for whoever feeds it: all of it but weights."""
    import onnxruntime

    batch, samples = (
        name if name in dynamic else size for name, size in (("batch", x.shape[0]), ("samples", x.shape[2]))
    )
    mean, sd = (value.flatten().tolist() for value in (encoder.normalize.mean, encoder.normalize.sd))
    return {
        "format": "onnx",
        "opset": OPSET,
        "class": type(encoder).__name__,
        "input": {
            "name": INPUT,
            "shape": [batch, encoder.leads, samples],
            "dtype": "float32",
            "units": "mV",
            "fs": encoder.fs,
            "leads": encoder.lead_names,
        },
        "output": {"name": OUTPUT, "shape": [batch, encoder.num_features], "dtype": "float32"},
        "normalisation": {"inside": True, "mean": mean, "sd": sd},
        "preprocess": encoder.preprocess,
        "verified": {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "differences": dict(differences),
            "tolerance": TOLERANCE,
        },
    }

"""An encoder out of its run folder, in the form that other programs read; and what other programs wrote, in ours."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecgmeta.augment import Augmenter, load_checkpoint
from ecgmeta.data.leads import STANDARD_LEADS, canonical
from ecgmeta.data.synthetic import SyntheticCohort
from ecgmeta.encoders import Encoder, load_encoder
from ecgmeta.encoders.export import OnnxExport, export_onnx
from ecgmeta.experiment.run import Run
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.pretrained import CONFIG, WEIGHTS
from ecgmeta.runtime.seeds import torch_generator

_SECONDS = 10.0  # of records to verify on, where the encoder does not say
_RECORDS = 4
_RATES = (50.0, 2000.0)  # what the simulator can do, Hz


def import_augmenter(checkpoint: Path, out: Path, **learned_on: Any) -> Augmenter:
    """A checkpoint of the authors' released code, saved as an augmenter into the folder ``out``.

    Args:
        learned_on: ``fs``, ``leads``, ``mean`` and ``std`` of its records, as for :func:`~ecgmeta.augment.load_checkpoint`.

    Raises:
        InputError: see :func:`~ecgmeta.augment.load_checkpoint`.
    """
    augmenter = load_checkpoint(checkpoint, **learned_on)
    augmenter.save_pretrained(out)
    return augmenter


def to_onnx(source: Path, out: Path | None = None) -> OnnxExport:
    """The encoder of a run, an encoder folder or a hub id as ``out``, by default ``encoder.onnx`` in the folder.

    Verified on white noise and on simulated recordings before it is written.

    Raises:
        InputError: no encoder there, or see :func:`~ecgmeta.encoders.export.export_onnx`.
    """
    encoder = load_encoder(encoder_folder(source))
    file = out or (source if source.is_dir() else Path()) / "encoder.onnx"
    if file.is_dir() or file.suffix != ".onnx":
        raise InputError("export", "--out", file, "a file name that ends in .onnx")
    return export_onnx(encoder, file, {"random": _noise(encoder), "simulated": simulated(encoder)})


def to_safetensors(source: Path, out: Path | None = None) -> Path:
    """Weights and configuration of a run's encoder, or of an encoder folder, whole in ``out``; by default ``source/export``.

    Raises:
        InputError: no encoder there, or one that does not load.
    """
    folder, target = encoder_folder(source), out or source / "export"
    if not folder.is_dir():
        raise InputError(folder, "folder", "no such folder", "a run or a saved encoder")
    load_encoder(folder)  # what does not load is not passed on
    if target.exists() and (not target.is_dir() or target.samefile(folder)):
        raise InputError("export", "--out", target, "a folder other than the encoder's own")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as aside:
        for name in ("README.md", CONFIG, WEIGHTS):  # the weights last: where they stand, all is whole
            if (folder / name).is_file():
                shutil.copyfile(folder / name, Path(aside, name))
                Path(aside, name).replace(target / name)
    return target


def encoder_folder(source: Path) -> Path:
    """The encoder's folder in a run; anything else is taken for an encoder's folder itself, or a hub id.

    Raises:
        InputError: a run whose pre-training has not ended.
    """
    if not (source / "config.yaml").is_file():
        return source
    run = Run.open(source)
    if not run.pretrained:
        raise InputError(source, "encoder", "no finished pre-training", "a run that `ecgmeta pretrain` ended")
    return run.encoder


def _noise(encoder: Encoder) -> Tensor:
    shape = (_RECORDS, encoder.leads, _samples(encoder))
    return torch.randn(shape, generator=torch_generator(0, "export"))


def simulated(encoder: Encoder) -> Tensor:
    """Recordings of simulated hearts with the encoder's leads; leads that the simulator does not know get others' signals."""
    fs = min(max(encoder.fs, _RATES[0]), _RATES[1])
    cohort = SyntheticCohort(_RECORDS, fs=fs, duration=max(1.0, _samples(encoder) / fs))
    known = {name.casefold(): place for place, name in enumerate(STANDARD_LEADS)}
    names = encoder.lead_names or tuple(STANDARD_LEADS[k % 12] for k in range(encoder.leads))
    places = [known.get(canonical(name).casefold(), k % 12) for k, name in enumerate(names)]
    return torch.from_numpy(cohort.signals)[:, places, : _samples(encoder)].contiguous()


def _samples(encoder: Encoder) -> int:
    return round(encoder.preprocess.get("duration", _SECONDS) * encoder.fs)

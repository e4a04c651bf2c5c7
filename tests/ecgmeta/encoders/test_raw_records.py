"""From a recording as it comes to features: the short way against the long way round, on a real record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb
from scipy.signal import resample_poly

from ecgmeta.data import LUDB, Preprocess
from ecgmeta.data.leads import STANDARD_LEADS
from ecgmeta.encoders import Encoder, create_encoder, load_encoder
from ecgmeta.runtime.errors import InputError

LEADS = ("II", "V1", "V6", "aVR")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    prepared = Preprocess(fs=100.0, duration=8.0, leads=LEADS).to_dict()
    encoder = create_encoder(
        "resnet18",
        leads=4,
        width=4,
        lead_names=LEADS,
        preprocess=prepared,
        generator=torch.Generator().manual_seed(0),
    )
    encoder.normalize.set(torch.tensor([0.1, 0.0, -0.1, 0.2]), 0.25)
    encoder.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_a_ludb_record_in_another_order_and_rate(saved: Path, real_data: Path) -> None:
    raw = wfdb.rdrecord(str(real_data / "ludb" / "data" / "7"), physical=False)
    order = [5, 11, 2, 0, 9, 1, 7, 3, 10, 4, 8, 6]
    signal, names = raw.d_signal.T[order] / 1000.0, [raw.sig_name[k] for k in order]

    encoder = load_encoder(saved)
    features = encoder(Preprocess.of(encoder).tensor(signal, raw.fs, names))
    assert features.shape == (1, 32)

    # The long way: each lead by hand, scipy's resampling, the normalisation written out.
    rows = np.stack([raw.d_signal[:, [n.lower() for n in raw.sig_name].index(n.lower())] for n in LEADS])
    prepared = resample_poly(rows.astype(np.float32) / 1000, 1, 5, axis=1, padtype="line")[:, :800]
    mean = np.array([0.1, 0.0, -0.1, 0.2], np.float32)[:, None]
    plain = load_encoder(saved)
    plain.normalize.set(0.0, 1.0)
    by_hand = plain(torch.from_numpy(((prepared - mean) / 0.25)[None].astype(np.float32)))
    torch.testing.assert_close(features, by_hand, rtol=1e-4, atol=1e-4)

    # And as a member of its database.
    data = LUDB(real_data / "ludb", **encoder.preprocess)
    place = int(np.flatnonzero(data.meta["record"].astype(str) == "7")[0])
    torch.testing.assert_close(features, encoder(data[place][0][None]), rtol=1e-4, atol=1e-4)


def test_an_encoder_that_says_no_more_than_rate_and_leads() -> None:
    encoder = create_encoder("resnet18", leads=4, width=4, fs=250.0, lead_names=LEADS)
    assert Preprocess.of(encoder) == Preprocess(fs=250.0, leads=LEADS)
    nothing: Encoder = create_encoder("resnet18", width=4)
    assert Preprocess.of(nothing).lead_names == STANDARD_LEADS


def test_a_lead_that_is_not_there_is_named(saved: Path) -> None:
    encoder = load_encoder(saved)
    signal = np.random.default_rng(0).normal(size=(3, 5000))
    with pytest.raises(InputError, match="patient 7: lead aVR: found only II, V1, V6"):
        Preprocess.of(encoder).tensor(signal, 500.0, LEADS[:3], "patient 7")

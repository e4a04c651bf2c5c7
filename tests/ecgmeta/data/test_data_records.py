"""The direct reader against wfdb on every real file, and what broken files end in."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from data_helpers import sound_ecg, write_record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecgmeta.data.header import _parse
from ecgmeta.data.leads import STANDARD_LEADS
from ecgmeta.data.records import read_header, read_record
from ecgmeta.runtime.errors import InputError


def real_records(root: Path) -> list[Path]:
    folders = ("cinc2021", "ludb/data", "ptbxl_fixture", "mitdb", "cinc2017", "nstdb")
    return sorted(path for folder in folders for path in (root / folder).rglob("*.hea"))


@pytest.mark.slow
def test_equals_wfdb_on_every_real_record(real_data: Path) -> None:
    import wfdb

    paths = real_records(real_data)
    assert len(paths) > 300
    for path in paths:
        if path.stem == "100":
            continue  # half an hour of format 212, read below
        found = read_record(path)
        expected, fields = wfdb.rdsamp(str(path.with_suffix("")))
        np.testing.assert_array_equal(found.signal, expected.T.astype(np.float32), err_msg=str(path))
        assert found.fs == fields["fs"]
        assert list(found.leads) == fields["sig_name"]


def test_direct_reader_equals_wfdb_where_gains_and_offsets_are_odd(real_data: Path) -> None:
    for name in ("ludb/data/1", "cinc2021/mixed/E07500", "cinc2021/cpsc/A0001"):
        direct, slow = (read_record(real_data / name, method=method) for method in ("direct", "wfdb"))
        np.testing.assert_array_equal(direct.signal, slow.signal)


def test_another_format_equals_wfdb(real_data: Path) -> None:
    import wfdb

    found = read_record(real_data / "mitdb/100")
    expected, _ = wfdb.rdsamp(str(real_data / "mitdb/100"))
    np.testing.assert_array_equal(found.signal, expected.T.astype(np.float32))
    assert found.leads == ("MLII", "V5")
    slow = read_record(real_data / "mitdb/100", method="wfdb")
    np.testing.assert_array_equal(found.signal, slow.signal)


def test_compressed_signals_go_through_wfdb(tmp_path: Path) -> None:
    import soundfile

    digital = sound_ecg(1.0)[:8]  # what a FLAC file can hold
    path = write_record(tmp_path / "r", digital, leads=STANDARD_LEADS[:8])
    plain = read_record(path).signal
    file, header = tmp_path / "r.dat", tmp_path / "r.hea"
    soundfile.write(file, digital.T, 500, format="FLAC", subtype="PCM_16")
    header.write_text(header.read_text().replace("r.dat 16 ", "r.dat 516 "))
    np.testing.assert_array_equal(read_record(path).signal, plain)
    text = header.read_text()
    header.write_text(text.replace("500 500\n", "500 900000000\n"))
    with pytest.raises(InputError, match="size: found 500 samples, expected 900000000"):
        read_record(path)
    header.write_text(text)
    with pytest.raises(InputError, match="not compressed"):
        read_record(path, method="direct")
    whole = file.read_bytes()
    for damaged in (b"", whole[:500], whole[:3000], whole[:-1], b"fLaC" + bytes(400)):
        file.write_bytes(damaged)
        with pytest.raises(InputError):
            read_record(path)


def test_units_become_millivolts_and_the_reserved_value_nan(tmp_path: Path) -> None:
    digital = sound_ecg(1.0)
    digital[3, 7] = -32768
    for gain, factor in (("1000/mV", 1e3), ("1/uV", 1e3), ("1000000/V", 1e3), ("500(10)/mV", 5e2)):
        found = read_record(write_record(tmp_path / "r", digital, gain=gain)).signal
        expected = (digital - (10.0 if "(" in gain else 0.0)) / factor
        expected[3, 7] = np.nan
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_override_of_the_gain_ignores_the_header(tmp_path: Path) -> None:
    digital = sound_ecg(1.0)
    found = read_record(write_record(tmp_path / "r", digital, gain="777(3)/furlong"), units_per_mv=1000)
    np.testing.assert_array_equal(found.signal, (digital / 1000).astype(np.float32))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("R.dat 16", "gone.dat 16", "signal file: found gone.dat, which does not exist"),
        ("1000/mV", "1000/mmHg", "units of signal I: found 'mmHg'"),
        ("1000/mV", "minus/mV", "gain: found 'minus/mV'"),
        ("R 12 500", "R 13 500", "signal lines: found 12, expected 13"),
        ("R 12 500", "R 12 0", "sampling frequency: found '0'"),
        ("R 12 500", "R twelve 500", "record line"),
        ("500 5000", "500 4000", "size: found 120000 bytes, expected 96000"),
        ("R.dat 16 ", "../R.dat 16 ", "plain file name"),
        (" 16 0 ", " 16 zero ", "integers in fields 4 to 8"),
        ("1000/mV 16", "1000/mV\xa016", "found the character '\\xa0', expected text, parted by blanks"),
        ("/mV 16 0", "/mV -16 0", "resolution: found -16, expected 0 or more"),
        ("/mV 16 0", "/mV +16 0", "integers in fields 4 to 8"),
        ("R.dat 16 ", "R.dat 999 ", "format of signal I: found 999, expected one of 8, 16"),
    ],
)
def test_a_broken_header_is_one_line_that_names_the_field(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = write_record(tmp_path / "R", sound_ecg())
    header = path.with_name("R.hea")
    header.write_text(header.read_text().replace(old, new))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_record(path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("first", ["", "   ", "# said first", " # indented"])
def test_what_stands_before_the_record_line_does_not_matter(tmp_path: Path, first: str) -> None:
    digital = sound_ecg(0.5)[:1]
    path = write_record(tmp_path / "R", digital, leads=("I",), comments=())
    plain = read_record(path)
    header = path.with_suffix(".hea")
    text = header.read_text()
    header.write_text(f"{first}\n{text}")
    np.testing.assert_array_equal(read_record(path).signal, plain.signal)
    header.write_text(text.replace("R.dat 16", "#R.dat 16"))
    with pytest.raises(InputError, match="signal lines: found 0, expected 1"):
        read_record(path)


def test_truncated_changed_and_missing_files(tmp_path: Path) -> None:
    path = write_record(tmp_path / "R", sound_ecg())
    data = path.with_name("R.dat")
    whole = data.read_bytes()
    data.write_bytes(whole[:-2])
    with pytest.raises(InputError, match="size: found 119998 bytes, expected 120000"):
        read_record(path)
    data.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(InputError, match="checksum of signal"):
        read_record(path)
    assert read_record(path, checksum=False).signal.shape == (12, 5000)
    data.unlink()
    data.mkdir()
    with pytest.raises(InputError):
        read_record(path)
    with pytest.raises(InputError, match="no such file"):
        read_header(tmp_path / "nothing")


ORIGINAL = sound_ecg(0.5, seed=3)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    part=st.sampled_from([".hea", ".dat"]),
    at=st.floats(0, 1),
    cut=st.integers(0, 6),
    put=st.binary(max_size=6),
)
def test_mutated_files_end_in_an_input_error_or_the_right_numbers(
    tmp_path: Path, part: str, at: float, cut: int, put: bytes
) -> None:
    path = write_record(tmp_path / "R", ORIGINAL)
    file = path.with_name("R" + part)
    whole = file.read_bytes()
    start = int(at * len(whole))
    file.write_bytes(whole[:start] + put + whole[start + cut :])
    try:
        found = read_record(path)
    except InputError:  # its message is one line by construction; anything else fails the test
        return
    assert found.signal.dtype == np.float32
    if part == ".dat":  # the checksums leave only an untouched file
        np.testing.assert_array_equal(found.signal, (ORIGINAL / 1000).astype(np.float32))
    else:  # a header may rightly say another gain, never other samples
        scale = found.signal.astype(float).std(axis=1)
        shape = (found.signal - found.signal.mean(axis=1, keepdims=True)) / scale[:, None]
        expected = ORIGINAL / 1000
        expected = (expected - expected.mean(axis=1, keepdims=True)) / expected.std(axis=1, keepdims=True)
        np.testing.assert_allclose(shape, expected, atol=2e-2)


def test_usual_headers_read_as_any_other_header_does(tmp_path: Path) -> None:
    """What the header before had in common with this one must not change how this one is read."""
    plain = "r 2 100 4\nr.dat 16 200.5/mV 16 0 -7 -12 0 lead I\nr.dat 16 1e3/µV 12 5 8 65535 0 V.1\n"
    texts = [
        plain,
        plain.replace("r.dat", "other.dat"),
        plain.replace("V.1", "Vx1"),  # a dot is no wildcard
        plain.replace("200.5", "20045"),
        plain.replace("200.5/mV", "200.5(-3)/mV").replace("lead I", "I (a+b)"),
        plain.replace("-12", "0").replace("65535", "-1"),
        plain.replace("\nr.dat 16 1e3", "\ns.dat 16 1e3"),
        plain.replace("-12", "1" * 11),
        plain.replace(" 4\n", "\n"),
        plain + "# Age: 5\n",
        plain.replace("\n", "\r\n"),
        plain.replace("r 2", "r 1"),
    ]
    for order in (texts, texts[::-1], [text for other in texts for text in (plain, other)]):
        for text in order:
            (tmp_path / "r.hea").write_bytes(text.encode())
            try:
                found: object = read_header(tmp_path / "r")
            except InputError as error:
                found = str(error)
            try:
                expected: object = _parse(text, str(tmp_path / "r.hea"))
            except InputError as error:
                expected = str(error)
            assert found == expected

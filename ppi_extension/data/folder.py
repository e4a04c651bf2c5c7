"""A folder of arrays that is whole or absent: written aside and renamed, with size and checksum of every file."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import PART, read_json, unwritable, write_json

INFO = "info.json"
_ABANDONED_S = 24 * 3600.0
_DIGEST_BLOCK, _DIGEST_BLOCKS = 1 << 20, 64


class FolderWriter:
    """Arrays that grow row by row, and `info.json` last; ``with FolderWriter(folder) as writer: ...; writer.finish(info)``.

    The files lie in a hidden folder beside the final place, which is renamed to it when all is on disk; leaving without
    `finish`, or being killed, leaves nothing there. What a killed process left aside is removed a day later.

    Args:
        folder: final place, where nothing may stand yet.

    Raises:
        InputError: something stands there; it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.exists():
            raise InputError(folder, "output folder", "something stands there", "a new folder")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(folder)
            self._aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=PART, dir=folder.parent))
            self._aside.chmod(0o777 & ~_umask())
        except OSError as error:
            raise unwritable(folder, error) from error
        self._arrays: dict[str, _Growing] = {}

    def __enter__(self) -> FolderWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for array in self._arrays.values():
            array.file.close()
        shutil.rmtree(self._aside, ignore_errors=True)

    def append(self, name: str, rows: NDArray[Any], dtype: DTypeLike) -> None:
        """More rows of an array, which the first call begins; later ones have the same dtype and trailing shape.

        Raises:
            InputError: the disk is full.
        """
        if name not in self._arrays:
            self._arrays[name] = _Growing(self._aside / f"{name}.npy", np.dtype(dtype), rows.shape[1:])
        try:
            self._arrays[name].append(rows)
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def drop(self, name: str) -> None:
        """Leave an array out after all."""
        array = self._arrays.pop(name)
        array.file.close()
        array.path.unlink()

    def finish(self, info: dict[str, Any], version: int) -> None:
        """Flush everything, write `info.json` with the checksums, and put the folder in its place.

        Raises:
            InputError: it cannot be written, or something stands there by now.
        """
        try:
            arrays = {name: array.finish() for name, array in self._arrays.items()}
            write_json(self._aside / INFO, {"format": version, **info, "arrays": arrays})
            self._aside.rename(self.folder)
        except OSError as error:
            raise unwritable(self.folder, error) from error


class _Growing:
    """An .npy file whose first axis is known at the end; NumPy leaves room in the header for it to grow."""

    def __init__(self, path: Path, dtype: np.dtype[Any], trailing: tuple[int, ...]) -> None:
        self.path, self.dtype, self.trailing, self.rows = path, dtype.newbyteorder("<"), trailing, 0
        self.file: BinaryIO = path.open("w+b", buffering=_DIGEST_BLOCK)
        self.file.write(self._header())

    def append(self, rows: NDArray[Any]) -> None:
        self.file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
        self.rows += len(rows)

    def finish(self) -> dict[str, Any]:
        """Size and checksum of the whole file."""
        self.file.seek(0)
        self.file.write(self._header())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return {"bytes": self.path.stat().st_size, "crc32": digest(self.path)}

    def _header(self) -> bytes:
        out = BytesIO()
        description = np.lib.format.dtype_to_descr(self.dtype)
        np.lib.format.write_array_header_1_0(
            out, {"descr": description, "fortran_order": False, "shape": (self.rows, *self.trailing)}
        )
        return out.getvalue()


def checked_info(folder: Path, version: int) -> dict[str, Any]:
    """What `info.json` says, after a look at every file that it lists.

    Raises:
        InputError: no folder, no or broken `info.json`, another version, a file that is missing or has changed.
    """
    if not folder.is_dir():
        raise InputError(folder, "store", "no such folder", "a folder written by `ppi-extension data build`")
    info = read_json(folder / INFO)
    if not isinstance(info, dict) or not isinstance(info.get("arrays"), dict):
        raise InputError(
            folder / INFO, "content", "no list of arrays", "what `ppi-extension data build` writes"
        )
    if info.get("format") != version:
        raise InputError(folder / INFO, "format", info.get("format"), f"{version}; build the store again")
    for name, part in info["arrays"].items():
        if not isinstance(part, dict) or not {"bytes", "crc32"} <= part.keys():
            raise InputError(folder / INFO, f"arrays: {name}", part, "its bytes and its crc32")
        path = folder / f"{name}.npy"
        if not path.is_file():
            raise InputError(path, "file", "no such file", "a file of the store; build it again")
        if path.stat().st_size != part["bytes"]:
            raise InputError(
                path, "size", path.stat().st_size, f"{part['bytes']} bytes; build the store again"
            )
        if digest(path) != part["crc32"]:
            raise InputError(path, "checksum", "another one", f"{part['crc32']}; build the store again")
    return info


def mapped(folder: Path, name: str) -> NDArray[Any]:
    """A file of the folder as a read-only array whose pages are read when they are looked at."""
    path = folder / f"{name}.npy"
    try:
        # A plain view of the map: indexing np.memmap itself costs several times as much.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError as error:
        raise InputError(path, "content", error, "an .npy array") from error


def digest(path: Path) -> int:
    """CRC-32 of a file; of 64 evenly spaced mebibytes where it is larger than that."""
    size, crc = path.stat().st_size, 0
    blocks = min(_DIGEST_BLOCKS, -(-size // _DIGEST_BLOCK))
    last = max(0, size - _DIGEST_BLOCK)
    with path.open("rb") as file:
        for number in range(blocks):
            file.seek(round(last * number / max(1, blocks - 1)))
            crc = zlib.crc32(file.read(_DIGEST_BLOCK), crc)
    return crc


def _umask() -> int:
    umask = os.umask(0)  # the one way to read it is to set it
    os.umask(umask)
    return umask


def _remove_abandoned(folder: Path) -> None:
    for left in folder.parent.glob(f".{folder.name}.*{PART}"):
        if time.time() - left.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)

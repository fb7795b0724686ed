"""Tensors out of files that ``torch.save`` wrote, both formats, without executing anything in them."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from vidssl.errors import UsageError, counted
from vidssl.weights.pickles import STORAGES, Damaged, Name, Record, StorageRecord, TensorRecord, read_pickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles of the format before PyTorch 1.6
_LEGACY_VERSION = 1001


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a whole module, a state dict or a checkpoint with one inside, with their dotted names.

    Raises:
        UsageError: if the file is missing or damaged, or asks for anything that weights do not need.
    """
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                return _read_zip(file)
            file.seek(0)
            return _read_legacy(file)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    # what Python's zip reader and PyTorch say of nonsense, and RuntimeError of an encrypted zip
    except (zipfile.BadZipFile, EOFError, ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"{path}: damaged or cut short ({error})") from error


def _read_zip(file: IO[bytes]) -> dict[str, Tensor]:
    with zipfile.ZipFile(file) as archive:
        root = _root(archive)
        with archive.open(f"{root}data.pkl") as pickle:
            tensors = _named_tensors(read_pickle(pickle, _zip_storage))
        storages = {tensor.storage for tensor in tensors.values()}
        numbers = {storage: _zip_numbers(archive, root, storage) for storage in storages}
    return {name: _tensor(tensor, numbers[tensor.storage]) for name, tensor in tensors.items()}


def _root(archive: zipfile.ZipFile) -> str:
    """The folder inside the archive that holds ``data.pkl``."""
    names = archive.namelist()
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("data.pkl")]
    if len(roots) != 1:
        raise Damaged("a zip file, but not one that torch.save wrote: it has no data.pkl")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise Damaged("a compressed zip file, which torch.save does not write")
    if f"{roots[0]}byteorder" in names and archive.read(f"{roots[0]}byteorder") != b"little":
        raise Damaged("written on a big-endian machine, which is not supported")
    return roots[0]


def _zip_storage(description: tuple[object, ...]) -> StorageRecord:
    return _storage(*description[:5])


def _zip_numbers(archive: zipfile.ZipFile, root: str, storage: StorageRecord) -> Tensor:
    name = f"{root}data/{storage.key}"
    wanted = storage.numel * _dtype(storage).itemsize
    size = archive.getinfo(name).file_size if name in archive.namelist() else -1
    if size != wanted:
        raise Damaged(
            f"damaged: storage '{storage.key}' should have {counted(wanted, 'byte')}, has {max(size, 0)}"
        )
    return _numbers(archive.read(name), storage)


def _read_legacy(file: IO[bytes]) -> dict[str, Tensor]:
    """Three pickles of facts, one of objects, one of storage keys, then the storages one after the other."""
    if read_pickle(file, _no_storage) != _LEGACY_MAGIC:
        raise Damaged("not a file that torch.save wrote")
    version, system = read_pickle(file, _no_storage), read_pickle(file, _no_storage)
    if version != _LEGACY_VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Damaged(f"written by a PyTorch or on a machine that is not supported ({version}, {system})")
    storages: dict[str, StorageRecord] = {}

    def note(description: tuple[object, ...]) -> object:
        if description[0] == "module":  # a class, with its source text that nobody needs
            return description[1]
        if len(description) > 5 and description[5] is not None:
            raise Damaged(
                "has storages inside storages, which is not supported: save it with a newer PyTorch"
            )
        storage = _storage(*description[:5])
        return storages.setdefault(storage.key, storage)

    tensors = _named_tensors(read_pickle(file, note))
    keys = read_pickle(file, _no_storage)
    if not isinstance(keys, list) or set(keys) != set(storages):
        raise Damaged("damaged: its list of storages is not that of its tensors")
    numbers = {key: _legacy_numbers(file, storages[key]) for key in keys}
    return {name: _tensor(tensor, numbers[tensor.storage.key]) for name, tensor in tensors.items()}


def _no_storage(description: tuple[object, ...]) -> object:
    raise Damaged("a storage where none belongs")


def _legacy_numbers(file: IO[bytes], storage: StorageRecord) -> Tensor:
    count = int.from_bytes(file.read(8), "little")
    wanted = storage.numel * _dtype(storage).itemsize
    left = os.fstat(file.fileno()).st_size - file.tell()
    if count != storage.numel or wanted > left:
        raise Damaged(
            f"damaged or cut short: storage '{storage.key}' should have {counted(storage.numel, 'number')}"
        )
    return _numbers(file.read(wanted), storage)


def _storage(
    kind: object, storage_type: object, key: object, location: object, numel: object
) -> StorageRecord:
    element = storage_type.text.removeprefix("torch.") if isinstance(storage_type, Name) else ""
    if kind != "storage" or element not in STORAGES or not isinstance(key, str) or not isinstance(numel, int):
        raise TypeError(f"a storage that is described as {kind}, {storage_type}, {key}, {numel}")
    return StorageRecord(key, STORAGES[element], numel)


def _dtype(storage: StorageRecord) -> torch.dtype:
    dtype = getattr(torch, storage.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _numbers(content: bytes, storage: StorageRecord) -> Tensor:
    return (
        torch.frombuffer(bytearray(content), dtype=_dtype(storage))
        if content
        else torch.empty(0, dtype=_dtype(storage))
    )


def _tensor(record: TensorRecord, numbers: Tensor) -> Tensor:
    """The window on a storage, as a tensor of its own."""
    last = record.offset + sum(
        (side - 1) * step for side, step in zip(record.shape, record.strides, strict=True)
    )
    count = torch.Size(record.shape).numel()
    if count > len(numbers) or (count and last >= len(numbers)):
        raise Damaged(f"damaged: a tensor of shape {record.shape} reaches beyond its storage")
    return numbers.as_strided(record.shape, record.strides, record.offset).clone()


def _named_tensors(root: object) -> dict[str, TensorRecord]:
    """The tensors below an object with dotted names: in dicts, and as a module's parameters and buffers."""
    found: dict[str, TensorRecord] = {}
    seen: set[int] = set()
    left = [("", root)]
    while left:
        name, value = left.pop()
        if isinstance(value, TensorRecord):
            found[name] = value
        elif id(value) not in seen:  # an object in two places is read once, so that no loop has no end
            seen.add(id(value))
            left += [(f"{name}.{key}" if name else key, entry) for key, entry in _entries(value)]
    if not found:
        raise Damaged("holds no tensor")
    return found


def _entries(value: object) -> list[tuple[str, object]]:
    parts: list[Mapping[object, object]] = []
    if isinstance(value, dict):
        parts = [value]
    elif isinstance(value, Record):
        held = (value.state.get(name) for name in ("_parameters", "_buffers", "_modules"))
        parts = [part for part in held if isinstance(part, dict)]
    return [(key, entry) for part in parts for key, entry in part.items() if isinstance(key, str)]

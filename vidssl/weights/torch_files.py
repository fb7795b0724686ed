"""Tensors out of files that ``torch.save`` wrote, both formats, without executing anything in them.

A pickle is a program: loading one in the usual way imports what it names and calls it. Here its instructions
are carried out by Python's own reader on plain containers and records. A name is a text that has to stand in
a short list, and the few calls that weights need are made by functions of this module. Nothing that a file
names is ever imported. PyTorch's reader for weights does the same, but not for whole modules in the format
before 1.6.
"""

import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from vidssl.errors import UsageError, counted


@dataclass(frozen=True)
class _Global:
    """What a pickle refers to as ``module.name``; only the text."""

    text: str


@dataclass
class _Object:
    """An object of a class that is not imported: its attributes."""

    state: dict[object, object] = field(default_factory=dict)


@dataclass(frozen=True)
class _Storage:
    """Where numbers lie: the key of a storage in the file, their type, how many."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class _View:
    """A tensor as a window on a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(UsageError):
    """A pickle wants more than weights need. The message names it."""


class _Damaged(UsageError):
    """A file that makes no sense."""


_MakeStorage = Callable[[tuple[object, ...]], object]
# element types by the storage class that a file names
_STORAGES: Mapping[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# classes whose objects are kept as records: those of the DALL-E release, and what they are built of
_RECORDS = frozenset({
    "dall_e.encoder.Encoder", "dall_e.encoder.EncoderBlock", "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock", "dall_e.utils.Conv2d", "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential", "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d", "torch.nn.modules.upsampling.Upsample", "functools.partial",
    "torch.device", "builtins.object",
})  # fmt: skip


def _view(*given: object) -> _View:
    storage, offset, shape, strides = given[:4]
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without a storage")
    return _View(storage, _counts((offset,))[0], _counts(shape), _counts(strides))


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple):
        raise TypeError("expected a tuple of counts")
    for value in values:
        if type(value) is not int or value < 0:
            raise TypeError(f"expected a count, got {value!r}")
    return values


# functions that may be called, and what stands in for them
_CALLS: Mapping[str, Callable[..., object]] = {
    "collections.OrderedDict": lambda pairs=(): dict(pairs),
    "builtins.set": lambda items=(): set(items),
    "torch.Size": lambda items=(): tuple(items),
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "copyreg._reconstructor": lambda kind, *_: _object(kind),
    "copyreg.__newobj__": lambda kind, *_: _object(kind),
}
_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # of Python 2, which protocol 2 still writes


def _object(kind: object) -> _Object:
    if not isinstance(kind, _Global) or kind.text not in _RECORDS:
        raise _Refused(f"wants to make an object of {_shown(kind)}, which is no class that weights need")
    return _Object()


def _called(function: object, arguments: object) -> object:
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise _Refused(f"wants to call {_shown(function)}, which is nothing that weights need")
    return _CALLS[function.text](*arguments) if function.text in _CALLS else _object(function)


def _shown(value: object) -> str:
    return value.text if isinstance(value, _Global) else f"a {type(value).__name__}"


def _refuse(instruction: str, reader: object) -> None:
    raise _Refused(f"uses the instruction {instruction}, which no weights need")


# what calls or makes objects and is not replaced below, and buffers
_FORBIDDEN = "PERSID EXT1 EXT2 EXT4 OBJ NEWOBJ_EX BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER"


class _Reader(pickle._Unpickler):
    """Python's own reader of pickles; whatever names, makes, calls or changes objects is replaced."""

    stack: list[Any]
    append: Callable[[Any], None]

    def __init__(self, file: IO[bytes], storage: _MakeStorage) -> None:
        super().__init__(file, encoding="latin-1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> _Global:
        text = f"{_OLD_NAMES.get(module, module)}.{name}"
        is_storage = module == "torch" and name in _STORAGES
        if text not in _RECORDS and text not in _CALLS and not is_storage:
            raise _Refused(
                f"wants to call {text}, which no weights need. A pickle can run any program on the machine "
                "that loads it; this one was only looked at, nothing of it was executed"
            )
        return _Global(text)

    def persistent_load(self, description: object) -> object:
        if not isinstance(description, tuple):
            raise TypeError("a storage that no tuple describes")
        return self._storage(description)

    def _instantiate(self, kind: object, arguments: list[object]) -> None:
        self.append(_object(kind))

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(_called(function, arguments))

    def _new(self) -> None:
        _, kind = self.stack.pop(), self.stack.pop()
        self.append(_object(kind))

    def _build(self) -> None:
        """Gives an object its attributes; those of an ``OrderedDict`` (a version number) are left out."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Object):
            target.state.update(state if isinstance(state, dict) else {})
        elif not isinstance(target, dict):
            raise _Refused(f"wants to change the attributes of {_shown(target)}")

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        **{
            ord(one.code): partial(_refuse, one.name)
            for one in pickletools.opcodes
            if one.name in _FORBIDDEN.split()
        },
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _new,
        pickle.BUILD[0]: _build,
    }


_NONSENSE = (
    *(pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError),
    *(OverflowError, MemoryError),
)


def _read_pickle(file: IO[bytes], storage: _MakeStorage) -> object:
    """The object that a pickle describes, of plain containers, numbers, texts and records.

    Args:
        file: read up to the end of the pickle and no further.
        storage: makes a ``_Storage`` (or a name, where a file keeps classes apart) of a persistent id.

    Raises:
        UsageError: if it names or calls anything else than weights need, is no pickle, or cut short.
    """
    try:
        return _Reader(file, storage).load()
    except UsageError:
        raise
    except _NONSENSE as error:
        raise _Damaged(f"no pickle of weights, or cut short ({type(error).__name__}: {error})") from error


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
        with archive.open(f"{root}data.pkl") as content:
            views = _named_views(_read_pickle(content, lambda description: _storage(*description[:5])))
        numbers = {one: _zip_numbers(archive, root, one) for one in {view.storage for view in views.values()}}
    return {name: _tensor(view, numbers[view.storage]) for name, view in views.items()}


def _root(archive: zipfile.ZipFile) -> str:
    """The folder inside the archive that holds ``data.pkl``."""
    names = archive.namelist()
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("data.pkl")]
    if len(roots) != 1:
        raise _Damaged("a zip file, but not one that torch.save wrote: it has no data.pkl")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise _Damaged("a compressed zip file, which torch.save does not write")
    if f"{roots[0]}byteorder" in names and archive.read(f"{roots[0]}byteorder") != b"little":
        raise _Damaged("written on a big-endian machine, which is not supported")
    return roots[0]


def _zip_numbers(archive: zipfile.ZipFile, root: str, storage: _Storage) -> Tensor:
    name = f"{root}data/{storage.key}"
    wanted = storage.numel * storage.dtype.itemsize
    size = archive.getinfo(name).file_size if name in archive.namelist() else -1
    if size != wanted:
        raise _Damaged(
            f"damaged: storage '{storage.key}' should have {counted(wanted, 'byte')}, has {max(size, 0)}"
        )
    return _numbers(archive.read(name), storage)


def _read_legacy(file: IO[bytes]) -> dict[str, Tensor]:
    """Three pickles of facts, one of objects, one of storage keys, then the storages one after the other."""
    if _read_pickle(file, _no_storage) != _LEGACY_MAGIC:
        raise _Damaged("not a file that torch.save wrote")
    version, system = _read_pickle(file, _no_storage), _read_pickle(file, _no_storage)
    if version != _LEGACY_VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Damaged(f"written by a PyTorch or on a machine that is not supported ({version}, {system})")
    storages: dict[str, _Storage] = {}

    def note(description: tuple[object, ...]) -> object:
        if description[0] == "module":  # a class, with its source text that nobody needs
            return description[1]
        if len(description) > 5 and description[5] is not None:
            raise _Damaged(
                "has storages inside storages, which is not supported: save it with a newer PyTorch"
            )
        storage = _storage(*description[:5])
        return storages.setdefault(storage.key, storage)

    views = _named_views(_read_pickle(file, note))
    keys = _read_pickle(file, _no_storage)
    if not isinstance(keys, list) or set(keys) != set(storages):
        raise _Damaged("damaged: its list of storages is not that of its tensors")
    numbers = {key: _legacy_numbers(file, storages[key]) for key in keys}
    return {name: _tensor(view, numbers[view.storage.key]) for name, view in views.items()}


def _no_storage(description: tuple[object, ...]) -> object:
    raise _Damaged("a storage where none belongs")


def _legacy_numbers(file: IO[bytes], storage: _Storage) -> Tensor:
    count = int.from_bytes(file.read(8), "little")
    wanted = storage.numel * storage.dtype.itemsize
    left = os.fstat(file.fileno()).st_size - file.tell()
    if count != storage.numel or wanted > left:
        raise _Damaged(
            f"damaged or cut short: storage '{storage.key}' should have {counted(storage.numel, 'number')}"
        )
    return _numbers(file.read(wanted), storage)


def _storage(kind: object, storage_type: object, key: object, location: object, numel: object) -> _Storage:
    element = storage_type.text.removeprefix("torch.") if isinstance(storage_type, _Global) else ""
    if (
        kind != "storage"
        or element not in _STORAGES
        or not isinstance(key, str)
        or not isinstance(numel, int)
    ):
        raise TypeError(f"a storage that is described as {kind}, {storage_type}, {key}, {numel}")
    return _Storage(key, _STORAGES[element], numel)


def _numbers(content: bytes, storage: _Storage) -> Tensor:
    if not content:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(bytearray(content), dtype=storage.dtype)


def _tensor(view: _View, numbers: Tensor) -> Tensor:
    """The window on a storage, as a tensor of its own."""
    last = view.offset + sum((side - 1) * step for side, step in zip(view.shape, view.strides, strict=True))
    count = torch.Size(view.shape).numel()
    if count > len(numbers) or (count and last >= len(numbers)):
        raise _Damaged(f"damaged: a tensor of shape {view.shape} reaches beyond its storage")
    return numbers.as_strided(view.shape, view.strides, view.offset).clone()


def _named_views(root: object) -> dict[str, _View]:
    """The tensors below an object with dotted names: in dicts, and as a module's parameters and buffers."""
    found: dict[str, _View] = {}
    seen: set[int] = set()
    left = [("", root)]
    while left:
        name, value = left.pop()
        if isinstance(value, _View):
            found[name] = value
        elif id(value) not in seen:  # an object in two places is read once, so that no loop has no end
            seen.add(id(value))
            left += [(f"{name}.{key}" if name else key, entry) for key, entry in _entries(value)]
    if not found:
        raise _Damaged("holds no tensor")
    return found


def _entries(value: object) -> list[tuple[str, object]]:
    parts: list[Mapping[object, object]] = []
    if isinstance(value, dict):
        parts = [value]
    elif isinstance(value, _Object):
        held = (value.state.get(name) for name in ("_parameters", "_buffers", "_modules"))
        parts = [part for part in held if isinstance(part, dict)]
    return [(key, entry) for part in parts for key, entry in part.items() if isinstance(key, str)]

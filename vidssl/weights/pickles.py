"""Reading pickles without executing anything in them.

A pickle is a program: loading one in the usual way imports what it names and calls it. Here its instructions
are carried out by Python's own reader on plain containers and records. A name is a text that has to stand in
a short list, and the few calls that weights need are made by functions of this module. Nothing that a file
names is ever imported.
"""

import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any, ClassVar

from vidssl.errors import UsageError


@dataclass(frozen=True)
class Name:
    """What a pickle refers to as ``module.name``; only the text."""

    text: str


@dataclass
class Record:
    """An object of a class that is not imported: its name, what it was made from, and its attributes."""

    kind: str
    arguments: tuple[object, ...] = ()
    state: dict[object, object] = field(default_factory=dict)


@dataclass(frozen=True)
class StorageRecord:
    """Where numbers lie: the key of a storage in the file, their type, how many."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as a window on a storage; offset and strides in elements."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Refused(UsageError):
    """A pickle wants more than weights need. The message names it."""


class Damaged(UsageError):
    """A pickle that makes no sense."""


# Element types by the storage class that a file names.
STORAGES: Mapping[str, str] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

# Classes whose objects are kept as records: those of the DALL-E release, and what they are built of.
_RECORDS = frozenset(
    {
        "dall_e.encoder.Encoder",
        "dall_e.encoder.EncoderBlock",
        "dall_e.decoder.Decoder",
        "dall_e.decoder.DecoderBlock",
        "dall_e.utils.Conv2d",
        "torch.nn.modules.activation.ReLU",
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.linear.Identity",
        "torch.nn.modules.pooling.MaxPool2d",
        "torch.nn.modules.upsampling.Upsample",
        "functools.partial",
        "torch.device",
        "builtins.object",
    }
)


def _tensor(*given: object) -> TensorRecord:
    storage, offset, shape, strides = given[:4]
    if not isinstance(storage, StorageRecord):
        raise TypeError("a tensor without a storage")
    return TensorRecord(storage, _count(offset), _counts(shape), _counts(strides))


def _parameter(data: object, *ignored: object) -> object:
    return data


def _made_by(kind: object, *arguments: object) -> Record:
    """What ``copyreg._reconstructor`` and ``copyreg.__newobj__`` do, for classes of the list only."""
    return _record(kind, arguments)


# Functions that may be called, and what stands in for them.
_CALLS: Mapping[str, Callable[..., object]] = {
    "collections.OrderedDict": lambda pairs=(): dict(pairs),
    "builtins.set": lambda items=(): set(items),
    "torch.Size": lambda items=(): tuple(items),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "copyreg._reconstructor": _made_by,
    "copyreg.__newobj__": _made_by,
}
_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # of Python 2, which protocol 2 still writes


def _name(module: str, name: str) -> Name:
    """A name, if it is one that weights need.

    Raises:
        Refused: if not.
    """
    text = f"{_OLD_NAMES.get(module, module)}.{name}"
    is_storage = module == "torch" and name in STORAGES
    if text not in _RECORDS and text not in _CALLS and not is_storage:
        raise Refused(
            f"wants to call {text}, which no weights need. A pickle can run any program on the machine that "
            "loads it; this one was only looked at, nothing of it was executed"
        )
    return Name(text)


def _record(kind: object, arguments: tuple[object, ...] = ()) -> Record:
    if not isinstance(kind, Name) or kind.text not in _RECORDS:
        raise Refused(f"wants to make an object of {_shown(kind)}, which is no class that weights need")
    return Record(kind.text, arguments)


def _called(function: object, arguments: object) -> object:
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise Refused(f"wants to call {_shown(function)}, which is nothing that weights need")
    if function.text in _CALLS:
        return _CALLS[function.text](*arguments)
    return _record(function, arguments)


def _built(target: object, state: object) -> None:
    """Gives an object its attributes; those of an ``OrderedDict`` (a version number) are left out."""
    if isinstance(target, Record):
        target.state.update(state if isinstance(state, dict) else {"state": state})
    elif not isinstance(target, dict):
        raise Refused(f"wants to change the attributes of {_shown(target)}")


def _shown(value: object) -> str:
    return value.text if isinstance(value, Name) else f"a {type(value).__name__}"


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"expected a count, got {value!r}")
    return value


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple):
        raise TypeError("expected a tuple of counts")
    return tuple(_count(value) for value in values)


def read_pickle(file: IO[bytes], storage: Callable[[tuple[object, ...]], object]) -> object:
    """The object that a pickle describes, of plain containers, numbers, texts and records.

    Args:
        file: read up to the end of the pickle and no further.
        storage: makes a ``StorageRecord`` (or a name, where a file keeps classes apart) of a persistent id.

    Raises:
        Refused: if it names or calls anything else than weights need, with that name.
        Damaged: if it is no pickle, or cut short.
    """
    try:
        return _Reader(file, storage).load()
    except UsageError:
        raise
    except _NONSENSE as error:
        raise Damaged(f"no pickle of weights, or cut short ({type(error).__name__}: {error})") from error


_NONSENSE = (
    *(pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError),
    *(OverflowError, MemoryError),
)
# what calls or makes objects and is not replaced below, and buffers
_REFUSED = "PERSID EXT1 EXT2 EXT4 OBJ NEWOBJ_EX BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER"


def _refuse(instruction: str, reader: object) -> None:
    raise Refused(f"uses the instruction {instruction}, which no weights need")


class _Reader(pickle._Unpickler):
    """Python's own reader of pickles; whatever names, makes, calls or changes objects is replaced."""

    stack: list[Any]
    append: Callable[[Any], None]

    def __init__(self, file: IO[bytes], storage: Callable[[tuple[object, ...]], object]) -> None:
        super().__init__(file, encoding="latin-1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Name:
        return _name(module, name)

    def persistent_load(self, description: object) -> object:
        if not isinstance(description, tuple):
            raise TypeError("a storage that no tuple describes")
        return self._storage(description)

    def _instantiate(self, kind: object, arguments: list[object]) -> None:
        self.append(_record(kind, tuple(arguments)))

    def _call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.append(_called(function, arguments))

    def _new(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self.append(_record(kind, arguments if isinstance(arguments, tuple) else ()))

    def _build(self) -> None:
        state = self.stack.pop()
        _built(self.stack[-1], state)

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        **{
            ord(one.code): partial(_refuse, one.name)
            for one in pickletools.opcodes
            if one.name in _REFUSED.split()
        },
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _new,
        pickle.BUILD[0]: _build,
    }

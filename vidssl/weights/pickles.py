"""Reading pickles without executing anything in them.

A pickle is a program: loading one in the usual way imports what it names and calls it. Here its instructions
are carried out on plain containers and records. A name is a text that has to stand in a short list, and the
few calls that weights need are made by functions of this module. Nothing that a file names is ever imported.
"""

import pickletools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

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
    machine = _Machine(storage)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
    except UsageError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise Damaged(f"no pickle of weights, or cut short ({type(error).__name__}: {error})") from error
    if len(machine.stack) != 1:
        raise Damaged("no pickle of weights: it ends in the middle of something")
    return machine.stack[0]


class _Machine:
    """The stack machine of the pickle format; every instruction that is not listed is refused."""

    def __init__(self, storage: Callable[[tuple[object, ...]], object]) -> None:
        self.stack: list[object] = []
        self.below_mark: list[list[object]] = []
        self.memo: dict[object, object] = {}
        self.storage = storage

    def step(self, code: str, argument: object) -> None:
        if code in _CONSTANTS:
            self.push(_CONSTANTS[code]())
        elif code in _LITERALS:
            self.push(argument)
        elif code in _STEPS:
            _STEPS[code](self, argument)
        elif code not in _IGNORED:
            raise Refused(f"uses the instruction {code}, which no weights need")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def take(self, count: int) -> tuple[object, ...]:
        if count > len(self.stack):
            raise IndexError("its stack is empty")
        taken = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return taken

    def mark(self) -> None:
        self.below_mark.append(self.stack)
        self.stack = []

    def take_to_mark(self) -> list[object]:
        items, self.stack = self.stack, self.below_mark.pop()
        return items

    def remember(self, key: object) -> None:
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]

    def append(self, items: Sequence[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(items)
        else:
            raise Refused(f"wants to append to {_shown(target)}")

    def set_items(self, items: Sequence[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise Refused(f"wants to set items of {_shown(target)}")
        target.update(_pairs(items))

    def name(self, written: object) -> None:
        module, name = str(written).split(" ", 1) if written is not None else self.take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        self.push(_name(module, name))

    def call(self) -> None:
        function, arguments = self.take(2)
        self.push(_called(function, arguments))

    def new(self) -> None:
        kind, arguments = self.take(2)
        self.push(_record(kind, arguments if isinstance(arguments, tuple) else ()))

    def instance(self, written: object) -> None:
        arguments = tuple(self.take_to_mark())
        self.name(written)
        self.push(_record(self.take(1)[0], arguments))

    def build(self) -> None:
        (state,) = self.take(1)
        _built(self.stack[-1], state)

    def persistent(self) -> None:
        (description,) = self.take(1)
        if not isinstance(description, tuple):
            raise TypeError("a storage that no tuple describes")
        self.push(self.storage(description))


def _pairs(items: Sequence[object]) -> dict[object, object]:
    return dict(zip(items[::2], items[1::2], strict=True))


_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})
_CONSTANTS: Mapping[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_LITERALS = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)
_STEPS: Mapping[str, Callable[[_Machine, object], object]] = {
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.take(1),
    "POP_MARK": lambda m, _: m.take_to_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "TUPLE": lambda m, _: m.push(tuple(m.take_to_mark())),
    "TUPLE1": lambda m, _: m.push(m.take(1)),
    "TUPLE2": lambda m, _: m.push(m.take(2)),
    "TUPLE3": lambda m, _: m.push(m.take(3)),
    "LIST": lambda m, _: m.push(m.take_to_mark()),
    "DICT": lambda m, _: m.push(_pairs(m.take_to_mark())),
    "APPEND": lambda m, _: m.append(m.take(1)),
    "APPENDS": lambda m, _: m.append(m.take_to_mark()),
    "ADDITEMS": lambda m, _: m.append(m.take_to_mark()),
    "SETITEM": lambda m, _: m.set_items(m.take(2)),
    "SETITEMS": lambda m, _: m.set_items(m.take_to_mark()),
    "PUT": lambda m, key: m.remember(key),
    "BINPUT": lambda m, key: m.remember(key),
    "LONG_BINPUT": lambda m, key: m.remember(key),
    "MEMOIZE": lambda m, key: m.remember(key),
    "GET": lambda m, key: m.push(m.memo[key]),
    "BINGET": lambda m, key: m.push(m.memo[key]),
    "LONG_BINGET": lambda m, key: m.push(m.memo[key]),
    "GLOBAL": lambda m, written: m.name(written),
    "STACK_GLOBAL": lambda m, written: m.name(written),
    "INST": lambda m, written: m.instance(written),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.new(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.persistent(),
}

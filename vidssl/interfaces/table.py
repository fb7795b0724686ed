"""Tables of components: names that recipes use, and the classes behind them, imported on demand."""

import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Generic, TypeVar, cast

Made = TypeVar("Made")


class Table(MutableMapping[str, Callable[..., Made]], Generic[Made]):
    """Name -> constructor; the module of a constructor is imported when the name is first looked up.

    A command imports the components that its recipe names and no others: all of them together, with
    torchvision, timm and PyTorchVideo, take longer to import than torch itself.

    Args:
        addresses: name -> ``package.module:constructor``.
    """

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._entries: dict[str, str | Callable[..., Made]] = dict(addresses)

    def __getitem__(self, name: str) -> Callable[..., Made]:
        entry = self._entries[name]
        if not isinstance(entry, str):
            return entry
        module, _, constructor = entry.partition(":")
        return cast(Callable[..., Made], getattr(importlib.import_module(module), constructor))

    def constructor(self, name: str, package: str) -> Callable[..., Made]:
        """The constructor of this name, for ``from vidssl.backbones import ViT``.

        Raises:
            AttributeError: if the table has none, naming the package.
        """
        for key, entry in self._entries.items():
            if isinstance(entry, str) and entry.endswith(f":{name}"):
                return self[key]
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def name_of(self, made_by: type) -> str | None:
        """The name of a class, None if it is not in the table; imports nothing."""
        address = f"{made_by.__module__}:{made_by.__qualname__}"
        return next((name for name, entry in self._entries.items() if entry in (address, made_by)), None)

    def __setitem__(self, name: str, constructor: Callable[..., Made]) -> None:
        self._entries[name] = constructor

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

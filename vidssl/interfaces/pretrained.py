"""Parts that know what they were made with, and networks in folders from which they are made again.

Such a folder holds safetensors and JSON, as on model hubs; nothing in it is executed.
"""

import inspect
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vidssl import __version__
from vidssl.errors import UsageError

if TYPE_CHECKING:
    from vidssl.interfaces.backbone import Backbone

Made = TypeVar("Made", bound="Backbone")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
HUB = "hf:"
_ENCODER = "encoder."  # before the encoder's keys in a checkpoint of a run


class Recorded:
    """Keeps the arguments of its constructor."""

    _given: tuple[tuple[object, ...], dict[str, object]]

    def __new__(cls, *args: object, **keys: object) -> "Recorded":
        made = super().__new__(cls)
        made.__dict__["_given"] = (args, keys)  # past torch's modules, which are not set up yet
        return made

    def made_with(self, *, defaults: bool = True) -> Mapping[str, object]:
        """The constructor's arguments by name.

        Args:
            defaults: those too that were not given.
        """
        args, keys = self._given
        bound = inspect.signature(type(self)).bind(*args, **keys)
        if defaults:
            bound.apply_defaults()
        return dict(bound.arguments)


class Shown(Recorded):
    """One whose ``repr`` is the call that makes it, as far as arguments were given."""

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.made_with(defaults=False).items())
        return f"{type(self).__name__}({given})"


def config_of(network: "Backbone") -> dict[str, object]:
    """What ``config.json`` says of a network: its class and every key of its constructor."""
    name = type(network).__name__
    try:
        keys = json.loads(json.dumps(network.made_with()))
    except TypeError as error:
        raise UsageError(f"{name}: its keys cannot be written as JSON: {error}") from error
    return {
        "library_name": "vidssl",
        "vidssl_version": __version__,
        "class": name,
        "keys": keys,
        "num_features": network.num_features,
    }


def save_pretrained(network: "Backbone", folder: str | Path) -> None:
    """``Backbone.save_pretrained``."""
    config = json.dumps(config_of(network), indent=2) + "\n"
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    save_file(state, path / f".{WEIGHTS}.tmp", metadata={"format": "pt"})
    os.replace(path / f".{WEIGHTS}.tmp", path / WEIGHTS)
    (path / CONFIG).write_text(config, encoding="utf-8")


def load_pretrained(word: str | Path, class_of: Callable[[str], type[Made] | None]) -> Made:
    """The network that a folder holds, in eval mode.

    Args:
        word: the folder, or ``hf:NAME`` of one on the hub.
        class_of: the class of a name, None for one that is not wanted here.

    Raises:
        UsageError: if the folder holds no such network.
    """
    folder = fetched(word)
    config = _config(folder)
    name, keys = config.get("class"), config.get("keys")
    made_by = class_of(name) if isinstance(name, str) else None
    if made_by is None or not isinstance(keys, dict):
        raise UsageError(f"{folder / CONFIG}: of a network of class {name!r}, which is not one wanted here")
    try:
        network = made_by(**{key: _tuples(value) for key, value in keys.items()})
        network.load_state_dict(dict(_weights(folder / WEIGHTS)))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{folder}: {name} cannot be made of it: {' '.join(str(error).split())}") from error
    return network.eval()


def _config(folder: Path) -> Mapping[str, object]:
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{folder / CONFIG}: {error.strerror}: not the folder of a saved network") from error
    except ValueError as error:
        raise UsageError(f"{folder / CONFIG}: is no valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{folder / CONFIG}: expected a JSON object")
    return cast(Mapping[str, object], found)


def _weights(path: Path) -> Mapping[str, Tensor]:
    """The network's own tensors, of a checkpoint those of its encoder."""
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            if any(key.startswith(_ENCODER) for key in keys):
                return {k.removeprefix(_ENCODER): file.get_tensor(k) for k in keys if k.startswith(_ENCODER)}
            return {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: missing, damaged or cut short ({error})") from error


def _tuples(value: object) -> object:
    """JSON's lists as the tuples that constructors take."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def fetched(word: str | Path, into: Path | None = None) -> Path:
    """The folder that a word names; one on the hub (``hf:NAME``, ``hf:NAME@REVISION``) is fetched first.

    Args:
        into: where to; None for the hub's own cache.

    Raises:
        UsageError: if it cannot be fetched, the package for it is missing, or it is a model of transformers.
    """
    name = str(word)
    if not name.startswith(HUB):
        return Path(word)
    name = name.removeprefix(HUB)
    if Path(name).is_dir():
        return _unless_of_transformers(Path(name), name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name):
        raise UsageError(f"{word}: what is on the hub is named hf:OWNER/NAME, or hf:OWNER/NAME@REVISION")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise UsageError(f"{word}: install what fetches it: pip install 'vidssl[hub]'") from None
    repository, _, revision = name.partition("@")
    target = None if into is None else into / repository
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, local_dir=target))
    except (HfHubHTTPError, OSError) as error:
        raise UsageError(f"{word}: cannot be fetched: {' '.join(str(error).split())}") from error
    return _unless_of_transformers(folder, repository)


def _unless_of_transformers(folder: Path, name: str) -> Path:
    """The folder, unless its configuration is one of transformers, whose models have a name of their own."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return folder  # its reader says what is wrong
    if isinstance(config, dict) and "model_type" in config:
        raise UsageError(
            f"{HUB}{name}: is a model of transformers, not a run of vidssl: name it transformers:{name}"
        )
    return folder

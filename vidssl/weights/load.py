"""Loading weights into a network, with a report of what happened to every key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from vidssl.engine.checkpoint import FORMAT, read_checkpoint, read_tensors
from vidssl.engine.runfolder import RunFolder
from vidssl.errors import UsageError


@dataclass(frozen=True)
class LoadReport:
    """What loading did.

    Attributes:
        source: where the weights came from.
        loaded: keys that were taken over.
        new: keys of the network that the source lacks; they keep their fresh values.
        unused: keys of the source that the network lacks.
    """

    source: Path
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.source}: {len(self.loaded)} tensors loaded, {_some(self.new)} new, "
            f"{_some(self.unused)} not used"
        )


def _some(keys: Sequence[str], most: int = 6) -> str:
    if not keys:
        return "0"
    shown = ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")
    return f"{len(keys)} ({shown})"


def load_init(network: nn.Module, init: str) -> LoadReport:
    """Start a network from the encoder of an earlier run: ``backbone.init`` of a recipe.

    Args:
        init: a run folder (its newest checkpoint is taken) or a checkpoint file.

    Raises:
        UsageError: if it cannot be read, shares no key with the network, or a shared key has another shape.
    """
    path = Path(init)
    if path.is_dir():
        newest = RunFolder(path).newest_checkpoint()
        if newest is None:
            raise UsageError(
                f"backbone.init: {path}: no checkpoint in it; is it the folder of a training run?"
            )
        path = newest
    return load_state(network, read_checkpoint(path).encoder, path)


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file; of a checkpoint of this package, its encoder's.

    Raises:
        UsageError: if the file is missing or damaged.
    """
    metadata, tensors = read_tensors(path)
    return read_checkpoint(path).encoder if metadata.get("format") == FORMAT else tensors


def load_state(network: nn.Module, state: Mapping[str, Tensor], source: Path) -> LoadReport:
    """Take over every key that the network shares with ``state``.

    Raises:
        UsageError: if there is none, or a shared key has another shape.
    """
    own = network.state_dict()
    shared = [key for key in own if key in state]
    if not shared:
        raise UsageError(
            f"{source}: shares no key with {type(network).__name__} (it has e.g. {_some(list(state), 3)}; "
            f"the network {_some(list(own), 3)}): these are weights of another architecture"
        )
    _refuse_other_shapes(own, state, shared, source)
    network.load_state_dict({key: state[key] for key in shared}, strict=False)
    return LoadReport(
        source,
        loaded=tuple(shared),
        new=tuple(key for key in own if key not in state),
        unused=tuple(key for key in state if key not in own),
    )


def load_whole(network: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Take over exactly the network's own keys.

    Raises:
        UsageError: if the state is of another architecture: a key is missing, left over or of another shape.
    """
    report = load_state(network, state, source)
    if report.new or report.unused:
        raise UsageError(
            f"{source}: weights of another architecture than its recipe's {type(network).__name__}: "
            f"missing {_some(report.new)}, left over {_some(report.unused)}"
        )


def _refuse_other_shapes(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], shared: Sequence[str], source: Path
) -> None:
    differ = [
        f"{key} is {tuple(state[key].shape)}, the network's {tuple(own[key].shape)}"
        for key in shared
        if state[key].shape != own[key].shape
    ]
    if differ:
        raise UsageError(
            f"{source}: weights of another architecture: {'; '.join(differ[:3])}"
            + (f"; and {len(differ) - 3} more" if len(differ) > 3 else "")
        )

"""Loading weights into a network, with a report of what happened to every key."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path

import timm
import torchvision
from torch import Tensor, nn

from vidssl.engine.checkpoint import FORMAT, Checkpoint, read_checkpoint, read_tensors
from vidssl.engine.nonfinite import buffers_of, refuse_broken
from vidssl.engine.runfolder import RunFolder, no_run
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone
from vidssl.recipe import MIN_MATCHED
from vidssl.spec import parse
from vidssl.weights.foreign import read_foreign
from vidssl.weights.inflate import inflate_image_stage

NAMED = {"timm": timm.list_models, "torchvision": torchvision.models.list_models}


@dataclass(frozen=True)
class LoadReport:
    """What loading did.

    Attributes:
        source: where the weights came from.
        loaded: keys that were taken over.
        new: keys of the network that the source lacks; they keep their fresh values.
        unused: keys of the source that the network lacks.
        share: of all numbers in the network's weights and running statistics, those that were taken over.
        layout: whose layout the source had, empty for this package's own.
        reshaped: keys among ``loaded`` whose tensors were resized, inflated, copied or zeroed.
    """

    source: Path | str
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    share: float
    layout: str = ""
    reshaped: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A line for each fate, with every key; block and stage numbers are written as ``*``."""
        fates = {
            "loaded": self.loaded,
            "of them resized, inflated, copied or zeroed": self.reshaped,
            "new, with fresh values": self.new,
            "not used": self.unused,
        }
        head = f"{self.source}" + (f" ({self.layout})" if self.layout else "")
        lines = [f"  {fate}: {_grouped(keys)}" for fate, keys in fates.items() if keys]
        filled = f"{len(self.loaded)} tensors loaded, {_percent(self.share)} of the network's numbers"
        return "\n".join([f"{head}: {filled}", *lines])


def _grouped(keys: Sequence[str]) -> str:
    groups = Counter(re.sub(r"\.\d+(?=\.|$)", ".*", key) for key in keys)
    return f"{len(keys)} ({', '.join(f'{key} x{n}' if n > 1 else key for key, n in groups.items())})"


def _some(keys: Sequence[str], most: int = 6) -> str:
    if not keys:
        return "0"
    shown = ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")
    return f"{len(keys)} ({shown})"


def load_init(network: Backbone, init: str, *, min_matched: float = MIN_MATCHED) -> LoadReport:
    """Start a network from weights that there are: ``backbone.init`` of a recipe.

    Args:
        init: a run folder (its newest checkpoint is taken) or a checkpoint of this package, of which one
            that was trained on images alone is inflated first: its clip embedding and temporal biases come
            from its image ones; or ``timm:NAME``, ``torchvision:NAME`` or a file in a published layout.
            What has another shape is resized where the network knows how.
        min_matched: share of the network's numbers that must come from there, from 0 to 1, whether as they
            are or resized, inflated or copied: ``backbone.init_min_matched``.

    Raises:
        UsageError: if it cannot be read, shares no key or too little with the network, or a shared key has
            another shape.
    """
    checkpoint = _own_checkpoint(init)
    if checkpoint is not None:
        window = _window_of_image_stage(checkpoint)
        if window is None:
            return _load_own(network, checkpoint.encoder, checkpoint.path, min_matched)
        filled = inflate_image_stage(checkpoint.encoder, window)
        report = _load_own(network, filled, checkpoint.path, min_matched)
        inflated = (key for key in report.loaded if filled[key] is not checkpoint.encoder[key])
        return replace(report, layout="trained on images, inflated to clips", reshaped=tuple(inflated))
    state = read_foreign(init)
    found = network.translate(state)
    if found is None:
        return load_state(network, state, init, min_matched)
    report = load_state(network, found.state, init, min_matched)
    return replace(
        report, layout=found.layout, reshaped=found.reshaped, unused=(*report.unused, *found.dropped)
    )


def check_init(init: str) -> None:
    """Refuse an ``init`` that names no weights, without reading any.

    Raises:
        UsageError: with the nearest name there is.
    """
    library, colon, name = init.partition(":")
    if colon and library in NAMED and not Path(init).exists():
        known = NAMED[library]()
        if name not in known and ":" not in name and "." not in name:  # of a hub; with a tag of its weights
            close = difflib.get_close_matches(name, known, n=1)
            hint = f". Did you mean '{library}:{close[0]}'?" if close else ""
            raise UsageError(f"{init}: {library} has no such network{hint}")
        return
    path = Path(init.partition("#")[0])
    if path.is_dir() and RunFolder(path).newest_checkpoint() is None:
        raise UsageError(f"{path}: no checkpoint in it; is it the folder of a training run?")
    if not path.exists():
        raise no_run(init)


def _load_own(network: Backbone, state: Mapping[str, Tensor], path: Path, min_matched: float) -> LoadReport:
    """Take over weights of this package; where shapes differ, as the network itself can adapt them."""
    own = network.state_dict()
    same = all(state[key].shape == own[key].shape for key in own if key in state)
    found = None if same else network.translate(state)
    if found is None:
        return load_state(network, state, path, min_matched)
    report = load_state(network, found.state, path, min_matched)
    return replace(report, layout=found.layout, reshaped=found.reshaped)


def _own_checkpoint(init: str) -> Checkpoint | None:
    """The checkpoint that ``init`` names, None if it names weights of another project."""
    path = Path(init)
    if path.is_dir():
        newest = RunFolder(path).newest_checkpoint()
        if newest is None:
            raise UsageError(
                f"backbone.init: {path}: no checkpoint in it; is it the folder of a training run?"
            )
        return read_checkpoint(newest)
    if path.suffix == ".safetensors" and read_tensors(path)[0].get("format") == FORMAT:
        return read_checkpoint(path)
    return None


def _window_of_image_stage(checkpoint: Checkpoint) -> tuple[int, int, int] | None:
    """The attention window of a network that was trained on images alone, None of any other.

    What such a network has for clips was never trained, and is made from what it has for images. One
    without windows gets (1, 1, 1), which nothing reads.
    """
    if not checkpoint.recipe:
        return None  # trained in Python, where nobody noted on what: taken as it is
    sections = parse(checkpoint.recipe, lambda line: f"{checkpoint.path}: its recipe, line {line}").mapping()
    if "video" in sections["data"].mapping():
        return None
    window = sections["backbone"].mapping().get("window")
    if window is None or not isinstance(window.value, tuple):
        return 1, 1, 1
    depth, height, width = (int(str(item.value)) for item in window.value)
    return depth, height, width


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file; of a checkpoint of this package, its encoder's.

    Raises:
        UsageError: if the file is missing or damaged.
    """
    metadata, tensors = read_tensors(path)
    return read_checkpoint(path).encoder if metadata.get("format") == FORMAT else tensors


def load_state(
    network: nn.Module, state: Mapping[str, Tensor], source: Path | str, min_matched: float = 0.0
) -> LoadReport:
    """Take over every key that the network shares with ``state``.

    Args:
        min_matched: as for ``load_init``.

    Raises:
        UsageError: if there is none, they are too few, or one has another shape or is not finite; nothing is
            taken over then.
    """
    own = network.state_dict()
    shared = [key for key in own if key in state]
    if not shared:
        raise UsageError(
            f"{source}: shares no key with {type(network).__name__} (it has e.g. {_some(list(state), 3)}; "
            f"the network {_some(list(own), 3)}): these are weights of another architecture"
        )
    _refuse_other_shapes(own, state, shared, source)
    new = tuple(key for key in own if key not in state)
    share = _numbers(own, shared) / max(1, _numbers(own, own))
    if share < min_matched:
        raise UsageError(
            f"{source}: fills {_percent(share)} of the numbers of {type(network).__name__}, and less than "
            f"{_percent(min_matched)} is an error. It lacks {_some(new)}. If these are to start from fresh "
            f"values, say so: backbone.init_min_matched={floor(100 * share) / 100}"
        )
    taken = {key: state[key] for key in shared}
    refuse_broken(source, taken, buffers_of(network))
    network.load_state_dict(taken, strict=False)
    return LoadReport(
        source,
        loaded=tuple(shared),
        new=new,
        unused=tuple(key for key in state if key not in own),
        share=share,
    )


def _numbers(own: Mapping[str, Tensor], keys: Iterable[str]) -> int:
    """How many numbers the weights and running statistics of some keys hold; counters are none."""
    return sum(own[key].numel() for key in keys if own[key].is_floating_point())


def _percent(share: float) -> str:
    return f"{floor(1000 * share) / 10:g} %"  # 99.97 % is not all


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
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], shared: Sequence[str], source: Path | str
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

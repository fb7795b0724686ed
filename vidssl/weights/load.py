"""Loading weights into a network, with a report of what happened to every key."""

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from vidssl.config import recipe, schema, strict_yaml
from vidssl.engine import checkpoint as checkpoints, runfolder
from vidssl.errors import UsageError, counted
from vidssl.interfaces import Backbone, Objective, ResizesWindows, Translated
from vidssl.interfaces.grids import GridSize
from vidssl.weights import external, swin


@dataclass(frozen=True)
class LoadReport:
    """The fate of every key in loading.

    Attributes:
        source: where the weights came from.
        loaded: keys that were taken over.
        new: keys of the network that the source lacks; they keep their fresh values.
        unused: keys of the source that the network lacks.
        fraction: of all numbers in the network's weights and running statistics, those that were taken over.
        layout: whose layout the source had, empty for this package's own.
        reshaped: keys among ``loaded`` whose tensors were resized, inflated, copied or zeroed.
        notes: which part of the source was taken and how to take another, and what its tensors leave open.
    """

    source: Path | str
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    fraction: float
    layout: str = ""
    reshaped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
        loaded = counted(len(self.loaded), "tensor")
        filled = f"{loaded} loaded, {_percent(self.fraction)} of the network's numbers"
        return "\n".join([f"{head}: {filled}", *(f"  {note}" for note in self.notes), *lines])


def _grouped(keys: Sequence[str]) -> str:
    groups = Counter(re.sub(r"\.\d+(?=\.|$)", ".*", key) for key in keys)
    return f"{len(keys)} ({', '.join(f'{key} x{n}' if n > 1 else key for key, n in groups.items())})"


def _some(keys: Sequence[str], most: int = 6) -> str:
    if not keys:
        return "0"
    shown = ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")
    return f"{len(keys)} ({shown})"


def load_init(
    network: Backbone,
    init: str,
    *,
    min_matched: float = recipe.MIN_MATCHED,
    window: GridSize | None = None,
    given: Collection[str] | None = None,
) -> LoadReport:
    """Start a network from existing weights: ``backbone.init`` of a recipe.

    Args:
        init: a run folder (its newest checkpoint is taken) or a checkpoint of this package, of which one
            that was trained on images alone is inflated first: its clip embedding and temporal biases come
            from its image ones; or ``timm:NAME``, ``torchvision:NAME`` or a file in a published layout.
            What has another shape is resized where the network knows how.
        min_matched: fraction of the network's numbers that must come from there, from 0 to 1, whether as they
            are or resized, inflated or copied: ``backbone.init_min_matched``.
        window: attention window that the weights were trained with, where the weights do not hold it:
            ``backbone.init_window``.
        given: keys of the network that the user has stated; None where that is not known. Stated pixel
            statistics may differ from those of the weights; what the weights leave open must be stated.

    Raises:
        UsageError: if it cannot be read, shares no key or too little with the network, a shared key has
            another shape, or it was trained with other heads or pixel statistics.
    """
    if window is not None and not isinstance(network, ResizesWindows):
        raise UsageError(f"init_window: a {type(network).__name__} has no windows; leave it out")
    checkpoint = own_checkpoint(init)
    if checkpoint is not None:
        report = _load_checkpoint(network, checkpoint, min_matched, window, given)
        network.started_from = init
        return report
    stated = external.stated_by_library(init)
    notes = () if stated is None else external.check_stated(network, stated, init, given)
    taken = external.read_external(init)
    found = _translated(network, taken.state, init, window)
    layout = "" if found is None else found.layout
    if stated is None:
        known = external.stated_by_layout(layout, network.embed_dim)
        notes = (
            external.check_unstated(network, layout, init, given)
            if known is None
            else external.check_stated(network, known, init, given)
        )
    report = load_state(network, taken.state if found is None else found.state, init, min_matched)
    network.started_from = init
    report = replace(report, layout=layout, notes=(*taken.notes, *notes))
    if found is None:
        return report
    return replace(report, reshaped=found.reshaped, unused=(*report.unused, *found.dropped))


def load_rest(objective: Objective, init: str) -> LoadReport:
    """Start an objective's parts besides its encoder from existing weights: ``objective.init`` of a recipe.

    Args:
        init: a run folder or checkpoint of this package, of the same objective; or a file in a layout that
            the objective knows, such as ``FILE#predictor``.

    Raises:
        UsageError: if it cannot be read, shares no key with the objective, or a shared key has another shape.
    """
    checkpoint = own_checkpoint(init)
    if checkpoint is not None:
        return load_state(objective, checkpoint.objective, checkpoint.path)
    taken = external.read_external(init)
    found = objective.translate(taken.state)
    if found is None:
        return load_state(objective, taken.state, init)
    report = load_state(objective, found.state, init)
    return replace(
        report, layout=found.layout, reshaped=found.reshaped, unused=found.dropped, notes=taken.notes
    )


def check_init(init: str) -> None:
    """Refuse an ``init`` that names no weights, without reading any.

    Raises:
        UsageError: with the nearest name there is.
    """
    library, colon, name = init.partition(":")
    if colon and library in ("timm", "torchvision") and not Path(init).exists():
        known = _networks_of(library)
        if name not in known and ":" not in name and "." not in name:  # of a hub; with a tag of its weights
            close = difflib.get_close_matches(name, known, n=1)
            hint = f". Did you mean '{library}:{close[0]}'?" if close else ""
            raise UsageError(f"{init}: {library} has no such network{hint}")
        return
    path = runfolder.named_path(init.partition("#")[0])
    if path.is_dir() and runfolder.RunFolder(path).newest_checkpoint() is None:
        raise UsageError(f"{path}: no checkpoint in it; is it the folder of a training run?")
    if not path.exists():
        raise runfolder.no_run(init)


def _networks_of(library: str) -> list[str]:
    """The names that a library knows; imported here, since importing takes a second."""
    if library == "timm":
        import timm

        return timm.list_models()
    import torchvision

    return torchvision.models.list_models()


def _translated(
    network: Backbone, state: Mapping[str, Tensor], source: Path | str, window: GridSize | None
) -> Translated | None:
    """The network's own reading of a state; what it refuses names the source."""
    try:
        if isinstance(network, ResizesWindows):
            return network.translate_windows(state, window)
        return network.translate(state)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error


def _load_checkpoint(
    network: Backbone,
    checkpoint: checkpoints.Checkpoint,
    min_matched: float,
    window: GridSize | None,
    given: Collection[str] | None,
) -> LoadReport:
    """Take over weights of this package; what its recipe states is held against the network."""
    sections = _sections(checkpoint)
    window = window or _window(sections["backbone"])
    notes = external.check_stated(network, _stated(sections["backbone"]), str(checkpoint.path), given)
    # one trained in Python has no recipe, and it is not known on what: it is taken as it is
    if checkpoint.recipe and "video" not in sections["data"]:
        # what such a network has for clips was never trained, and is made from what it has for images
        filled = swin.inflate_image_stage(
            checkpoint.encoder, window or (1, 1, 1)
        )  # unread where there is no window
        report = _load_own(network, filled, checkpoint.path, min_matched, window)
        inflated = (key for key in report.loaded if filled[key] is not checkpoint.encoder[key])
        layout = "trained on images, inflated to clips"
        return replace(report, layout=layout, reshaped=tuple(inflated), notes=notes)
    report = _load_own(network, checkpoint.encoder, checkpoint.path, min_matched, window)
    return replace(report, notes=notes)


def _load_own(
    network: Backbone, state: Mapping[str, Tensor], path: Path, min_matched: float, window: GridSize | None
) -> LoadReport:
    """Take over weights of this package; where shapes or windows differ, as the network can adapt them."""
    own = network.state_dict()
    same = all(state[key].shape == own[key].shape for key in own if key in state)
    if same and isinstance(network, ResizesWindows) and window is not None:
        same = network.window == window  # tables of other windows may be as long
    found = None if same else _translated(network, state, path, window)
    if found is None:
        return load_state(network, state, path, min_matched)
    report = load_state(network, found.state, path, min_matched)
    return replace(report, layout=found.layout, reshaped=found.reshaped)


def own_checkpoint(init: str) -> checkpoints.Checkpoint | None:
    """The checkpoint that ``init`` names, None if it names weights of another project.

    Raises:
        UsageError: if it is not there or damaged.
    """
    path = runfolder.named_path(init)
    if path.is_dir():
        newest = runfolder.RunFolder(path).newest_checkpoint()
        if newest is None:
            raise UsageError(
                f"backbone.init: {path}: no checkpoint in it; is it the folder of a training run?"
            )
        return checkpoints.read_checkpoint(newest)
    if (
        path.suffix == ".safetensors"
        and checkpoints.read_tensors(path)[0].get("format") == checkpoints.FORMAT
    ):
        return checkpoints.read_checkpoint(path)
    return None


def _sections(checkpoint: checkpoints.Checkpoint) -> dict[str, Mapping[str, strict_yaml.Node]]:
    """The sections ``data`` and ``backbone`` of a checkpoint's recipe; empty where it has none."""
    tree = strict_yaml.parse(checkpoint.recipe, lambda line: f"{checkpoint.path}: its recipe, line {line}")
    entries = tree.mapping() if checkpoint.recipe else {}
    return {name: entries[name].mapping() if name in entries else {} for name in ("data", "backbone")}


def _window(backbone: Mapping[str, strict_yaml.Node]) -> GridSize | None:
    """The attention window that a section names, if it names one."""
    if "window" not in backbone:
        return None
    window = cast(GridSize, schema.convert(backbone["window"], tuple[int, int, int]))
    if min(window) < 1 or max(window) > 1024:
        raise backbone["window"].error(f"no window is of {window} cells")
    return window


def _stated(backbone: Mapping[str, strict_yaml.Node]) -> external.Stated:
    """Pixel statistics and heads that a section of a recipe names."""
    colours = tuple[float, float, float]
    mean, std = (
        cast(colours, schema.convert(backbone[name], colours)) if name in backbone else None
        for name in ("mean", "std")
    )
    heads = backbone["num_heads"].value if "num_heads" in backbone else None
    return external.Stated(mean, std, (heads,) if type(heads) is int else ())


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file; of a checkpoint of this package, its encoder's.

    Raises:
        UsageError: if the file is missing or damaged.
    """
    metadata, tensors = checkpoints.read_tensors(path)
    return (
        checkpoints.read_checkpoint(path).encoder if metadata.get("format") == checkpoints.FORMAT else tensors
    )


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
            f"the network {_some(list(own), 3)}): these are weights of another architecture, or stand below "
            "a name of their own (FILE#NAME takes what is below it)"
        )
    _refuse_other_shapes(own, state, shared, source)
    new = tuple(key for key in own if key not in state)
    fraction = _numbers(own, shared) / max(1, _numbers(own, own))
    if fraction < min_matched:
        accepted = floor(100 * fraction) / 100
        way_out = (
            "These are weights of another architecture"
            if not accepted
            else f"If these are to start from fresh values, state it: backbone.init_min_matched={accepted}"
        )
        raise UsageError(
            f"{source}: fills {_percent(fraction)} of the numbers of {type(network).__name__}, and less than "
            f"{_percent(min_matched)} is an error. It lacks {_some(new)}. {way_out}"
        )
    taken = {key: state[key] for key in shared}
    checkpoints.refuse_broken(source, taken, checkpoints.buffers_of(network))
    network.load_state_dict(taken, strict=False)
    return LoadReport(
        source,
        loaded=tuple(shared),
        new=new,
        unused=tuple(key for key in state if key not in own),
        fraction=fraction,
    )


def _numbers(own: Mapping[str, Tensor], keys: Iterable[str]) -> int:
    """How many numbers the weights and running statistics of some keys hold; counters are none."""
    return sum(own[key].numel() for key in keys if own[key].is_floating_point())


def _percent(fraction: float) -> str:
    return f"{floor(1000 * fraction) / 10:g} %"  # 99.97 % is not all


def load_whole(network: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Take over exactly the network's own keys.

    Raises:
        UsageError: if the state is of another architecture: a key is missing, left over or of another shape.
    """
    check_whole(network, state, source)
    load_state(network, state, source)


def check_whole(network: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Refuse a state that is not exactly of a network, which may have no memory yet; as ``load_whole``."""
    own = network.state_dict()
    _refuse_other_shapes(own, state, [key for key in own if key in state], source)
    new, unused = [key for key in own if key not in state], [key for key in state if key not in own]
    if new or unused:
        raise UsageError(
            f"{source}: weights of another architecture than its recipe's {type(network).__name__}: "
            f"missing {_some(new)}, left over {_some(unused)}"
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

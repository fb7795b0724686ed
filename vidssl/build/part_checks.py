"""Parts run once at small size and held to ``vidssl.interfaces``; abilities of backbones, measured likewise.

Each check raises a ``ValueError`` of one line: the part and its file, what it returned, what was expected.
"""

import inspect
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args, get_origin

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from vidssl.build.registry import BACKBONE, KINDS, summary
from vidssl.config import schema, strict_yaml
from vidssl.engine import checkpoint, speed
from vidssl.errors import UsageError, counted
from vidssl.interfaces import (
    Backbone,
    Batch,
    EncodesVisible,
    Evaluator,
    Features,
    LabelledFeatures,
    LabelledPatches,
    Masker,
    Objective,
    PatchEvaluator,
    PatchTokens,
    Progress,
    Reconstruction,
    Tokenizer,
    TrainableTokenizer,
    VisibleFeatures,
)
from vidssl.interfaces.grids import GridSize

StreamShapes = Mapping[str, Mapping[str, tuple[GridSize, ...]]]  # stream -> view -> (T, H, W) of each slot
Given = TypeVar("Given")

_ROWS = 2  # clips of a trial batch
_FAULTS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip


def named(part: object) -> str:
    """A part's class and, where it is not of this package, its file: ``my.py:Mine``."""
    kind = type(part)
    if kind.__module__.split(".")[0] == "vidssl":
        return kind.__name__
    return f"{Path(inspect.getfile(kind)).name}:{kind.__name__}"


def shown(value: object) -> str:
    """A value that a part returned, in a few words: ``torch.float32 [2, 8]``, or the name of its type."""
    return f"{value.dtype} {[*value.shape]}" if isinstance(value, Tensor) else type(value).__name__


def _expect(fine: bool, part: object, problem: str) -> None:
    if not fine:
        raise ValueError(f"{named(part)}: {problem}")


def _tried(part: object, doing: str, call: Callable[[], Given]) -> Given:
    """``attempted``; what the interface itself refuses gets the part's file."""
    try:
        return attempted(named(part), doing, call)
    except UsageError as error:
        problem = str(error).removeprefix(f"{type(part).__name__}: ")
        raise ValueError(f"{named(part)}: {problem}") from error


def attempted(who: str, doing: str, call: Callable[[], Given]) -> Given:
    """The result of a call of a user's code.

    Raises:
        ValueError: with its error, and the line of it, if it fails; a ``UsageError`` as it is.
    """
    try:
        return call()
    except UsageError:
        raise
    except _FAULTS as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = [frame for frame in frames if "site-packages" not in frame.filename][-1]  # not torch's own
        where = f"{Path(last.filename).name}:{last.lineno}"
        message = str(error).strip().split("\n")[0] or "no message"
        raise ValueError(f"{who}: {doing} failed: {type(error).__name__}: {message} ({where})") from error


def _strides(part: Backbone | Tokenizer) -> None:
    strides = getattr(part, "strides", None)
    _expect(
        isinstance(strides, tuple) and len(strides) == 3 and all(type(n) is int and n > 0 for n in strides),
        part,
        f"strides is {strides}, expected three whole numbers: the frames, rows and columns of a cell",
    )


# backbones


def try_backbone(net: Backbone, size: GridSize) -> None:
    """A backbone's attributes, and features of clips (or ids) of this size, in eval mode."""
    net.eval()
    dim = getattr(net, "embed_dim", None)
    _expect(
        type(dim) is int and dim > 0,
        net,
        f"embed_dim is {dim}, expected the width D of Features.pooled(): set self.embed_dim in __init__",
    )
    _strides(net)
    generator = torch.Generator().manual_seed(0)
    if net.input_kind == "tokens":
        _expect(bool(net.vocab_size), net, "reads ids, and vocab_size is not set: how many there may be")
        x, other = torch.randint(0, net.vocab_size or 1, (2, _ROWS, *size), generator=generator)
    else:
        x, other = torch.rand(2, _ROWS, 3, *size, generator=generator)
    given = f"forward of {[*x.shape]}"
    grid = net.grid(*size)
    features = _tried(net, given, lambda: net(x))
    _check_features(net, features, grid)
    if not net.takes_mask or grid == (1, 1, 1):
        return
    mask = (torch.arange(grid[0] * grid[1] * grid[2]) % 2 == 0).view(grid).expand(_ROWS, *grid)
    hidden = _tried(net, f"{given} with a mask {[*mask.shape]}", lambda: net(x, mask))
    _check_features(net, hidden, grid)
    if isinstance(net, EncodesVisible) and net.encodes_visible:
        keep = torch.arange(0, grid[0] * grid[1] * grid[2], 2).expand(_ROWS, -1)
        seen = _tried(net, f"forward_visible of {given}", lambda: net.forward_visible(x, keep))
        _expect(
            isinstance(seen, VisibleFeatures) and seen.patches.shape == (*keep.shape, net.embed_dim),
            net,
            f"forward_visible returned {shown(getattr(seen, 'patches', seen))}, expected "
            f"VisibleFeatures(patches={[*keep.shape, net.embed_dim]})",
        )
    # one whose fresh output is constant shows nothing
    if not torch.equal(features.patches, _tried(net, given, lambda: net(other)).patches):
        _expect(
            not torch.equal(features.patches, hidden.patches),
            net,
            "with half of its cells hidden it returned the same features as without a mask, expected others: "
            "hide what mask marks, or set takes_mask = False",
        )


def _check_features(net: Backbone, features: object, grid: GridSize) -> None:
    dim = net.embed_dim
    wanted = f"Features(patches=[{_ROWS}, t, h, w, {dim}])"
    _expect(isinstance(features, Features), net, f"forward returned {shown(features)}, expected {wanted}")
    assert isinstance(features, Features)
    patches = features.patches
    at_grid = () if features.stages else grid  # of several stages, the last is coarser than the grid
    good = isinstance(patches, Tensor) and patches.dim() == 5 and patches.is_floating_point()
    good = good and len(patches) == _ROWS and patches.shape[-1] == dim
    wanted = ", ".join(map(str, (_ROWS, *(at_grid or ("t", "h", "w")), dim)))
    _expect(
        good and patches.shape[1 : 1 + len(at_grid)] == at_grid,
        net,
        f"patches are {shown(patches)}, expected [{wanted}]: cells of the grid, then embed_dim channels",
    )
    cls = features.cls
    _expect(
        (cls is not None) == net.gives_cls,
        net,
        f"gives_cls is {net.gives_cls}, and Features.cls is {shown(cls)}: set it to whether cls is there",
    )
    _expect(
        cls is None or (isinstance(cls, Tensor) and cls.shape == (_ROWS, dim)),
        net,
        f"cls is {shown(cls)}, expected [{_ROWS}, {dim}]",
    )
    widths = tuple(stage.shape[-1] for stage in features.stages)
    _expect(
        widths == tuple(net.stage_dims) and len(widths) == len(net.stage_strides),
        net,
        f"stages are {widths} wide, expected those of stage_dims {net.stage_dims} and as many stage_strides",
    )
    _expect(bool(patches.isfinite().all()), net, "patches are not finite (NaN or inf), from fresh weights")


# tokenizers and maskers


def try_tokenizer(tokenizer: Tokenizer, size: GridSize) -> None:
    """A tokenizer's attributes, and ids of clips of this size; what it reconstructs, if it can be trained."""
    tokenizer.eval()
    vocab: object = getattr(tokenizer, "vocab_size", None)
    _expect(
        isinstance(vocab, int) and vocab > 0,
        tokenizer,
        f"vocab_size is {vocab}, expected how many ids there are",
    )
    _strides(tokenizer)
    clip = torch.rand(_ROWS, 3, *size, generator=torch.Generator().manual_seed(0))
    grid = tokenizer.grid(*size)
    ids = _tried(tokenizer, f"encode of {[*clip.shape]}", lambda: tokenizer.encode(clip))
    _expect(
        isinstance(ids, Tensor) and ids.dtype == torch.int64 and ids.shape == (_ROWS, *grid),
        tokenizer,
        f"encode returned {shown(ids)}, expected torch.int64 {[_ROWS, *grid]}",
    )
    low, high = int(ids.min()), int(ids.max())
    _expect(
        low >= 0 and high < tokenizer.vocab_size,
        tokenizer,
        f"encode returned ids from {low} to {high}, expected 0 to vocab_size - 1, {tokenizer.vocab_size - 1}",
    )
    if isinstance(tokenizer, TrainableTokenizer):
        made = _tried(tokenizer, f"reconstruct of {[*clip.shape]}", lambda: tokenizer.reconstruct(clip))
        _expect(
            isinstance(made, Reconstruction)
            and made.pixels.shape == clip.shape
            and made.regulariser.dim() == 0,
            tokenizer,
            f"reconstruct returned {shown(made)}, expected Reconstruction({[*clip.shape]}, ids, scalar)",
        )


def try_masker(masker: Masker, grid: GridSize, rows: int = 8) -> None:
    """Masks on a grid: bool [rows, t, h, w], in each row some hidden and never all.

    Raises:
        ValueError: as it does, where it cannot draw on such a grid.
    """
    mask = masker(rows, grid, torch.Generator().manual_seed(0))
    _expect(
        isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == (rows, *grid),
        masker,
        f"returned {shown(mask)}, expected torch.bool {[rows, *grid]}, True where hidden",
    )
    counts = mask.flatten(1).sum(1)
    _expect(
        not masker.equal_counts or bool((counts == counts[0]).all()),
        masker,
        f"equal_counts is True, and it hid {int(counts.min())} to {int(counts.max())} cells of {rows} clips",
    )
    cells = mask[0].numel()
    for word, count in (("none", 0), ("all", cells)):
        wrong = int((counts == count).sum())
        _expect(
            not wrong,
            masker,
            f"hides {word} of the {cells} cells in {wrong} of {rows} masks, expected some and never all",
        )
    if masker.cuts_splits:
        given = masker.splits(rows, grid, torch.Generator().manual_seed(0))
        sizes = [(split.seen.shape, split.predicted.shape) for split in given]
        good = all(one[0] == other[0] == rows and one[1] and other[1] for one, other in sizes)
        _expect(
            good and len(given) == masker.num_splits,
            masker,
            f"splits returned {sizes}, expected num_splits ({masker.num_splits}) pairs of [{rows}, n], "
            f"[{rows}, m]",
        )


# objectives


def check_declared(objective: Objective) -> None:
    """Declarations of an objective before it is run: the views that it reads, and an encoder of its own."""
    views = getattr(objective, "needs_views", None)
    _expect(
        isinstance(views, Mapping) and bool(views) and all(type(count) is int for count in views.values()),
        objective,
        f"needs_views is {views}, expected the views that forward reads, e.g. {{'clip': 1}}",
    )
    for name, encoder in (("encoder", objective.encoder()), ("trained_encoder", objective.trained_encoder())):
        _expect(
            isinstance(encoder, Backbone | Tokenizer),
            objective,
            f"{name}() returned {shown(encoder)}, expected the Backbone, or Tokenizer, that is trained",
        )
        try:
            checkpoint.prefix_of(encoder, objective)
        except ValueError:
            raise ValueError(
                f"{named(objective)}: {name}() returned a {named(encoder)} that is not one of its "
                "sub-modules, so that it would not be trained and saved: keep the part that was given, "
                "no copy, as an attribute, and return it"
            ) from None


class _AnyLabel(dict[str, Tensor]):
    """Class 0 under each label that is asked for: which there are is known when the data are opened."""

    def __init__(self, rows: int) -> None:
        super().__init__({"class": torch.zeros(rows, dtype=torch.int64)})

    def __missing__(self, name: str) -> Tensor:
        return self["class"]


def try_objective(objective: Objective, shapes: StreamShapes, *, batch_size: int) -> None:
    """A step on random clips: output, gradient of its encoder, hook, and, in eval mode, its description.

    Args:
        shapes: of the views of each stream.
        batch_size: of the recipe, tried where a batch of two is refused.
    """
    objective.train()
    progress, generator = Progress(0, 10), torch.Generator().manual_seed(0)
    doing = "forward of clips " + ", ".join(
        f"'{view}' {[_ROWS, 3, *slots[0]]}"
        for views in shapes.values()
        for view, slots in views.items()
        if slots
    )
    try:
        output = objective(_batch(shapes, _ROWS), progress, generator)
    except _FAULTS:
        output = _tried(
            objective, doing, lambda: objective(_batch(shapes, max(_ROWS, batch_size)), progress, generator)
        )
    encoder = objective.trained_encoder()
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    _expect(output.loss.requires_grad, objective, "the loss has no gradient, expected one of its parameters")
    _tried(objective, "backward", lambda: output.loss.backward())
    _expect(
        not trained or any(parameter.grad is not None for parameter in trained),
        objective,
        f"the gradient of the loss does not reach its encoder {named(encoder)}: is the loss computed with "
        "a copy, or of detached features?",
    )
    _tried(objective, "after_step", lambda: objective.after_step(progress, generator))


def _batch(shapes: StreamShapes, rows: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    views = {
        view: tuple(torch.rand(rows, 3, *size, generator=generator) for size in slots)
        for given in shapes.values()
        for view, slots in given.items()
    }
    return Batch(
        views, {name: torch.arange(rows) for name in shapes}, {name: _AnyLabel(rows) for name in shapes}
    )


# evaluators


def try_evaluator(evaluator: Evaluator) -> None:
    """Scores of 16 random vectors after learning from 512 of ten classes."""
    from vidssl.evaluators.statistics import check_scores  # with scipy, which no recipe needs

    generator = torch.Generator().manual_seed(0)
    vectors, test = torch.randn(528, 256, generator=generator).split((512, 16))
    labels = torch.arange(512) % 10
    if isinstance(evaluator, PatchEvaluator):
        learn = LabelledPatches(_tokens(vectors), labels, 10)
        found = {
            "": _tried(
                evaluator, "patch_scores", lambda: evaluator.patch_scores(learn, _tokens(test), generator)
            )
        }
    else:
        given = LabelledFeatures(vectors, labels, 10)
        found = dict(
            _tried(evaluator, "scoring", lambda: evaluator.named_scores(given, test, generator)).items()
        )
    for scores in found.values():
        check_scores(scores, 16, 10, named(evaluator))


def _tokens(vectors: Tensor) -> PatchTokens:
    return PatchTokens((vectors.unflatten(1, (4, -1)),), torch.arange(len(vectors))[:, None])


# keys without a default, as the paper has them (VIMPAC's clips of ids)
_REQUIRED: Mapping[str, Mapping[str, object]] = {
    "factorized": {"vocab_size": 8192, "num_frames": 5, "height": 16, "width": 16}
}
_TIMM = ("resnet50", "convnext_tiny", "vit_small_patch16_224", "swin_tiny_patch4_window7_224")

_CLIPS: tuple[GridSize, ...] = ((16, 224, 224), (32, 224, 224), (16, 256, 256), (5, 16, 16))
_MOST_FRAMES, _LARGEST_SIDE = 64, 256  # that are tried


def network_table() -> Table:
    """Parameters and abilities of every network that a backbone's ``name`` or ``variant`` can ask for.

    A backbone with neither stands there with its defaults.
    """
    table = Table(title="networks, by name or variant", title_justify="left", caption_justify="left")
    table.add_column("type, network", overflow="fold")
    for head in ("million", "width"):
        table.add_column(head, justify="right", no_wrap=True)
    for head in ("has", "frames", "side"):
        table.add_column(head, min_width=len("multiples"))  # with it all fits into 80 columns
    import timm  # here: importing takes a second

    last = ""
    for kind, keys in _networks():
        with speed.on_meta():
            made = BACKBONE.table[kind](**_REQUIRED.get(kind, {}), **keys)
        if kind != last:
            table.add_section()
            table.add_row(Text(kind, style="bold"))
        shown = ", ".join(map(str, keys.values())) or "(defaults)"
        table.add_row(Text(shown), *_abilities(made))
        last = kind
    table.caption = (
        "Millions of parameters, width of the features, what a network takes and gives, frames of a clip (1 "
        "is an image), height or width in pixels; where it reads ids, those are counted. "
        f"timm has {counted(len(timm.list_models()), 'network')}, of which some stand here: "
        "timm.list_models()."
    )
    return table


def _networks() -> Iterator[tuple[str, dict[str, object]]]:
    """Type and keys of each network; none of those that need keys nobody can guess."""
    for kind, constructor in BACKBONE.table.items():
        keys = schema.keys_of(constructor)
        choice = next((key for key in ("name", "variant") if key in keys), None)
        needed = {key for key, value in keys.items() if value.required} - {choice, *_REQUIRED.get(kind, {})}
        if needed:
            continue
        if choice is None:
            yield kind, {}
            continue
        for value in _choices(keys[choice].wanted) or (_TIMM if kind == "timm" else ()):
            yield kind, {choice: value}


def _choices(wanted: object) -> tuple[str, ...]:
    """Texts that a key's type allows, ``Literal["a", "b"] | None``; none where any text is."""
    return tuple(
        choice
        for member in (wanted, *get_args(wanted))
        for choice in get_args(member)
        if isinstance(choice, str)
    )


def _abilities(made: Backbone) -> tuple[str, ...]:
    count = sum(parameter.numel() for parameter in made.parameters())
    stages = len(made.stage_dims)
    abilities = (
        "reads ids" if made.input_kind == "tokens" else "",
        "mask" if made.takes_mask else "",
        "visible cells alone" if isinstance(made, EncodesVisible) and made.encodes_visible else "",
        "class token" if made.gives_cls else "",
        f"{stages} stages" if stages else "",
    )
    shown = ", ".join(ability for ability in abilities if ability) or "-"
    return f"{count / 1e6:.1f}", str(made.embed_dim), shown, *taken_sizes(made)


def taken_sizes(made: Backbone) -> tuple[str, str]:
    """Which numbers of frames and which sides of a square a backbone takes, in words."""

    def takes(*size: int) -> bool:
        try:
            made.grid(*size)
        except ValueError:
            return False
        return True

    start = next((clip for clip in _CLIPS if takes(*clip)), None)
    if start is None:
        return "?", "?"
    frames, side, _ = start
    return (
        _in_words(lambda count: takes(count, side, side), _MOST_FRAMES),
        _in_words(lambda length: takes(frames, length, length), _LARGEST_SIDE),
    )


def _in_words(takes: Callable[[int], bool], largest: int) -> str:
    """Which numbers up to ``largest`` are taken."""
    found = [number for number in range(1, largest + 1) if takes(number)]
    if len(found) == 1:
        return f"{found[0]} only"
    image, several = found[0] == 1, [number for number in found if number > 1]
    low, step = several[0], math.gcd(*several)
    if several != list(range(low, largest + 1, step)):
        return _listed(found)
    if step > 1:
        words = f"multiples of {step}" + (f" from {low}" if low > step else "")
    elif image and low == 2:
        return "any"
    else:
        words = f"{low} or more"
    return f"1 or {words}" if image else words


def _listed(found: Sequence[int]) -> str:
    shown = ", ".join(map(str, found[:8]))
    return f"{shown}, ..." if len(found) > 8 else shown


def component_table(kind: str) -> Table:
    """Name, sentence and keys of every component of a kind (``backbones``, ``maskers``, ...).

    A key stands with its default, or with the type that must be given.
    """
    table = Table(title=kind, title_justify="left", show_lines=True)
    table.add_column("type", style="bold", no_wrap=True)
    table.add_column("what it is", ratio=1)
    table.add_column("keys", ratio=1)
    for name, constructor in KINDS[kind].table.items():
        keys = "\n".join(_key_line(key, value) for key, value in schema.keys_of(constructor).items())
        table.add_row(*map(Text, (name, summary(constructor), keys)))
    return table


def _key_line(name: str, key: schema.Key) -> str:
    if key.required:
        return f"{name} ({schema.describe(key.wanted)})"
    default = f"{name}: {strict_yaml.dump_flow(key.default)}"
    # a default that shows its own type needs no words for it
    tells_little = key.default is None or get_origin(key.wanted) is Literal
    return f"{default} ({schema.describe(key.wanted)})" if tells_little else default

"""Evaluation protocols: how a model is measured. Errors as those of recipes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, get_args

from vidssl.config import schema
from vidssl.config.few_labels import FewLabels
from vidssl.config.files import read
from vidssl.config.recipe import Recipe, overridden
from vidssl.config.strict_yaml import Node, moved

Layers = Literal["last", "all", "patches"]
ViewAverage = Literal["scores", "probabilities"]
Average = Literal["features", ViewAverage]
# of a test clip's frames, or what is done to them: kind and strength
FrameOrder = Literal[
    "normal", "single", "shuffled", "reversed",
    "noise-1", "noise-2", "noise-3", "noise-4", "noise-5",
    "blur-1", "blur-2", "blur-3", "blur-4", "blur-5",
    "jpeg-1", "jpeg-2", "jpeg-3", "jpeg-4", "jpeg-5",
    "dropped-1", "dropped-2", "dropped-3", "dropped-4", "dropped-5",
    "frozen-1", "frozen-2", "frozen-3", "frozen-4", "frozen-5",
]  # fmt: skip
OverlapRule = Literal["error", "allow"]
PatchType = Literal["float16", "bfloat16"]
Balance = Literal["none", "loss", "sampling"]
_BELOW = ("run.device", "run.precision", "run.workers")  # of the evaluation, not of the protocol


def _in_order(orders: tuple[FrameOrder, ...]) -> tuple[FrameOrder, ...]:
    if "normal" not in orders or len(set(orders)) < len(orders):
        raise ValueError("must hold 'normal', and nothing twice")
    return tuple(order for order in get_args(FrameOrder) if order in orders)


def _some(labels: tuple[str, ...]) -> tuple[str, ...]:
    if not labels:
        raise ValueError("must name one or more labels, none of them twice")
    return labels


def _without(decided: str) -> Callable[[Mapping[str, Node]], Mapping[str, Node]]:
    def rule(entries: Mapping[str, Node]) -> Mapping[str, Node]:
        if decided in entries:
            raise entries[decided].error(
                f"is not for a protocol to set: the run that is evaluated decides '{decided}'"
            )
        return entries

    return rule


FrameOrders = Annotated[tuple[FrameOrder, ...], _in_order]


@dataclass(frozen=True, kw_only=True)
class FutureSpec:
    """The time to come whose cells a network's predictor adds to a clip's patch tokens.

    Attributes:
        seconds: from the clip's end to the first of them.
        fps: frames a second of the clips.
        num_slots: steps of the grid in time that are added; a step is as many frames as a patch.
    """

    seconds: Annotated[float, schema.at_least(0)] = 1.0
    fps: Annotated[float, schema.above_zero] = 8.0
    num_slots: schema.Count = 1

    def __post_init__(self) -> None:
        schema.check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a model is measured.

    Attributes:
        layers: "last" for the last layer's vector, "all" for the means of all stages side by side, "patches"
            for the mean of the last patches though there is a class token, which BEVT never trains.
        average: over the views of a video: "features" before the probe; or each view is a sample to the
            probe, and its "scores" as they are or the "probabilities" made of them are averaged.
        frames: orders of a test clip's frames, or corruptions of them ("noise-1" to "frozen-5"), that the
            probe is scored on; it learns on "normal" ones.
        batch_size: clips that go through the encoder together.
        patches: how patch tokens are kept; None for the default, float16, or where the evaluator reads none.
        blocks: numbers of blocks, from 0, whose patch tokens stand side by side, each under the last norm;
            empty for the last block's alone.
        future: the predicted cells that stand beside a clip's patch tokens, of an objective that predicts
            what comes after a clip; None for none.
        few_labels: how many of the labelled videos are learned from; None for all.
        overlap: whether test videos that are learned from are an error, or allowed and stated.
        views: test views of a protocol that names no videos; otherwise they are part of ``data``.
        train_views: of the videos to learn from; None for the test views.
        data: used instead of the recipe's ``data.probe`` where given.
    """

    name: schema.Text
    evaluator: Annotated[schema.PartSpec, "evaluators"]
    layers: Layers = "last"
    average: Average = "features"
    frames: FrameOrders = ("normal",)
    batch_size: schema.Count = 32
    patches: schema.Quiet[PatchType | None] = None
    blocks: schema.Quiet[Annotated[tuple[schema.Index, ...], schema.named_once]] = ()
    future: schema.Quiet[FutureSpec | None] = None
    few_labels: schema.Quiet[FewLabels | None] = None
    overlap: schema.Quiet[OverlapRule] = "error"
    views: schema.Quiet[schema.ViewsSpec | None] = None
    train_views: schema.Quiet[schema.ViewsSpec | None] = None
    data: schema.Quiet[schema.ProbeSpec | None] = None
    node: Node = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class FinetuneProtocol:
    """How a network is finetuned and then measured.

    Attributes:
        objective: ``classification`` with its keys, but for the label and its number of classes.
        train_views: a random clip of each video to learn from.
        batch_size: videos a step.
        backbone: keys of the recipe's backbone that are changed.
        run: keys of a recipe's ``run``; device, precision and workers are the pre-training's by default.
        average: over the test views of a video: the "scores" of its classes as they are, or the
            "probabilities" made of them.
        frames: orders of a test clip's frames that the network is scored on.
        seed: of the finetuning; None for the pre-training's.
        labels: a network is finetuned for each of them; None for every label the videos have.
        test_batch_size: videos that are tested together.
        compare_untrained: whether the network is also trained from its initial, random weights.
        balance: of unequal classes: "loss" weighs each video by 1 / its class's share, "sampling" shows those
            of rare classes several times an epoch; "none", as the papers have it, serves the top-1 accuracy,
            the others the mean over classes.
        few_labels, overlap, views: as in ``Protocol``.
        data: the videos; None where neither the protocol nor the recipe names any.
    """

    name: schema.Text
    objective: schema.ObjectiveSpec
    train_views: schema.ViewsSpec
    batch_size: schema.Count
    optim: schema.OptimizerSpec
    schedule: schema.ScheduleSpec
    augment: schema.Quiet[schema.AugmentSpec | None] = None
    backbone: Annotated[Mapping[str, Node], _without("init")] = field(default_factory=dict)
    run: Annotated[Mapping[str, Node], _without("out")] = field(default_factory=dict)
    average: ViewAverage = "probabilities"
    frames: FrameOrders = ("normal",)
    seed: schema.Index | None = None
    labels: Annotated[tuple[str, ...], _some, schema.named_once] | None = None
    test_batch_size: schema.Count = 8
    compare_untrained: bool = False
    balance: schema.Quiet[Balance] = "none"
    few_labels: schema.Quiet[FewLabels | None] = None
    overlap: schema.Quiet[OverlapRule] = "error"
    views: schema.Quiet[schema.ViewsSpec | None] = None
    data: schema.Quiet[schema.ProbeSpec | None] = None
    node: Node = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class MeasureSpec:
    """The amounts that a tokenizer is measured on.

    Attributes:
        videos: how many, evenly spread over the source; one clip of each.
        noise: standard deviation of the noise behind the flicker.
        shown: videos on the sheet of reconstructions.
    """

    videos: schema.Count = 200
    noise: Annotated[float, schema.at_least(0)] = 0.01
    shown: schema.Count = 4

    def __post_init__(self) -> None:
        schema.check_fields(self)


@dataclass(frozen=True, kw_only=True)
class TestSpec:
    """Videos to measure on, without labels."""

    test: schema.SourceSpec


@dataclass(frozen=True, kw_only=True)
class TokenizerProtocol:
    """How tokenizers are measured.

    Attributes:
        batch_size: clips that are encoded together.
        views: the clip of a video; the first slot of the first view is taken.
    """

    name: schema.Text
    measure: MeasureSpec
    batch_size: schema.Count = 32
    views: schema.ViewsSpec
    data: TestSpec
    node: Node = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class MaskedVideos:
    """Videos with masks.

    Attributes:
        train: to learn from; None where a protocol learns nothing.
    """

    test: schema.SourceSpec
    train: schema.SourceSpec | None = None


@dataclass(frozen=True, kw_only=True)
class Propagation:
    """Labels of a first frame that are carried on by likeness of patches, as DINO's code does it.

    Each cell takes the labels of the cells that are most like it, weighted, out of the first frame and some
    before it.

    Attributes:
        neighbours: cells that have a say, over all these frames.
        window: rows and columns of cells to each side in which they are looked for.
        context: frames before, besides the first.
        temperature: of the softmax over cosines.
        labels: of a cell of the first frame: the "shares" of its pixels, or its "middle" pixel, DINO's.
    """

    neighbours: schema.Count = 5
    window: schema.Count = 12
    context: schema.Count = 7
    temperature: Annotated[float, schema.above_zero] = 0.1
    labels: Literal["shares", "middle"] = "middle"

    def __post_init__(self) -> None:
        schema.check_fields(self)


@dataclass(frozen=True, kw_only=True)
class LinearSegmentation:
    """A linear layer on standardised patch tokens, whose scores are enlarged to the masks' size; ours.

    Attributes:
        frames: of each video to learn from, evenly spaced.
        lr: of AdamW; it falls along a cosine to 0.
        weight_decay: of AdamW.
        epochs: over these frames.
        batch_size: frames a step.
    """

    frames: schema.Count = 4
    lr: Annotated[float, schema.above_zero] = 1e-2
    weight_decay: Annotated[float, schema.at_least(0)] = 1e-2
    epochs: schema.Count = 20
    batch_size: schema.Count = 32

    def __post_init__(self) -> None:
        schema.check_fields(self)


@dataclass(frozen=True, kw_only=True)
class MaskProtocol:
    """How the patch tokens of a frozen network are measured on masks.

    Attributes:
        propagate, segment: which of the two; exactly one is given.
        feed: each frame "still" for a whole clip, or in "clips" of consecutive frames.
        num_frames: of a clip; None for that of the test views of the labelled videos (``data.probe``).
        size: height and width that frames are resized to; or the shorter side, the other one following in
            whole cells; None for that of these views.
        batch_size: clips that go through the network together.
        shown: videos in the picture.
    """

    name: schema.Text
    propagate: schema.Quiet[Propagation | None] = None
    segment: schema.Quiet[LinearSegmentation | None] = None
    feed: Literal["still", "clips"] = "still"
    num_frames: schema.Count | None = None
    size: schema.Count | tuple[int, int] | None = None
    batch_size: schema.Count = 32
    shown: schema.Count = 4
    data: MaskedVideos
    node: Node = field(repr=False)


def measures_masks(name: str) -> bool:
    """Whether the protocol of a file or name measures patch tokens on masks."""
    return bool({"propagate", "segment"} & set(read("evaluation", name)[0].mapping()))


def load_mask_protocol(name: str, overrides: Sequence[str] = ()) -> MaskProtocol:
    """The protocol of a file or name, with dotted overrides applied.

    Raises:
        UsageError: if a key is wrong, or it does not say one thing to do.
    """
    found = schema.construct(overridden(read("evaluation", name)[0], overrides), MaskProtocol)
    if (found.propagate is None) == (found.segment is None):
        raise found.node.error("takes one of the sections 'propagate' and 'segment'")
    if found.segment is not None and found.data.train is None:
        raise found.node.error("'segment' learns from masks: name videos with masks as data.train")
    return found


def load_protocol(
    name: str, overrides: Sequence[str] = (), recipe: Recipe | None = None
) -> Protocol | FinetuneProtocol:
    """The protocol of a file or name, with dotted overrides applied; one that has an ``objective`` finetunes.

    Args:
        recipe: its ``data.probe`` stands in for the ``data`` of a protocol that has none, so that
            overrides can change a part of it.
    """
    node = protocol_tree(name, overrides, recipe)
    if "objective" in node.mapping():
        node = _with_tested(_with_views(node))
        return schema.construct(node, FinetuneProtocol, below=("schedule.epochs", "schedule.steps"))
    return schema.construct(_with_views(node), Protocol, below=_BELOW)


def protocol_tree(name: str, overrides: Sequence[str] = (), recipe: Recipe | None = None) -> Node:
    """The tree of a file or name in ``evaluation``; arguments and errors as ``load_protocol``."""
    node = read("evaluation", name)[0]
    probe = recipe.data.node.mapping().get("probe") if recipe else None
    sections = node.mapping()
    if probe is None or probe.value is None or "data" in sections:
        return overridden(node, overrides)
    data = moved(probe, "data")
    tree = overridden(replace(node, value={**sections, "data": data}), overrides)
    return _without_views_of(data, tree)


def _without_views_of(data: Node, tree: Node) -> Node:
    """The tree without the recipe's views, unchanged by overrides, where the protocol has views itself."""
    sections = tree.mapping()
    own, mine = sections.get("views"), sections["data"]
    if own is None or own.value is None or not isinstance(mine.value, Mapping):
        return tree
    # what an override changed is another node; views that a user wrote are never dropped unsaid
    rest = {key: entry for key, entry in mine.value.items() if entry is not data.mapping().get("views")}
    return replace(tree, value={**sections, "data": replace(mine, value=rest)})


def _with_views(node: Node) -> Node:
    """The tree with a protocol's own ``views`` put into its ``data``, where it has both."""
    sections = node.mapping()
    views, data = sections.get("views"), sections.get("data")
    if views is None or views.value is None or data is None or data.value is None:
        return node
    if "views" in data.mapping():
        raise data.mapping()["views"].error("given twice: the protocol's own 'views' are the test views")
    others = {key: entry for key, entry in sections.items() if key != "views"}
    return replace(node, value={**others, "data": replace(data, value={**data.mapping(), "views": views})})


def _with_tested(node: Node) -> Node:
    """The tree whose ``train_views`` have what the test views have, for each key that says ``as_tested``."""
    sections = node.mapping()
    data, learned = sections.get("data"), sections.get("train_views")
    if learned is None or not isinstance(learned.value, Mapping):
        return node
    views = None if data is None or data.value is None else data.mapping().get("views")
    tested = views.mapping() if views is not None else {}
    found = {}
    for key, entry in learned.mapping().items():
        if entry.value != "as_tested":
            found[key] = entry
        elif key in tested:
            found[key] = moved(tested[key], f"train_views.{key}")
        elif data is not None and data.value is not None:  # without data there are no test views yet
            raise entry.error(f"the test views name no '{key}' to take: name it, as train_views.{key}=VALUE")
    return replace(node, value={**sections, "train_views": replace(learned, value=found)})


def finetunes(name: str) -> bool:
    """Whether the protocol of a file or name finetunes."""
    return "objective" in read("evaluation", name)[0].mapping()


def measures_tokenizers(name: str) -> bool:
    """Whether the protocol of a file or name measures tokenizers."""
    return "measure" in read("evaluation", name)[0].mapping()


def load_tokenizer_protocol(name: str, overrides: Sequence[str] = ()) -> TokenizerProtocol:
    """The protocol of a file or name, with dotted overrides applied."""
    return schema.construct(overridden(read("evaluation", name)[0], overrides), TokenizerProtocol)

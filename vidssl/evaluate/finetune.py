"""Finetuning: the encoder of a run and a linear layer learn from labelled videos, and are then measured."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from vidssl.build import build, checks, registry
from vidssl.config.few_labels import Amount, Subset, drawn
from vidssl.config.protocol import FinetuneProtocol, ViewAverage
from vidssl.config.recipe import Recipe, read_recipe
from vidssl.config.schema import PartSpec
from vidssl.config.strict_yaml import Node, dump, plain
from vidssl.data.classes import class_weights, label_kind
from vidssl.data.sources.listing import groups_of
from vidssl.engine import checkpoint, process, runfolder, speed
from vidssl.engine.distributed import here, take_device
from vidssl.engine.logging import print_line
from vidssl.errors import UsageError, counted
from vidssl.evaluate.report import classes_of, report
from vidssl.evaluate.subject import NetworkSpec, Subject, trained_objective
from vidssl.evaluators.extract import extract
from vidssl.evaluators.features import FeatureTable, shared_labels
from vidssl.evaluators.scores import Score, mean_over_draws, score, tested_rows
from vidssl.evaluators.statistics import average_views, check_scores
from vidssl.interfaces import DataSource, num_listed
from vidssl.objectives.classification import Classification
from vidssl.train.loop import TrainResult
from vidssl.train.run import train_recipe

_INHERITED = ("device", "precision", "workers")  # of the pre-training's ``run``


@dataclass(frozen=True)
class Finetuned:
    """Results of finetuning.

    Attributes:
        scores: "finetuned", and "from scratch" where that is compared -> a score for each label and order
            of frames.
        train: the videos that were learned from, as they are listed; without vectors.
        test: the test videos as they were found.
    """

    scores: Mapping[str, list[Score]]
    train: FeatureTable
    test: FeatureTable


class FinetuningStopped(Exception):
    """Finetuning was asked to stop before its last step; the message names its folder."""


def finetune_run(
    subject: Subject, protocol: FinetuneProtocol, console: Console, notes: Sequence[str] = ()
) -> bool:
    """Finetune a network, print a table of scores and keep them where its scores go.

    Several processes train and measure together. Runs are made in the folder ``finetune`` of its folder.

    Args:
        notes: printed below the table, on test videos that were learned from before.

    Returns:
        Whether it was finished; False after Ctrl-C or a signal, which is printed.

    Raises:
        UsageError: for anything a user can mend.
    """
    try:
        found = finetune(subject, protocol, console, out=subject.folder / "finetune")
    except FinetuningStopped as stopped:
        print_line(console, str(stopped))
        return False

    def print_scores() -> str:
        report(
            subject, protocol, found.scores, {"train": found.train, "test": found.test}, console, notes=notes
        )
        return ""

    here().from_first(print_scores)
    return True


def finetune(subject: Subject, protocol: FinetuneProtocol, console: Console, *, out: Path) -> Finetuned:
    """Finetune and score a network for every label of a protocol.

    Args:
        out: the folder that runs are made in, one for each label and start.

    Raises:
        UsageError: for anything a user can mend.
        FinetuningStopped: after Ctrl-C or a signal.
    """
    assert protocol.data is not None, "refused without labelled videos"
    data, views = protocol.data, protocol.data.views
    train, test = here().one_first(lambda: (build.source(data.train), build.source(data.test)))
    checks.check_stored(subject.spec.tokenizer, protocol.data.test, views, test, build.views(views))
    together = shared_labels(train.label_classes, test.label_classes)
    listed, tested = (_listed(source).renumbered(together) for source in (train, test))
    there = [name for name in together if all((part.labels[name] >= 0).any() for part in (listed, tested))]
    single = tuple(label for label in there if label_kind(label, together[label]) == "class")
    labels, starts = _labels(protocol, single), _starts(subject, protocol)
    what = "takes labels of one class a video that videos to learn from and to test on have"
    if not labels:
        raise UsageError(f"{protocol.name} {what}, not {', '.join(together)}")
    for line in (*classes_of(listed, tested), *_other_clips(protocol)):
        print_line(console, line)
    if others := [label for label in together if not protocol.labels and label not in single]:
        print_line(console, f"left out: {', '.join(others)}: {protocol.name} {what}")
    rows = [
        _row(subject.spec, protocol, name=name, init=init, label=label, amount=amount, listed=listed, out=out)
        for label in labels
        for amount in (protocol.few_labels.amounts if protocol.few_labels else (None,))
        for name, init in starts.items()
    ]
    scores: dict[str, list[Score]] = {name: [] for name in starts}
    found: FeatureTable | None = None
    for row in rows:
        draws = []
        for each, learned in row.runs:
            objective, result = train_recipe(each, console)
            assert isinstance(objective, Classification), "finetuning_recipe asks for nothing else"
            _check_whole(result)
            here().from_first(
                partial(_note_test, protocol, listed.classes[row.label], row.label, result.folder)
            )
            objective = _whole(objective, each, result)
            title = f"{row.name} network, test videos"
            found = _measured(objective, each, protocol, test, console, title).renumbered(together)
            draws.append(_scores(objective, found, protocol.average, learned, row.label))
        scores[row.name] += draws[0] if row.amount is None else mean_over_draws(draws, row.amount)
    assert found is not None, "there is a label"
    return Finetuned(scores, listed, found)


def _other_clips(protocol: FinetuneProtocol) -> list[str]:
    """A line on the clips that are learned from; where those tested on differ, with the way out."""
    assert protocol.data is not None, "refused without labelled videos"
    learned, tested = (plain(part.node) for part in (protocol.train_views, protocol.data.views))
    assert isinstance(learned, Mapping), "a part has keys"
    assert isinstance(tested, Mapping), "a part has keys"
    both = [key for key in ("num_frames", "frame_stride", "size") if key in learned and key in tested]
    keys = [key for key in both if learned[key] != tested[key]]
    if not keys:
        words = ", ".join(f"{key} {learned[key]}" for key in both)
        return [f"clips that are learned from are as those tested on: {words}"] if both else []
    words = ", ".join(f"{key} {learned[key]} and {tested[key]}" for key in keys)
    cure = " ".join(f"train_views.{key}={tested[key]}" for key in keys)
    return [f"clips that are learned from and tested on differ ({words}); '{cure}' makes them alike"]


@dataclass(frozen=True)
class _RowRuns:
    """A network, a label and an amount of labelled videos, with all that is trained for it.

    Attributes:
        name: of the network's column.
        runs: for each draw of videos its recipe, and the classes int64 [N] of those that are learned from.
    """

    name: str
    label: str
    amount: Amount | None
    runs: tuple[tuple[Recipe, Tensor], ...]


def _row(
    spec: NetworkSpec,
    protocol: FinetuneProtocol,
    *,
    name: str,
    init: str | None,
    label: str,
    amount: Amount | None,
    listed: FeatureTable,
    out: Path,
) -> _RowRuns:
    """Checked recipes of a row; errors as ``finetune``."""
    few, classes = protocol.few_labels, listed.classes[label]
    subsets: list[Subset | None] = [None]
    if few is not None and amount is not None:
        subsets = [
            Subset(label=label, share=amount.share, per_class=amount.per_class, draw=draw, seed=few.seed)
            for draw in few.draws_of(amount)
        ]
    runs = []
    for subset in subsets:
        numbers = listed.labels[label]
        if subset is not None:
            places = drawn(
                listed.keys,
                numbers.tolist(),
                subset.amount,
                draw=subset.draw,
                seed=subset.seed,
                classes=classes,
                groups=listed.groups,
            )
            numbers = numbers[torch.tensor(places)]
        recipe = finetuning_recipe(
            spec,
            protocol,
            init=init,
            label=label,
            num_classes=len(classes),
            out=out,
            subset=subset,
            numbers=numbers,
        )
        build.check(recipe)
        runs.append((recipe, numbers))
    return _RowRuns(name, label, amount, tuple(runs))


def _starts(subject: Subject, protocol: FinetuneProtocol) -> dict[str, str | None]:
    """Random weights only where they are compared with, or are all there is."""
    starts = dict(subject.starts)
    trained = {name: starts[name] for name in starts if starts[name] is not None}
    return trained if trained and not protocol.compare_untrained else starts


def finetuning_recipe(
    spec: NetworkSpec,
    protocol: FinetuneProtocol,
    *,
    init: str | None,
    label: str,
    num_classes: int,
    out: Path,
    subset: Subset | None = None,
    numbers: Tensor | None = None,
) -> Recipe:
    """The recipe of a finetuning run: the backbone as it is, and all else the protocol's.

    Args:
        init: what the backbone starts from; None for random weights.
        subset: the draw of labelled videos that is learned from; None for all.
        numbers: int64 [N], classes of those that are learned from, -1 for none, by which a loss is balanced.

    Raises:
        UsageError: for anything that shows without knowing the components.
    """
    if spec.backbone is None:
        name = ":".join(str(spec.keys[key]) for key in ("type", "name") if key in spec.keys)
        raise UsageError(f"{name}: has no weights that finetuning could train; probe it instead")
    assert protocol.data is not None, "refused without labelled videos"

    def leaf(value: str | int | float | None, path: str) -> Node:
        return Node(value, protocol.node.where, path)

    def section(entries: Mapping[str, Node], path: str) -> Node:
        return Node(entries, protocol.node.where, path)

    backbone = {**spec.backbone.node.mapping(), **protocol.backbone, "init": leaf(init, "backbone.init")}
    objective = {
        **protocol.objective.node.mapping(),
        "label": leaf(label, "objective.label"),
        "num_classes": leaf(num_classes, "objective.num_classes"),
    }
    if protocol.balance == "loss" and numbers is not None:
        weights = class_weights(numbers[numbers >= 0], num_classes).tolist()
        each = tuple(leaf(round(weight, 6), "objective.class_weights") for weight in weights)
        objective["class_weights"] = Node(each, protocol.node.where, "objective.class_weights")
    video = {
        "source": protocol.data.train.node,
        "views": protocol.train_views.node,
        "batch_size": protocol.node.mapping()["batch_size"],
    }
    if protocol.balance == "sampling":
        video["balance"] = leaf(label, "data.video.balance")
    if subset is not None:
        video["subset"] = section(
            {
                key: leaf(value, f"data.video.subset.{key}")
                for key, value in vars(subset).items()
                if value is not None
            },
            "data.video.subset",
        )
    data = {
        "video": section(video, "data.video"),
        "max_unreadable_share": leaf(spec.max_unreadable_share, "data.max_unreadable_share"),
    }
    run = {key: leaf(getattr(spec.run, key), f"run.{key}") for key in _INHERITED}
    seed = spec.seed if protocol.seed is None else protocol.seed
    start = "" if init else "-scratch"
    sections = {
        "name": leaf(f"{protocol.name}-{label}{start}{_draw_name(subset)}", "name"),
        "seed": leaf(seed, "seed"),
        "objective": section(objective, "objective"),
        "backbone": section(backbone, "backbone"),
        "data": section(data, "data"),
        "optim": protocol.optim.node,
        "schedule": protocol.schedule.node,
        "run": section({**run, **protocol.run, "out": leaf(str(out), "run.out")}, "run"),
    }
    if protocol.augment is not None:
        sections["augment"] = protocol.augment.node
    if spec.tokenizer is not None and _reads_ids(spec.backbone):
        sections["tokenizer"] = spec.tokenizer.node
    return read_recipe(section(sections, ""), Path.cwd())


def _draw_name(subset: Subset | None) -> str:
    """The end of the name of a draw's run: ``-10pct-draw0``, ``-5each-draw2``."""
    if subset is None:
        return ""
    few = f"{subset.per_class}each" if subset.share is None else f"{100 * subset.share:g}pct"
    return f"-{few}-draw{subset.draw}"


def _reads_ids(part: PartSpec) -> bool:
    with speed.on_meta():
        return build.network(part).input_kind == "tokens"


def _labels(protocol: FinetuneProtocol, shared: tuple[str, ...]) -> tuple[str, ...]:
    for label in protocol.labels or ():
        if label not in shared:
            raise protocol.node.mapping()["labels"].error(
                f"the videos have no label '{label}' of one class a video, but {', '.join(shared)}"
            )
    return protocol.labels or shared


def _listed(source: DataSource) -> FeatureTable:
    every = range(len(source))
    labels = {
        name: torch.tensor([source.labels(number).get(name, -1) for number in every])
        for name in source.label_classes
    }
    keys = tuple(map(source.key, every))
    return FeatureTable(
        torch.empty(len(source), 0, 0),
        labels,
        source.label_classes,
        keys,
        num_listed(source),
        (),
        groups=groups_of(source, every),
    )


def _note_test(protocol: FinetuneProtocol, classes: Sequence[str], label: str, folder: Path) -> str:
    """Keeps with the run how it is tested, for ``vidssl predict``."""
    assert protocol.data is not None, "refused without labelled videos"
    views = registry.resolved_part(protocol.data.views, registry.VIEW_SAMPLER)
    found = {"label": label, "classes": classes, "average": protocol.average, "views": dump(views)}
    process.write_text(runfolder.RunFolder(folder).classes, json.dumps(found, indent=2) + "\n")
    return ""


def _check_whole(result: TrainResult) -> None:
    if result.steps < result.total_steps:
        raise FinetuningStopped(
            f"Finetuning stopped after {result.steps} of {counted(result.total_steps, 'step')}, so "
            "nothing was scored. "
            "The same command with run.resume=auto resumes from there. "
            f"The network so far: {result.checkpoint}"
        )


def _whole(objective: Classification, recipe: Recipe, result: TrainResult) -> Classification:
    """The objective with all of its weights in every process; shards are read from the checkpoint."""
    if here().size == 1 or recipe.run.parallel == "ddp":
        return objective
    whole = trained_objective(recipe, checkpoint.read_checkpoint(result.checkpoint), lambda text: None)
    assert isinstance(whole, Classification), "it is of the same recipe"
    return whole.eval()


def _measured(
    objective: Classification,
    recipe: Recipe,
    protocol: FinetuneProtocol,
    test: DataSource,
    console: Console,
    title: str,
) -> FeatureTable:
    """Features of the test videos; where views go together they are averaged, as in training."""
    assert protocol.data is not None, "refused without labelled videos"
    world = here()
    device = take_device(recipe.run.device, world.local_rank)
    tokenizer = None if objective.tokenizer is None else objective.tokenizer.tokenizer
    return extract(
        objective.answering().backbone,
        test,
        build.views(protocol.data.views),
        tokenizer=tokenizer,
        frames=protocol.frames,
        batch_size=protocol.test_batch_size,
        workers=recipe.run.workers,
        device=device,
        autocast=speed.use_bfloat16(recipe.run.precision, device),
        console=console,
        title=title,
        world=world,
    )


@torch.no_grad()
def _scores(
    objective: Classification, test: FeatureTable, average: ViewAverage, learned: Tensor, label: str
) -> list[Score]:
    """A score for each order of frames, averaged over the views of each video.

    Args:
        learned: int64 [N], classes of the videos that were learned from, -1 for none.
    """
    head = objective.answering().head
    tested = tested_rows(test, label)
    rows = []
    for frames, vectors in {"normal": test.vectors, **test.reordered}.items():
        logits = head(vectors[tested.numbers])
        check_scores(logits.flatten(0, 1), logits.shape[:2].numel(), logits.shape[2], "the finetuned network")
        averaged = average_views(logits, average, "logits")
        rows.append(
            score(
                averaged,
                tested.labels,
                learned[learned >= 0].to(averaged.device),
                kind="logits",
                label=label,
                frames=frames,
                groups=tested.groups,
            )
        )
    return rows

"""From a run and a protocol to scores."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vidssl import build
from vidssl.data.loader import iterate_once
from vidssl.engine.checkpoint import Checkpoint, read_checkpoint
from vidssl.engine.devices import pick_device, use_bfloat16
from vidssl.engine.display import shown_messages
from vidssl.engine.files import write_text
from vidssl.engine.runfolder import RunFolder, describe_environment, newest_run
from vidssl.errors import UsageError
from vidssl.evaluators.features import FeatureTable, Layers, encode_views
from vidssl.evaluators.statistics import wilson_interval
from vidssl.interfaces import Backbone, DataSource, Evaluator, LabelledFeatures, Tokenizer, ViewSampler
from vidssl.protocol import Protocol, load_protocol
from vidssl.recipe import Recipe, recipe_from_text
from vidssl.resolved import protocol_text
from vidssl.weights.load import load_whole

Features = Mapping[str, tuple[FeatureTable, FeatureTable]]  # network -> its train and test videos


@dataclass(frozen=True)
class Score:
    """One label's accuracy.

    Attributes:
        label: its name.
        top1: share of test videos whose best class is the right one.
        low, high: 95 % interval of ``top1`` (Wilson).
        chance: share of test videos right when always naming the commonest class of train.
        num_train, num_test: videos with this label.
    """

    label: str
    top1: float
    low: float
    high: float
    chance: float
    num_train: int
    num_test: int


def extract(
    backbone: Backbone,
    source: DataSource,
    views: ViewSampler,
    *,
    tokenizer: Tokenizer | None = None,
    layers: Layers = "last",
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | None = None,
    autocast: bool = False,
    console: Console | None = None,
    title: str = "features",
) -> FeatureTable:
    """Features of every readable video of a source under test views, the mean over the views of each.

    Args:
        layers: the last layer's vector (``Features.pooled``), or the means of all stages side by side.

    Raises:
        UsageError: if no video can be read.
    """
    device = device or pick_device("auto")
    backbone = backbone.to(device).eval()
    tokenizer = tokenizer.to(device).eval() if tokenizer is not None else None
    problems: list[str] = []
    batches = iterate_once(
        source, views, batch_size=batch_size, workers=workers, unreadable=lambda e: problems.append(str(e))
    )
    if console is not None and console.is_terminal:
        total = -(-len(source) // batch_size)
        batches = iter(track(batches, description=title, total=total, console=console, transient=True))
    vectors, numbers = encode_views(
        backbone, tokenizer, batches, layers=layers, device=device, autocast=autocast
    )
    found = [int(number) for number in numbers]
    labels = {
        name: torch.tensor([source.labels(number).get(name, -1) for number in found], device=device)
        for name in source.label_classes
    }
    return FeatureTable(
        vectors, labels, source.label_classes, tuple(map(source.key, found)), len(source), tuple(problems)
    )


def probe(evaluator: Evaluator, train: FeatureTable, test: FeatureTable, *, seed: int = 0) -> list[Score]:
    """One score for each label that train and test share. Videos without the label are left out of its row.

    Raises:
        UsageError: if they share none, or mean different classes by it.
    """
    shared = [label for label in train.classes if label in test.classes]
    if not shared:
        raise UsageError(
            f"the videos to learn from and those to test on share no label (learn: "
            f"{', '.join(train.classes) or 'none'}; test: {', '.join(test.classes) or 'none'})"
        )
    for label in shared:
        if train.classes[label] != test.classes[label]:
            raise UsageError(
                f"label '{label}' has other classes in train ({', '.join(train.classes[label])}) "
                f"than in test ({', '.join(test.classes[label])})"
            )
    return [_score(evaluator, train, test, label, seed) for label in shared]


def _score(evaluator: Evaluator, train: FeatureTable, test: FeatureTable, label: str, seed: int) -> Score:
    num_classes = len(train.classes[label])
    in_train, in_test = train.labels[label] >= 0, test.labels[label] >= 0
    learn = LabelledFeatures(train.vectors[in_train], train.labels[label][in_train], num_classes)
    truth = test.labels[label][in_test]
    scores = evaluator.class_scores(learn, test.vectors[in_test], torch.Generator().manual_seed(seed))
    right = int((scores.argmax(1) == truth).sum())
    commonest = learn.labels.bincount(minlength=num_classes).argmax()
    low, high = wilson_interval(right, len(truth))
    return Score(
        label=label,
        top1=right / len(truth),
        low=low,
        high=high,
        chance=float((truth == commonest).float().mean()),
        num_train=len(learn.labels),
        num_test=len(truth),
    )


def find_checkpoint(target: str | None) -> Path:
    """The checkpoint that a word names: a file, a run folder's newest, or without a word the newest run's.

    Raises:
        UsageError: if there is none.
    """
    if target is None:
        run = newest_run(Path("runs"))
    elif Path(target).is_dir():
        run = RunFolder(Path(target))
    else:
        return Path(target)
    newest = run.newest_checkpoint()
    if newest is None:
        raise UsageError(f"{run.path}: no checkpoint in it; is it the folder of a run of 'vidssl train'?")
    return newest


def evaluate_run(
    target: str | None,
    protocols: Sequence[str],
    overrides: Sequence[str],
    console: Console | None = None,
) -> int:
    """Score a checkpoint beside the same network untrained, print one table a protocol, keep the scores.

    Args:
        target: run folder or checkpoint; None for the newest run below ``runs``.
        protocols: names of files in ``evaluation``, or paths.
        overrides: ``key=value`` for the protocols.

    Returns:
        Exit code 0.

    Raises:
        UsageError: for anything a user can mend.
    """
    console = console or Console()
    with shown_messages(console):
        checkpoint = read_checkpoint(find_checkpoint(target))
        recipe = _recipe_of(checkpoint)
        read = [_protocol(name, overrides, recipe) for name in protocols]
        for protocol in read:
            build.check_protocol(protocol)
        networks = {"trained": _trained(recipe, checkpoint), "untrained": _untrained(recipe)}
        done: list[tuple[Protocol, Features]] = []
        for protocol in read:
            same = [features for other, features in done if _same_features(other, protocol)]
            features = same[0] if same else _features(networks, recipe, protocol, console)
            done.append((protocol, features))
            _report(recipe, checkpoint, protocol, features, console)
    return 0


def _recipe_of(checkpoint: Checkpoint) -> Recipe:
    if not checkpoint.recipe:
        raise UsageError(
            f"{checkpoint.path}: was trained without a recipe; measure it in Python with "
            "vidssl.evaluate.extract and vidssl.evaluate.probe"
        )
    recipe = recipe_from_text(checkpoint.recipe, str(checkpoint.path))
    if recipe.backbone is None:
        raise UsageError(f"{checkpoint.path}: this run trained a tokenizer, which has no features to probe")
    return recipe


def _protocol(name: str, overrides: Sequence[str], recipe: Recipe) -> Protocol:
    protocol = load_protocol(name, overrides, recipe)
    if protocol.data is None:
        raise UsageError(
            f"{name}: neither the protocol nor the run's recipe names labelled videos: add e.g. "
            "'data.train={type: video_folder, root: FOLDER, part: train}' "
            "'data.test={type: video_folder, root: FOLDER, part: test}' "
            "'data.views={type: uniform_clips, num_frames: 16, frame_stride: 4, size: 112}'"
        )
    return protocol


def _same_features(one: Protocol, other: Protocol) -> bool:
    return one.data == other.data and one.layers == other.layers


def _trained(recipe: Recipe, checkpoint: Checkpoint) -> Backbone:
    backbone = build.backbone(recipe, with_init=False)
    load_whole(backbone, checkpoint.encoder, checkpoint.path)
    return backbone


def _untrained(recipe: Recipe) -> Backbone:
    """The same network as it was drawn before training, and before any ``backbone.init``."""
    torch.manual_seed(recipe.seed)
    return build.backbone(recipe, with_init=False)


def _tokenizer(recipe: Recipe) -> Tokenizer:
    assert recipe.tokenizer is not None, "a recipe whose backbone reads ids was refused without one"
    return build.tokenizer(recipe.tokenizer)


def _features(
    networks: Mapping[str, Backbone], recipe: Recipe, protocol: Protocol, console: Console
) -> Features:
    assert protocol.data is not None, "_protocol refuses it"
    views = build.views(protocol.data.views)
    sources = build.source(protocol.data.train), build.source(protocol.data.test)
    device = pick_device(recipe.run.device)
    tables = {}
    for name, network in networks.items():
        tokenizer = _tokenizer(recipe) if network.input_kind == "tokens" else None
        parts = [
            extract(
                network,
                source,
                views,
                tokenizer=tokenizer,
                layers=protocol.layers,
                batch_size=protocol.batch_size,
                workers=recipe.run.workers,
                device=device,
                autocast=use_bfloat16(recipe.run.precision, device),
                console=console,
                title=f"{name} network, {part} videos",
            )
            for part, source in zip(("train", "test"), sources, strict=True)
        ]
        tables[name] = (parts[0], parts[1])
    return tables


def _report(
    recipe: Recipe,
    checkpoint: Checkpoint,
    protocol: Protocol,
    features: Features,
    console: Console,
) -> None:
    evaluator = build.evaluator(protocol.evaluator)
    scores = {name: probe(evaluator, *tables, seed=recipe.seed) for name, tables in features.items()}
    train, test = features["trained"]
    console.print(_score_table(scores, f"{protocol.name} probe of {checkpoint.path}, step {checkpoint.step}"))
    for name, part in (("train", train), ("test", test)):
        text = f"{name}: {len(part.keys)} videos found of {part.num_listed} listed"
        console.print(text, soft_wrap=True, highlight=False, markup=False)
        for problem in part.unreadable:
            console.print(f"  left out: {problem}", soft_wrap=True, highlight=False, markup=False)
    record = {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "protocol": protocol_text(protocol),
        "videos": {
            name: {"found": len(part.keys), "listed": part.num_listed, "unreadable": part.unreadable}
            for name, part in (("train", train), ("test", test))
        },
        "scores": {name: [asdict(score) for score in rows] for name, rows in scores.items()},
        "environment": describe_environment(),
    }
    path = _scores_path(checkpoint, protocol)
    write_text(path, json.dumps(record, indent=2) + "\n")
    console.print(f"Scores: {path}", soft_wrap=True, highlight=False, markup=False)


def _score_table(scores: Mapping[str, Sequence[Score]], title: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption="in brackets: 95 % interval",
        caption_justify="left",
    )
    table.add_column("label")
    for name in scores:
        table.add_column(f"{name} %", justify="right")
    table.add_column("chance %", justify="right")
    table.add_column("videos", justify="right")
    for rows in zip(*scores.values(), strict=True):
        cells = [f"{100 * s.top1:.1f} ({100 * s.low:.1f} to {100 * s.high:.1f})" for s in rows]
        table.add_row(rows[0].label, *cells, f"{100 * rows[0].chance:.1f}", str(rows[0].num_test))
    return table


def _scores_path(checkpoint: Checkpoint, protocol: Protocol) -> Path:
    """In the run's folder, or beside a checkpoint that lies elsewhere."""
    run = RunFolder(checkpoint.path.parent.parent)
    folder = run.scores if run.scores.is_dir() else checkpoint.path.parent
    return folder / f"{protocol.name}-{checkpoint.path.stem}.json"

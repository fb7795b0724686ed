"""``vidssl predict``: which classes a finetuned network, or a probe that was kept, names in videos."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from torch import Tensor

from vidssl.build import build
from vidssl.config.protocol import Layers, PatchType, ViewAverage
from vidssl.config.recipe import Recipe
from vidssl.config.schema import PartSpec, ViewsSpec, convert
from vidssl.config.strict_yaml import Node, parse
from vidssl.engine import own_code, runfolder, speed
from vidssl.engine.checkpoint import Checkpoint, read_checkpoint
from vidssl.engine.logging import print_line, shown_messages, terminal
from vidssl.errors import UsageError
from vidssl.evaluate import evaluate, networks, score_file
from vidssl.evaluate.subject import recipe_of, trained_objective
from vidssl.evaluators import features, fitted
from vidssl.evaluators.extract import extract
from vidssl.interfaces import Backbone, DataSource, Tokenizer, ViewSampler
from vidssl.objectives.classification import Classification
from vidssl.use.features import videos_named

ALIKE = "views='{type: uniform_clips, num_frames: 16, frame_stride: 4, size: 224}'"


@dataclass(frozen=True)
class Answer:
    """What is said of one video.

    Attributes:
        video: its key.
        label: which label the classes are of.
        classes: the likeliest first.
        probabilities: of each, from 0 to 1.
    """

    video: str
    label: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Answers:
    """What a network says of videos; ``repr`` is the text that the command prints.

    Attributes:
        answers: video by video.
        unreadable: what was wrong with videos that were left out.
    """

    answers: tuple[Answer, ...]
    unreadable: tuple[str, ...] = ()

    def __repr__(self) -> str:
        lines = [
            f"{each.video}  {each.label}: "
            + ", ".join(
                f"{name} {share:.1%}" for name, share in zip(each.classes, each.probabilities, strict=True)
            )
            for each in self.answers
        ]
        return "\n".join([*lines, *(f"left out: {line}" for line in self.unreadable)])

    def json(self) -> str:
        """The same as JSON text."""
        found = [
            {
                "video": each.video,
                "label": each.label,
                "classes": [
                    {"name": name, "probability": share}
                    for name, share in zip(each.classes, each.probabilities, strict=True)
                ],
            }
            for each in self.answers
        ]
        return json.dumps({"answers": found, "unreadable": list(self.unreadable)}, indent=2)


def predict_videos(
    network: str,
    videos: Sequence[str],
    *,
    probes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    top: int = 5,
    as_json: bool = False,
    trust: bool = False,
    console: Console | None = None,
) -> int:
    """Print the likeliest classes of videos; arguments and errors as ``predict``; exit code 0."""
    console = console or terminal()
    with shown_messages(console):
        found = predict(network, videos, probes=probes, overrides=overrides, top=top, trust=trust)
    if as_json:
        print(found.json())
    else:
        for line in repr(found).splitlines():
            print_line(console, line)
    return 0


def predict(
    network: str,
    videos: Sequence[str],
    *,
    probes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    top: int = 5,
    trust: bool = False,
) -> Answers:
    """The likeliest classes of videos.

    Args:
        network: a run of ``classification`` (a finetuned network), or any network with a probe that was kept.
        videos: a folder, a text or CSV list, or video files.
        probes: files that ``vidssl eval --save-probe`` wrote; by default those of the run, one a label.
        overrides: ``views={...}``, how clips are cut, by default as the network was tested; and those of
            ``vidssl eval`` for networks and how to run.
        top: how many classes are named.
        trust: as for ``vidssl eval``.

    Raises:
        UsageError: if the network names no classes, or no video can be read.
    """
    given = [word for word in overrides if word.startswith("views=")]
    others = [word for word in overrides if word not in given]
    source = videos_named(videos)
    if not probes and not networks.is_external(network):
        checkpoint = read_checkpoint(evaluate.find_checkpoint(network))
        recipe = recipe_of(checkpoint, "name a network with a recipe", trust=trust)
        if recipe.objective.type == "classification":
            return _finetuned(checkpoint, recipe, source, _views(given), others, top)
    return _probed(network, source, [Path(name) for name in probes], _views(given), others, top, trust)


def _views(words: Sequence[str]) -> ViewSampler | None:
    if not words:
        return None
    node = parse(words[-1].partition("=")[2], lambda line: f"override '{words[-1]}'", "views")
    return build.views(cast(PartSpec, convert(node, ViewsSpec)))


def _finetuned(
    checkpoint: Checkpoint,
    recipe: Recipe,
    source: DataSource,
    views: ViewSampler | None,
    overrides: Sequence[str],
    top: int,
) -> Answers:
    objective = trained_objective(recipe, checkpoint, lambda line: None)
    assert isinstance(objective, Classification), "its recipe says so"
    noted = _noted(checkpoint)
    label = str(noted.get("label", objective.label or "class"))
    classes = tuple(map(str, cast(Sequence[str], noted.get("classes", range(objective.num_classes)))))
    views = views or _tested_views(noted, recipe, checkpoint)
    answering = objective.answering().eval()
    tokenizer = None if objective.tokenizer is None else objective.tokenizer.tokenizer
    run = evaluate.eval_words(overrides).changed(recipe.run)
    device = speed.pick_device(run.device)
    autocast = speed.use_bfloat16(run.precision, device)
    table = _extract(answering.backbone, source, views, tokenizer, device, autocast, run.workers)
    with torch.no_grad():
        logits = answering.head.to(device)(table.vectors)
    average = cast(ViewAverage, noted.get("average", "probabilities"))
    return _answers(table, {label: (fitted.shares(logits, average, "logits"), classes)}, top)


def _noted(checkpoint: Checkpoint) -> Mapping[str, object]:
    """What the run kept of its classes; nothing where the checkpoint lies alone."""
    path = runfolder.RunFolder.of(checkpoint.path).classes
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: damaged: {error}") from error
    return found if isinstance(found, dict) else {}


def _tested_views(noted: Mapping[str, object], recipe: Recipe, checkpoint: Checkpoint) -> ViewSampler:
    """The views that the network was tested on, or those of its recipe's probes."""
    if "views" in noted:
        node = parse(
            str(noted["views"]), lambda line: f"{runfolder.RunFolder.of(checkpoint.path).classes}", "views"
        )
        _refuse_code(node, runfolder.RunFolder.of(checkpoint.path).classes)
        return build.views(cast(PartSpec, convert(node, ViewsSpec)))
    if recipe.data.probe is not None:
        return build.views(recipe.data.probe.views)
    raise UsageError(f"{checkpoint.path}: how are clips cut for it? Say it, e.g. {ALIKE}")


def _refuse_code(node: Node, file: Path) -> None:
    code = own_code.code_in(node)
    if code:
        raise UsageError(f"{file}: names code ({code[0].value}): name the views yourself, e.g. {ALIKE}")


def _probed(
    network: str,
    source: DataSource,
    files: Sequence[Path],
    views: ViewSampler | None,
    overrides: Sequence[str],
    top: int,
    trust: bool,
) -> Answers:
    asked = evaluate.asked_network(network, evaluate.eval_words(overrides), trust)
    subject = asked.make(lambda line: None)
    files = files or score_file.kept_probes(subject.scores, subject.stem)
    if not files:
        raise UsageError(
            f"{network}: names no classes: it is no finetuned network and has no probe. Fit one: vidssl eval "
            f"{network} --protocol linear --save-probe"
        )
    probes = [(path, fitted.read_probe(path)) for path in files]
    for path, probe in probes:
        if probe.weights != subject.weights:
            raise UsageError(f"{path}: was fitted to the features of other weights than {subject.source}'s")
    backbone = next(iter(subject.networks.values()))
    spec = subject.spec
    tokenizer = None
    if backbone.input_kind == "tokens" and spec.tokenizer is not None:
        tokenizer = build.tokenizer(spec.tokenizer, say=lambda line: None)
    device = speed.pick_device(spec.run.device)
    autocast = speed.use_bfloat16(spec.run.precision, device)
    found: dict[str, tuple[Tensor, tuple[str, ...]]] = {}
    for path, probe in probes:
        cut, layers, patches = _of_protocol(probe, path)
        table = _extract(
            backbone, source, views or cut, tokenizer, device, autocast, spec.run.workers, layers, patches
        )
        given = table.patches["normal"].to(device) if probe.reads_patches else table.vectors
        probe.module.to(device)
        found[probe.label] = (probe.probabilities(given), probe.classes)
    return _answers(table, found, top)


def _of_protocol(probe: fitted.FittedProbe, path: Path) -> tuple[ViewSampler, Layers, PatchType | None]:
    """Views, layers and patches of the protocol that a probe was fitted under."""
    node = parse(probe.protocol, lambda line: f"{path}:{line}")
    entries = node.mapping()
    cut = entries["data"].mapping()["views"]
    _refuse_code(cut, path)
    views = cast(PartSpec, convert(cut, ViewsSpec))
    layers = cast(Layers, convert(entries["layers"], Layers)) if "layers" in entries else "last"
    patches = cast(PatchType, convert(entries["patches"], PatchType)) if probe.reads_patches else None
    return build.views(views), layers, patches


def _extract(
    backbone: Backbone,
    source: DataSource,
    views: ViewSampler,
    tokenizer: Tokenizer | None,
    device: torch.device,
    autocast: bool,
    workers: int,
    layers: Layers = "last",
    patches: PatchType | None = None,
) -> features.FeatureTable:
    return extract(
        backbone,
        source,
        views,
        tokenizer=tokenizer,
        layers=layers,
        patches=patches,
        batch_size=8,
        workers=workers if len(source) > 8 else 0,
        device=device,
        autocast=autocast,
    )


def _answers(
    table: features.FeatureTable, found: Mapping[str, tuple[Tensor, tuple[str, ...]]], top: int
) -> Answers:
    answers = []
    for row, video in enumerate(table.keys):
        for label, (probabilities, classes) in found.items():
            best = probabilities[row].topk(min(top, len(classes)))
            names = tuple(classes[number] for number in best.indices.tolist())
            answers.append(Answer(video, label, names, tuple(best.values.tolist())))
    return Answers(tuple(answers), table.unreadable)

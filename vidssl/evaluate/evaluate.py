"""From a run and a protocol to scores."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from vidssl.build import build
from vidssl.build.registry import TOKENIZER, constructor_of
from vidssl.config import schema, strict_yaml
from vidssl.config.protocol import FinetuneProtocol, Protocol, finetunes, load_protocol
from vidssl.config.recipe import Recipe, RunSpec
from vidssl.data.sources.origins import videos_of
from vidssl.engine import distributed, runfolder, speed
from vidssl.engine.checkpoint import Checkpoint, read_checkpoint
from vidssl.engine.logging import Say, print_line, shown_messages, terminal
from vidssl.errors import UsageError, counted
from vidssl.evaluate import feature_cache, finetune, networks, score_file, subject as subjects
from vidssl.evaluate.report import NotKept, classes_of, report
from vidssl.evaluators.extract import ALONE
from vidssl.evaluators.features import FeatureTable, of_labels, shared_labels
from vidssl.evaluators.scores import probe
from vidssl.interfaces import Backbone, Objective
from vidssl.train.run import STOPPED

Tables = Mapping[str, tuple[FeatureTable, FeatureTable]]  # network -> features to learn from and to test on
_HOW_TO_RUN = ("device", "precision", "workers")


@dataclass(frozen=True)
class EvalWords:
    """The words ``key=value`` of an evaluation, by what they are for.

    Attributes:
        weights: of ``weights=``, None where there is none.
        network: of ``network.key=value``, without the ``network.``.
        data: recipe, run or checkpoint of ``data=`` whose labelled data are meant; None where there is none,
            or where the data themselves are written out.
        run: ``run.device=``, ``run.precision=`` and ``run.workers=``.
        rest: for the protocols.
    """

    weights: str | None
    network: tuple[str, ...]
    data: str | None
    run: tuple[str, ...]
    rest: tuple[str, ...]

    def for_protocol(self, finetunes: bool) -> tuple[str, ...]:
        """Overrides of a protocol; one that finetunes has a section ``run`` of its own."""
        return (*self.rest, *self.run) if finetunes else self.rest

    def changed(self, run: RunSpec) -> RunSpec:
        """How to run, with what these words change.

        Raises:
            UsageError: if a value is of another type or not among the choices.
        """
        node = strict_yaml.parse(strict_yaml.dump({"run": asdict(run)}), lambda line: "run")
        for word in self.run:
            node = strict_yaml.override(node, word)
        return schema.construct(node.mapping()["run"], RunSpec)


def eval_words(overrides: Sequence[str]) -> EvalWords:
    """Sort overrides by what they are for; of several for one key the last holds.

    Raises:
        UsageError: if what stands after ``data=`` is not valid YAML.
    """
    weights = data = None
    network, run, rest = [], [], []
    for word in overrides:
        key, _, value = word.partition("=")
        if key == "weights":
            weights = value
        elif key.startswith("network."):
            network.append(word.removeprefix("network."))
        elif key == "data" and isinstance(_plain(word, value), str):
            data = value
        elif key in (f"run.{name}" for name in _HOW_TO_RUN):
            run.append(word)
        else:
            rest.append(word)
    return EvalWords(weights, tuple(network), data, tuple(run), tuple(rest))


def _plain(word: str, value: str) -> object:
    return strict_yaml.parse(value, lambda line: f"override '{word}'", "data").value


def find_checkpoint(target: str | None) -> Path:
    """The checkpoint that a word names: a file, a run folder's newest, or without a word the newest run's.

    Raises:
        UsageError: if there is none.
    """
    if target is None:
        run = runfolder.newest_run(Path("runs"))
    else:
        path = runfolder.named_path(target)
        if path.is_file() and path.suffix == ".safetensors":
            return path
        run = runfolder.RunFolder(path)
    newest = run.newest_checkpoint() if target != "" else None
    if newest is None and target and (run.path / "recipe.yaml").is_file():
        raise UsageError(f"{run.path}: no checkpoint in it: its run saved none yet")
    if newest is None:
        raise runfolder.no_run(target or "")
    return newest


def evaluate_run(
    target: str | None,
    protocols: Sequence[str],
    overrides: Sequence[str],
    console: Console | None = None,
    *,
    trust: bool = False,
    save_probe: bool = False,
) -> int:
    """Score a network, print one table a protocol, keep the scores.

    A run's checkpoint stands beside the same network untrained.

    Args:
        target: run folder or checkpoint, or a network that is no run's; None for the newest run in ``runs``.
        protocols: names of files in ``evaluation``, or paths.
        overrides: ``key=value`` for the protocols; ``data=RECIPE`` for its labelled data; ``weights=FILE``
            and ``network.key=value`` for a network that is no run's.
        trust: use code and addresses that the recipe of a run or checkpoint names, whoever trained it.
        save_probe: keep the probes of the network beside its scores, for ``vidssl predict``.

    Returns:
        Exit code: 0, or 130 if finetuning was asked to stop before its last step.

    Raises:
        UsageError: for anything a user can mend.
    """
    with distributed.told_once_a_machine():
        words = eval_words(overrides)
        data = None
        if words.data is not None:
            data = _with_probe(networks.recipe_named(words.data, trust=trust), words.data)
        asked = asked_network(target, words, trust, data)
    with distributed.processes(asked.run.device, timeout_minutes=asked.run.timeout_minutes) as world:
        console = (console or terminal()) if world.first else terminal(quiet=True)
        with shown_messages(console):
            say = partial(print_line, console)
            subject = world.one_first(lambda: asked.make(say))
            read = [_protocol(name, words, data or asked.recipe) for name in protocols]
            for protocol in read:
                build.check_any_protocol(protocol)
                if save_probe:
                    score_file.check_kept(protocol)
                _check_sizes(subject, protocol)
            return score_subject(subject, read, console, world, save_probe=save_probe)


def score_subject(
    subject: subjects.Subject,
    protocols: Sequence[Protocol | FinetuneProtocol],
    console: Console,
    world: distributed.World = ALONE,
    *,
    save_probe: bool = False,
) -> int:
    """Score a network under protocols that were checked; exit code and errors as ``evaluate_run``.

    Args:
        world: processes that all call this. They share the work of the network; rank 0 fits probes,
            prints and writes.
    """
    store = feature_cache.FeatureStore(
        subject.spec,
        subject.networks,
        folder=subject.folder / "features",
        console=console,
        world=world,
        foreseeing=subject.foreseeing,
    )
    notes = [_seen(subject, protocol, store, world, save_probe) for protocol in protocols]
    store.encode_patches(each for each in protocols if isinstance(each, Protocol))
    lost: list[str] = []  # scores that could not be written, which is no reason to leave out the others
    for protocol, noted in zip(protocols, notes, strict=True):
        if isinstance(protocol, FinetuneProtocol):
            if not finetune.finetune_run(subject, protocol, console, noted):
                return STOPPED
            continue
        features = store.tables(protocol)
        lost += [world.from_first(partial(_scored, subject, protocol, features, noted, console))]
        if save_probe:
            world.from_first(partial(score_file.keep_probes, subject, protocol, features, console))
    if any(lost):
        raise UsageError("; ".join(filter(None, lost)))
    return 0


def _seen(
    subject: subjects.Subject,
    protocol: Protocol | FinetuneProtocol,
    store: feature_cache.FeatureStore,
    world: distributed.World,
    keep: bool,
) -> list[str]:
    """Notes on test videos that were learned from before; rank 0 compares."""
    assert protocol.data is not None, "refused without labelled videos"
    sources = [store.source(part) for part in (protocol.data.train, protocol.data.test)]
    shared = shared_labels(*(source.label_classes for source in sources))
    if isinstance(protocol, Protocol):  # what its probe cannot learn is refused before features are computed
        single = "few_labels" if protocol.few_labels else "--save-probe" if keep else ""
        of_labels(build.evaluator(protocol.evaluator), shared, str, lambda line: None, single=single)

    def compare() -> str:
        train, test = map(videos_of, sources)
        return json.dumps(subjects.check_seen(train, test, subject.pretraining, protocol.overlap))

    notes: list[str] = json.loads(world.from_first(compare))
    return notes


def _scored(
    subject: subjects.Subject, protocol: Protocol, features: Tables, notes: Sequence[str], console: Console
) -> str:
    """Fits the probes and reports; why the scores could not be written, or nothing."""
    evaluator, noted = build.evaluator(protocol.evaluator), dict.fromkeys(notes)
    scores = {
        name: probe(
            evaluator, *tables, average=protocol.average, seed=subject.spec.seed,
            few_labels=protocol.few_labels, overlap=protocol.overlap,
            say=noted.setdefault,  # of each network the same
        )
        for name, tables in features.items()
    }  # fmt: skip
    found = next(iter(features.values()))
    videos = dict(zip(("train", "test"), found, strict=True))
    try:
        report(subject, protocol, scores, videos, console, notes=[*noted], details=classes_of(*found))
    except NotKept as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class Asked:
    """The network to score, before it is made.

    Attributes:
        recipe: whose labelled videos are used unless others are named.
        run: device, precision and workers.
        make: makes it; gets the function that prints what was loaded.
    """

    recipe: Recipe | None
    run: RunSpec
    make: Callable[[Say], subjects.Subject]


def asked_network(
    target: str | None, words: EvalWords, trust: bool = False, data: Recipe | None = None
) -> Asked:
    """The network that a user names: a run's, or one that is no run's.

    Args:
        target: as for ``evaluate_run``.
        trust: likewise.
        data: a recipe whose labelled data are used; how to run is then taken from it where there is no other.

    Raises:
        UsageError: if there is none, or words are given that it has no use for.
    """
    if target is not None and networks.is_external(target):
        return _external(target, words, data, trust)
    return _of_run(target, words, trust)


def _of_run(target: str | None, words: EvalWords, trust: bool) -> Asked:
    """A checkpoint's encoder beside the same network untrained."""
    given = [] if words.weights is None else [f"weights={words.weights}"]
    given += [f"network.{word}" for word in words.network]
    if given:
        raise UsageError(
            f"{given[0]}: is for a network that is no run's, such as torchvision:swin3d_t; a run has its own"
        )
    checkpoint = read_checkpoint(find_checkpoint(target))
    recipe = _network_recipe(checkpoint, trust)
    run = words.changed(recipe.run)

    def make(say: Say) -> subjects.Subject:
        backbones = {
            "trained": subjects.trained_backbone(recipe, checkpoint),
            "untrained": _untrained(recipe),
        }

        def objectives() -> Mapping[str, Objective]:
            trained = subjects.trained_objective(recipe, checkpoint, say)
            return {"trained": trained, "untrained": subjects.untrained_objective(recipe)}

        return subjects.subject_of(
            checkpoint, replace(subjects.spec_of(recipe), run=run), backbones, objectives
        )

    return Asked(recipe, run, make)


def _external(target: str, words: EvalWords, data: Recipe | None, trust: bool) -> Asked:
    """A network that is no run's."""
    network = networks.ExternalNetwork(target, words.weights, words.network, trust)
    recipe = networks.external_recipe(network)
    like = recipe or data
    run = words.changed(RunSpec() if like is None else like.run)
    return Asked(recipe, run, lambda say: networks.external_subject(network, recipe, run, say))


def _with_probe(recipe: Recipe, word: str) -> Recipe:
    if recipe.data.probe is None:
        raise UsageError(f"data={word}: this recipe names no labelled videos (data.probe)")
    return recipe


def _check_sizes(subject: subjects.Subject, protocol: Protocol | FinetuneProtocol) -> None:
    """Refuses views of sizes that the network does not take."""
    assert protocol.data is not None, "refused without labelled videos"
    network, spec = next(iter(subject.networks.values())), subject.spec
    part = spec.tokenizer.part if spec.tokenizer is not None and network.input_kind == "tokens" else None
    with speed.on_meta():
        tokenizer = (
            None
            if part is None
            else schema.construct(part.node, constructor_of(part, TOKENIZER), apart=part.apart)
        )
    parts = [views for views in (protocol.data.views, protocol.train_views) if views is not None]
    for views in parts:
        for size in {size for slots in build.views(views).shapes.values() for size in slots}:
            try:
                network.grid(*(size if tokenizer is None else tokenizer.grid(*size)))
            except ValueError as error:
                shown = f"a clip of {counted(size[0], 'frame')} at {size[1]}x{size[2]}"
                raise views.node.error(f"{subject.title} does not take {shown}: {error}") from error


def _network_recipe(checkpoint: Checkpoint, trust: bool) -> Recipe:
    otherwise = "measure it in Python with vidssl.api.extract and vidssl.api.probe"
    recipe = subjects.recipe_of(checkpoint, otherwise, trust=trust)
    if recipe.backbone is None:
        raise UsageError(
            f"{checkpoint.path}: this run trained a tokenizer, which has no features to probe: "
            "--protocol tokenizer measures it"
        )
    return recipe


def _protocol(name: str, words: EvalWords, recipe: Recipe | None) -> Protocol | FinetuneProtocol:
    protocol = load_protocol(name, words.for_protocol(finetunes(name)), recipe)
    if protocol.data is None:
        raise UsageError(
            f"{name}: neither the protocol nor a recipe of the network names labelled videos: add those of "
            "another recipe (data=bevt) or e.g. "
            "'data.train={type: video_folder, root: FOLDER, part: train}' "
            "'data.test={type: video_folder, root: FOLDER, part: test}' "
            "'data.views={type: uniform_clips, num_frames: 16, frame_stride: 4, size: 112}'"
        )
    return protocol


def _untrained(recipe: Recipe) -> Backbone:
    """The same network as it was drawn before training, and before any ``backbone.init``."""
    torch.manual_seed(recipe.seed)
    return build.backbone(recipe, with_init=False)

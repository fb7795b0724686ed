"""Files of scores, what decides whether two may be compared, and the probes kept beside them."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import get_args

from rich.console import Console

from vidssl.build import build
from vidssl.build.registry import resolved_text
from vidssl.config.protocol import FinetuneProtocol, FrameOrder, Protocol
from vidssl.config.strict_yaml import dump_flow, parse, plain
from vidssl.data.sources.listing import group_of
from vidssl.engine import process, runfolder
from vidssl.engine.checkpoint import read_tensors
from vidssl.engine.facts import HIGHEST, Row, parsed
from vidssl.engine.logging import print_line
from vidssl.errors import UsageError
from vidssl.evaluate.subject import Subject
from vidssl.evaluators import differences, statistics
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.fitted import ENDING, FittedProbe, check_fits, fit_probes, save_probe
from vidssl.evaluators.scores import Interval, Measure, Score

FORMAT = "vidssl scores 2"
Scores = Mapping[str, Sequence[Score]]  # network -> its rows, the same rows for each
# how many videos go through the network together (but an evaluator's batches decide what it learns), and what
# searches neighbours, exactly in any case
NO_MATTER = ("name", "batch_size", "evaluator.backend")
# of a protocol that finetunes; with batches of another size it learns otherwise
NO_MATTER_FINETUNING = ("name", "test_batch_size", "labels", "compare_untrained")
CONTENT = "content"  # last word of keys that only scores have whose videos had known checksums
# last words of keys: where videos lie; which they are is hashed
WHERE = ("root", "list", "test_list", "manifest")


@dataclass(frozen=True)
class ScoreFile:
    """Scores of one network under one protocol, as they were written.

    Attributes:
        path: of the file.
        checkpoint: path of what was scored, or the name of a network that is no run's.
        step: of the checkpoint.
        recipe: text of the run's resolved recipe.
        protocol: text of the protocol.
        card: dotted key -> value of all that must be equal for scores to be compared.
        videos: "train" and "test" -> how many videos were found of how many listed.
        keys: of the test videos.
        truth: label -> class of each of them, -1 where it lacks the label.
        classes: label -> names of its classes; sets and numbers (``outputs_of``) stand there by their text.
        scores: network -> its rows.
        groups: of the test videos, empty for those of none; no names where there are no groups.
    """

    path: Path
    checkpoint: str
    step: int
    recipe: str
    protocol: str
    card: Mapping[str, str]
    videos: Mapping[str, tuple[int, int]]
    keys: tuple[str, ...]
    truth: Mapping[str, tuple[int, ...]]
    classes: Mapping[str, tuple[str, ...]]
    scores: Scores
    groups: tuple[str, ...] = ()

    @cached_property
    def name(self) -> str:
        """Of the protocol."""
        return flattened(self.protocol)["name"]

    @cached_property
    def card_sha256(self) -> str:
        """Of the card: equal for scores that may be compared."""
        return _hash(json.dumps(self.card, sort_keys=True))

    @cached_property
    def settings(self) -> Mapping[str, str]:
        """Dotted key -> value of the recipe."""
        return flattened(self.recipe)

    def classes_of(self, label: str) -> tuple[int, ...]:
        """Of the test videos that have the label, as they stand in ``Score.predicted``."""
        return tuple(number for number in self.truth[label] if number >= 0)

    def tested(self, label: str) -> differences.LabelledVideos:
        """The test videos that have the label."""
        return differences.tested_of(self.truth[label], self.groups)


def score_record(
    subject: Subject,
    protocol: str,
    scores: Scores,
    videos: Mapping[str, FeatureTable],
    notes: Sequence[str] = (),
) -> dict[str, object]:
    """Everything that a file of scores holds, for JSON.

    Args:
        protocol: its text.
        videos: those to learn from ("train"), if they were encoded, and to test on ("test").
        notes: on test videos that were learned from before, and on labels that are left out.
    """
    card = score_card(protocol, videos)
    test = videos["test"]
    truth = {label: numbers.tolist() for label, numbers in test.labels.items()}
    return {
        "format": FORMAT,
        "checkpoint": subject.source,
        "checkpoint_sha256": subject.weights,
        "step": subject.step,
        "recipe": subject.recipe,
        "protocol": protocol,
        "protocol_sha256": _hash(protocol),
        "card": card,
        "card_sha256": _hash(json.dumps(card, sort_keys=True)),
        "videos": {
            name: {
                "found": len(part.keys),
                "listed": part.num_listed,
                "sha256": videos_hash(part),
                "unreadable": part.unreadable,
            }
            for name, part in videos.items()
        },
        "notes": list(notes),
        "scores": {name: [_row(score) for score in rows] for name, rows in scores.items()},
        "predicted": {
            name: [_packed(score.predicted or score.added) for score in rows] for name, rows in scores.items()
        },
        "by_class": {
            name: [_by_class(score, truth[score.label], len(test.classes[score.label])) for score in rows]
            for name, rows in scores.items()
        },
        "truth": {label: _packed(numbers) for label, numbers in truth.items()},
        "differences": [
            differences.difference_record(each)
            for each in differences.network_differences(scores, differences.tested_videos(test))
        ],
        "classes": test.classes,
        "keys": test.keys,
        "groups": test.groups,
        "environment": runfolder.describe_environment(),
    }


def _by_class(score: Score, truth: Sequence[int], num_classes: int) -> dict[str, object]:
    """Counts for each class: its videos, how many are right, and which are named; of sets the precision."""
    if score.added:
        return {"average_precision": dict(score.precisions)} if score.precisions else {}
    known = [number for number in truth if number >= 0]
    matrix = differences.confusion(known, score.predicted, num_classes)
    found = {"videos": _packed(matrix.sum(1).tolist()), "right": _packed(matrix.diagonal().tolist())}
    return {**found, "confusion": differences.counted_rows(matrix)} if score.names_classes else dict(found)


def score_card(protocol: str, videos: Mapping[str, FeatureTable]) -> dict[str, str]:
    """Dotted key -> value of what must be equal for two scores to be compared: protocol and videos found."""
    settings = flattened(protocol)
    loose = NO_MATTER_FINETUNING if "objective.type" in settings else NO_MATTER
    kept = {
        key: value
        for key, value in settings.items()
        if key not in loose and key.rpartition(".")[2] not in WHERE and key.partition(".")[0] != "run"
    }
    for name, part in videos.items():
        kept[f"videos.{name}.found"] = str(len(part.keys))
        kept[f"videos.{name}.sha256"] = videos_hash(part)
        if part.origins and all(origin.sha256 for origin in part.origins):
            kept[f"videos.{name}.{CONTENT}"] = _hash("\n".join(origin.sha256 for origin in part.origins))
    return kept


def videos_hash(videos: FeatureTable) -> str:
    """Of the keys and labels of the videos that were found."""
    digest = hashlib.sha256("\n".join(videos.keys).encode())
    for label, numbers in sorted(videos.labels.items()):
        digest.update(f"\n{label} {_packed(numbers.tolist())}".encode())
    return digest.hexdigest()


def flattened(text: str) -> dict[str, str]:
    """Dotted key -> value on one line, of a spec's text."""
    found: dict[str, str] = {}

    def walk(value: object, path: str) -> None:
        if isinstance(value, Mapping) and value:
            for key, entry in value.items():
                walk(entry, f"{path}.{key}" if path else str(key))
        else:
            found[path] = value if isinstance(value, str) else dump_flow(value)

    walk(plain(parse(text, lambda line: f"line {line}")), "")
    return found


def read_scores(path: Path) -> ScoreFile:
    """A file of scores.

    Raises:
        UsageError: if it is none, is damaged, or was written by an earlier version.
    """
    try:
        record = Row(parsed(path.read_bytes()))
        if record.value("format", "") != FORMAT:
            raise UsageError(
                f"{path}: not scores that this version writes: make them again with 'vidssl eval'"
            )
        return _score_file(path, record)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{path}: damaged, or no file of scores ({error})") from error


def _score_file(path: Path, record: Row) -> ScoreFile:
    """Raises ValueError, naming the entry, if something in it does not fit."""
    keys, classes = record.many_texts("keys"), record.row("classes").names()
    # files of earlier versions hold no groups; names of files give those of UCF101 and HMDB51
    named = record.many_texts("groups", ()) or tuple(map(group_of, keys))
    groups = named if any(named) else ()
    truths, networks, videos = record.row("truth"), record.row("scores"), record.row("videos")
    truth = {label: _numbers(truths, label, len(names)) for label, names in classes.items()}
    if any(len(numbers) != len(keys) for numbers in truth.values()) or len(named) != len(keys):
        raise ValueError("'truth' and 'groups' must have as many entries as 'keys'")
    tested = {label: differences.tested_of(numbers, groups) for label, numbers in truth.items()}
    scores: dict[str, tuple[Score, ...]] = {}
    for network, _ in networks.entries():
        rows, predicted = networks.items(network), record.row("predicted").items(network)
        by_class = record.row("by_class", {}).items(network, [{}] * len(rows))
        if not len(rows) == len(predicted) == len(by_class):
            raise ValueError(f"'predicted' and 'by_class' must have a row for each of 'scores.{network}'")
        joined = [
            {**dict(Row(row, "scores").entries()), **dict(Row(of, "by_class").entries()), "predicted": given}
            for row, given, of in zip(rows, predicted, by_class, strict=True)
        ]
        scores[network] = tuple(_score(Row(row, "scores"), tested, classes) for row in joined)
    return ScoreFile(
        path=path,
        checkpoint=record.text("checkpoint"),
        step=record.whole("step"),
        recipe=record.text("recipe"),
        protocol=record.text("protocol"),
        card=record.texts("card"),
        videos={
            name: (videos.row(name).whole("found"), videos.row(name).whole("listed"))
            for name, _ in videos.entries()
        },
        keys=keys,
        truth=truth,
        classes=classes,
        scores=scores,
        groups=groups,
    )


def find_scores(target: Path) -> list[ScoreFile]:
    """The newest scores of a run under each protocol, or those of a file.

    Raises:
        UsageError: if there are none.
    """
    if not target.is_dir():
        if target.suffix != ".json":
            raise runfolder.no_run(str(target))
        return [read_scores(target)]
    newest: dict[str, Path] = {}
    for path in sorted(runfolder.RunFolder(target).scores.glob("*.json"), key=_step):
        newest[path.stem.rpartition("-step-")[0]] = path
    if not newest and not runfolder.RunFolder(target).scores.is_dir():
        raise runfolder.no_run(str(target))
    if not newest:
        raise UsageError(f"{target}: no scores in it; 'vidssl eval {target} --protocol linear' makes some")
    return [read_scores(path) for _, path in sorted(newest.items())]


def _step(path: Path) -> int:
    found = re.search(r"-step-(\d+)$", path.stem)
    return int(found[1]) if found else -1


def _score(
    row: Row, tested: Mapping[str, differences.LabelledVideos], classes: Mapping[str, Sequence[str]]
) -> Score:
    """A row of the file, with the packed classes that were named."""
    label, chance = row.one_of("label", list(classes)), row.real_or_none("chance")
    truth, spans = tested[label], row.row("bootstrap", {})  # an earlier version's intervals, without groups
    draws, precisions = tuple(row.reals("draws")), row.row("average_precision", {})
    measure: Measure = row.one_of("measure", get_args(Measure)) if "measure" in row else "top-1"
    least = -1e300 if measure == "R2" else 0.0
    named: tuple[int, ...] = ()
    added: tuple[float, ...] = ()
    if measure == "top-1":
        named = _numbers(row, "predicted", len(classes[label]) if chance is not None else HIGHEST)
    else:
        added = tuple(map(float, row.text("predicted").split()))
    if len(named or added) != len(truth.truth):
        raise ValueError(
            f"'scores.predicted' must have an entry for each test video with the label {label!r}"
        )
    found = Score(
        label=label,
        setting=row.text("setting", ""),
        frames=row.one_of("frames", get_args(FrameOrder)),
        top1=row.real("top1", lowest=least),
        low=row.real("low", lowest=least),
        high=row.real("high", lowest=least),
        top5=row.real_or_none("top5"),
        class_mean=row.real("class_mean", lowest=least),
        chance=chance,
        num_train=row.whole("num_train"),
        num_test=row.whole("num_test"),
        predicted=named,
        draws=draws,
        spread=row.real_or_none("spread"),
        top5_interval=_interval(spans, "top5") if "top5" in spans else _interval(row, "top5_interval"),
        class_interval=_interval(spans, "class_mean") or _interval(row, "class_interval"),
        class_top5=row.real_or_none("class_top5"),
        class_top5_interval=_interval(row, "class_top5_interval"),
        class_chance=row.real_or_none("class_chance"),
        unbalanced=row.flag("unbalanced", False),
        num_groups=None if row.value("num_groups", None) is None else row.whole("num_groups"),
        chosen=row.text("chosen", ""),
        measure=measure,
        added=added,
        precisions=tuple((name, precisions.real(name)) for name, _ in precisions.entries()),
        mae=row.real_or_none("mae"),
        mae_interval=_interval(row, "mae_interval"),
    )
    if "bootstrap" not in row or truth.groups is None or draws:
        return found
    right = [a == b for a, b in zip(named, truth.truth, strict=True)]
    top1, by_class = (statistics.accuracy(right, units, truth.groups) for units in (None, truth.truth))
    return replace(
        found,
        low=top1.low,
        high=top1.high,
        class_interval=(by_class.low, by_class.high),
        num_groups=len(set(truth.groups)),
        top5_interval=None,
        class_top5_interval=None,
    )


def _interval(row: Row, name: str) -> Interval | None:
    if row.value(name, None) is None:
        return None
    ends = row.parts(name, "low", "high")
    return ends.real("low"), ends.real("high")


def _numbers(row: Row, name: str, count: int) -> tuple[int, ...]:
    """Class numbers below ``count`` in a line of text, -1 for none."""
    try:
        numbers = tuple(map(int, row.text(name).split()))
    except ValueError as error:
        raise ValueError(f"'{name}' must be numbers of classes ({error})") from None
    if not all(-1 <= number < count for number in numbers):
        raise ValueError(f"'{name}' must be numbers of classes below {count}")
    return numbers


def _row(score: Score) -> dict[str, object]:
    row = asdict(score)
    del row["predicted"], row["added"], row["precisions"]  # kept apart, packed or by class
    return row


def _packed(numbers: Sequence[float]) -> str:
    """``3 4 -1``: a line of text instead of one a number."""
    return " ".join(map(str, numbers))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def check_kept(protocol: Protocol | FinetuneProtocol) -> None:
    """Refuse, before features are computed, a protocol whose probe cannot be kept.

    Raises:
        UsageError: with what can.
    """
    if isinstance(protocol, FinetuneProtocol):
        raise UsageError(
            f"--save-probe: '{protocol.name}' finetunes and keeps whole networks, for vidssl predict "
            "RUN/finetune/NAME"
        )
    if protocol.few_labels is not None:
        raise UsageError(f"--save-probe: '{protocol.name}' fits many probes, on few labels each")
    check_fits(build.evaluator(protocol.evaluator))


def keep_probes(
    subject: Subject,
    protocol: Protocol,
    features: Mapping[str, tuple[FeatureTable, FeatureTable]],
    console: Console,
) -> str:
    """Fits the probe of a subject's network again, as it was scored, and writes it; an empty text."""
    evaluator = build.evaluator(protocol.evaluator)
    train, test = next(iter(features.values()))
    process.make_folder(subject.scores)
    say = partial(print_line, console)
    found = fit_probes(evaluator, train, test, protocol.average, subject.spec.seed, say)
    for label, (module, classes) in found.items():
        path = subject.scores / f"{protocol.name}-{label}-{subject.stem}{ENDING}"
        kept = FittedProbe(
            module=module,
            kind=evaluator.score_kind,
            label=label,
            classes=classes,
            average=protocol.average,
            protocol=resolved_text(protocol),
            weights=subject.weights,
        )
        save_probe(path, kept)
        say(f"Probe: {path}")
    return ""


def kept_probes(scores: Path, stem: str) -> list[Path]:
    """Probes of a checkpoint among the scores of its run, the newest of each label."""
    newest: dict[str, Path] = {}
    found = [path for path in scores.glob(f"*{ENDING}") if path.name.endswith(f"-{stem}{ENDING}")]
    for path in sorted(found, key=lambda path: path.stat().st_mtime):
        newest[read_tensors(path, only=())[0].get("label", path.name)] = path
    return sorted(newest.values())

"""Files of scores: the numbers, and all that decides whether two of them may be compared."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vidssl.config.strict_yaml import dump_flow, parse, plain
from vidssl.data.sources.official.groups import group_of
from vidssl.engine.runfolder import RunFolder, describe_environment, no_run
from vidssl.errors import UsageError
from vidssl.evaluate.subject import Subject
from vidssl.evaluators.confusion import confusion, counted
from vidssl.evaluators.differences import (
    LabelledVideos,
    difference_record,
    network_differences,
    tested_of,
    tested_videos,
)
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.scores import Score
from vidssl.evaluators.statistics import accuracy

FORMAT = "vidssl scores 2"
Scores = Mapping[str, Sequence[Score]]  # network -> its rows, the same rows for each
# how many videos go through the network together (but an evaluator's batches decide what it learns), and what
# searches neighbours, exactly in any case
NO_MATTER = ("name", "batch_size", "evaluator.backend")
# of a protocol that finetunes; with batches of another size it learns otherwise
NO_MATTER_FINETUNING = ("name", "test_batch_size", "labels", "compare_untrained")
CONTENT = "content"  # last word of keys that only scores have whose videos had known checksums
WHERE = ("root", "list", "test_list")  # last words of keys: where videos lie; which they are is hashed


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
        classes: label -> names of its classes.
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

    def tested(self, label: str) -> LabelledVideos:
        """The test videos that have the label."""
        return tested_of(self.truth[label], self.groups)


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
        notes: on test videos that were learned from before.
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
        "predicted": {name: [_packed(score.predicted) for score in rows] for name, rows in scores.items()},
        "by_class": {
            name: [_by_class(score, truth[score.label], len(test.classes[score.label])) for score in rows]
            for name, rows in scores.items()
        },
        "truth": {label: _packed(numbers) for label, numbers in truth.items()},
        "differences": [difference_record(each) for each in network_differences(scores, tested_videos(test))],
        "classes": test.classes,
        "keys": test.keys,
        "groups": test.groups,
        "environment": describe_environment(),
    }


def _by_class(score: Score, truth: Sequence[int], num_classes: int) -> dict[str, object]:
    """Counts for each class: its videos, how many are right, and, where classes are named, which they are."""
    known = [number for number in truth if number >= 0]
    matrix = confusion(known, score.predicted, num_classes)
    found = {"videos": _packed(matrix.sum(1).tolist()), "right": _packed(matrix.diagonal().tolist())}
    return {**found, "confusion": counted(matrix)} if score.names_classes else dict(found)


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
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path}: damaged, or no file of scores ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UsageError(f"{path}: not scores that this version writes: make them again with 'vidssl eval'")
    keys = tuple(record["keys"])
    # files of earlier versions hold no groups; names of files give those of UCF101 and HMDB51
    named = tuple(record.get("groups") or map(group_of, keys))
    groups = named if any(named) else ()
    truth = {label: _unpacked(numbers) for label, numbers in record["truth"].items()}
    scores = {
        network: tuple(
            _score(row, predicted, tested_of(truth[row["label"]], groups))
            for row, predicted in zip(rows, record["predicted"][network], strict=True)
        )
        for network, rows in record["scores"].items()
    }
    return ScoreFile(
        path=path,
        checkpoint=record["checkpoint"],
        step=record["step"],
        recipe=record["recipe"],
        protocol=record["protocol"],
        card=record["card"],
        videos={name: (part["found"], part["listed"]) for name, part in record["videos"].items()},
        keys=keys,
        truth=truth,
        classes={label: tuple(names) for label, names in record["classes"].items()},
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
            raise no_run(str(target))
        return [read_scores(target)]
    newest: dict[str, Path] = {}
    for path in sorted(RunFolder(target).scores.glob("*.json"), key=_step):
        newest[path.stem.rpartition("-step-")[0]] = path
    if not newest and not RunFolder(target).scores.is_dir():
        raise no_run(str(target))
    if not newest:
        raise UsageError(f"{target}: no scores in it; 'vidssl eval {target} --protocol linear' makes some")
    return [read_scores(path) for _, path in sorted(newest.items())]


def _step(path: Path) -> int:
    found = re.search(r"-step-(\d+)$", path.stem)
    return int(found[1]) if found else -1


def _score(row: Mapping[str, Any], predicted: str, tested: LabelledVideos) -> Score:
    values = {**row, "draws": tuple(row["draws"]), "predicted": _unpacked(predicted)}
    if "bootstrap" in values:  # an earlier version's intervals, which knew no groups
        spans = values.pop("bootstrap")
        values |= {"top5_interval": spans["top5"], "class_interval": spans["class_mean"]}
        if tested.groups is not None and not values["draws"]:
            right = [a == b for a, b in zip(values["predicted"], tested.truth, strict=True)]
            top1 = accuracy(right, None, tested.groups)
            by_class = accuracy(right, tested.truth, tested.groups)
            values |= {"low": top1.low, "high": top1.high, "class_interval": (by_class.low, by_class.high)}
            values |= {"num_groups": len(set(tested.groups)), "top5_interval": None}
    for name in ("top5_interval", "class_interval"):
        values[name] = values[name] and tuple(values[name])
    return Score(**values)


def _row(score: Score) -> dict[str, object]:
    row = asdict(score)
    del row["predicted"]  # kept apart, packed
    return row


def _packed(numbers: Sequence[int]) -> str:
    """``3 4 -1``: a line of text instead of one a number."""
    return " ".join(map(str, numbers))


def _unpacked(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

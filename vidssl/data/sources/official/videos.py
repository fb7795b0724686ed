"""Video data sets by the lists that they are published with: one reader, and what each list looks like."""

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from vidssl.data.sources.listing import VIDEO_EXTENSIONS, Listing, check_choice, select, shared_groups
from vidssl.data.sources.manifest import Segment
from vidssl.data.sources.official.listed import (
    DataSet,
    OfficialEntry,
    OfficialList,
    find_listed,
    without_extension,
)
from vidssl.data.sources.video_files import ListedVideos
from vidssl.errors import counted

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class OfficialVideos(ListedVideos):
    """The listed videos that are there. A video's key is its path below the root; its label is "class".

    Args:
        max_missing_share: fraction of the listed videos that may be missing.
        limit, manifest, decoder, short, min_frames, square_pixels: see ``VideoKeys``.
    """

    max_missing_share: float = 0.01
    data_set: ClassVar[DataSet]

    @abstractmethod
    def official_list(self) -> OfficialList:
        """The part of the data set that the keys name."""

    def listed(self) -> tuple[Listing, int]:
        official = self.official_list()
        listing, num_listed = find_listed(
            self.data_set,
            official,
            Path(self.root),
            VIDEO_EXTENSIONS,
            max_missing_share=self.max_missing_share,
        )
        listing = select(listing, limit=self.limit, where=official.what)
        return listing, num_listed if self.limit is None else len(listing.files)


@dataclass(kw_only=True, eq=False)
class SplitVideos(OfficialVideos):
    """A data set with three official splits into train and test.

    Args:
        annotations: folder of the lists.
        part, split: which videos.
    """

    annotations: str
    part: Literal["train", "test"]
    split: Literal[1, 2, 3] = 1

    @abstractmethod
    def read_split(self) -> tuple[tuple[str, ...], tuple[OfficialEntry, ...], tuple[OfficialEntry, ...]]:
        """Classes in number order, the videos of train and those of test."""

    def official_list(self) -> OfficialList:
        """Warns of test videos that are cut from the same video as a training video.

        Raises:
            UsageError: if a video is in both.
        """
        check_choice("part", self.part, ("train", "test"))
        classes, train, test = self.read_split()
        name = f"{self.data_set.name} split {self.split}"
        keys = [[f"{entry.folder}/{entry.names[0]}.avi" for entry in part] for part in (train, test)]
        both = sorted(set(keys[0]) & set(keys[1]))
        if both:
            raise self.data_set.error(
                f"{name}: {both[0]} and {len(both) - 1} more are listed for train and for test"
            )
        leaks = shared_groups(*keys)
        if leaks:
            _log.warning(
                "%s leaks: %d of %d test videos are cut from the same video as a training video, such as %s "
                "and %s. The official lists keep these apart: docs/data/%s.md",
                *(name, len(leaks), len(test), *leaks[0], self.data_set.page),
            )
        return OfficialList(f"{name} {self.part}", train if self.part == "train" else test, classes)


KINETICS = DataSet(
    "Kinetics",
    "root holds ID_000010_000020.mp4 (start and end in seconds, six digits each) or ID.mp4 (the clip or the "
    "whole video), in a folder for each class or not; list is the CSV file of the part with the columns "
    "youtube_id, time_start, time_end and, where it has labels, label",
    "kinetics",
)
_COLUMNS = ("youtube_id", "time_start", "time_end")


@dataclass(kw_only=True, eq=False)
class Kinetics(OfficialVideos):
    """Kinetics-400, 600 or 700 by an official CSV list, classes in the order of their names.

    Copies differ, for videos vanish from the web: ``max_missing_share`` states what yours may lack.

    Args:
        root: folder of the videos of the part, relative to the working folder; ``replacement...`` folders
            below it take precedence.
        list: the CSV file of the part (``train.csv``, ``val.csv``).
        max_missing_share, limit, manifest, decoder, short, min_frames, square_pixels: see ``OfficialVideos``.
    """

    data_set = KINETICS
    list: str

    def official_list(self) -> OfficialList:
        return _read_kinetics(Path(self.list))


def _read_kinetics(path: Path) -> OfficialList:
    wanted, unlabelled = [], 0
    for line, row in KINETICS.rows(path, _COLUMNS):
        try:
            times = [float(row[name]) for name in _COLUMNS[1:]]
            start, end = map(int, times)
        except (OverflowError, ValueError):
            raise KINETICS.error(
                f"{path}:{line}: times must be in seconds, got {row['time_start']!r} and {row['time_end']!r}"
            ) from None
        video, label = row["youtube_id"], row.get("label") or None
        unlabelled += label is None
        names = (f"{video}_{start:06d}_{end:06d}", video)
        segment = Segment(times[0], times[1]) if 0 <= times[0] < times[1] else None
        wanted.append(OfficialEntry(names, label or "", label, segment))
    if not wanted:
        raise KINETICS.error(f"{path}: the list is empty")
    if 0 < unlabelled < len(wanted):
        raise KINETICS.error(f"{path}: {counted(unlabelled, 'video', of=len(wanted), verb='have')} no label")
    classes = tuple(sorted({entry.label for entry in wanted if entry.label is not None}))
    return OfficialList(f"Kinetics {path.name}", tuple(wanted), classes)


UCF = DataSet(
    "UCF101",
    "root holds ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi and so on, annotations holds classInd.txt, "
    "trainlist01.txt to 03 and testlist01.txt to 03",
    "ucf101",
)


@dataclass(kw_only=True, eq=False)
class UCF101(SplitVideos):
    """UCF101 by its official lists, classes in the order of classInd.txt.

    Warns where clips of one group, cut from one video, are in both train and test.

    Args:
        root: folder of the videos (``UCF-101``), relative to the working folder.
        annotations: folder of the lists (``ucfTrainTestlist``).
        part, split: which list.
        max_missing_share, limit, manifest, decoder, short, min_frames, square_pixels: see ``OfficialVideos``.
    """

    data_set = UCF

    def read_split(self) -> tuple[tuple[str, ...], tuple[OfficialEntry, ...], tuple[OfficialEntry, ...]]:
        folder = Path(self.annotations)
        classes = _read_ucf_classes(folder / "classInd.txt")
        train, test = (
            _read_ucf_list(folder / f"{name}list{self.split:02d}.txt", classes) for name in ("train", "test")
        )
        return classes, train, test


def _read_ucf_classes(path: Path) -> tuple[str, ...]:
    """Names by number, which count from 1 in the file."""
    names: dict[int, str] = {}
    for line, words in UCF.lines(path):
        if len(words) != 2 or not words[0].isdigit() or int(words[0]) in names:
            raise UCF.error(f"{path}:{line}: expected a new number and a class, got {' '.join(words)!r}")
        names[int(words[0])] = words[1]
    if sorted(names) != list(range(1, len(names) + 1)) or not names:
        raise UCF.error(f"{path}: classes must be numbered from 1 on without a gap")
    return tuple(names[number] for number in sorted(names))


def _read_ucf_list(path: Path, classes: tuple[str, ...]) -> tuple[OfficialEntry, ...]:
    """The videos of a list; numbers of classes, which only train lists have, must agree with folders."""
    wanted = []
    for line, words in UCF.lines(path):
        folder, slash, name = words[0].partition("/")
        if not slash or len(words) > 2 or folder not in classes:
            raise UCF.error(
                f"{path}:{line}: expected CLASS/VIDEO.avi with a class of classInd.txt, got "
                f"{' '.join(words)!r}"
            )
        number = str(classes.index(folder) + 1)
        if words[1:] not in ([], [number]):
            raise UCF.error(
                f"{path}:{line}: class {words[1]}, but {folder} is number {number} in classInd.txt"
            )
        stem = without_extension(name)
        # the lists write HandStand where some copies of the files have Handstand
        spellings = dict.fromkeys((stem, stem.replace("HandStand", "Handstand")))
        wanted.append(OfficialEntry(tuple(spellings), folder, folder))
    if not wanted:
        raise UCF.error(f"{path}: the list is empty")
    return tuple(wanted)


HMDB = DataSet(
    "HMDB51",
    "root holds brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi and so on, annotations holds "
    "brush_hair_test_split1.txt and so on, a file for each class and split",
    "hmdb51",
)
_TRAIN, _TEST = "1", "2"  # and "0" for clips that a split leaves out


@dataclass(kw_only=True, eq=False)
class HMDB51(SplitVideos):
    """HMDB51 by its official lists, classes in the order of their names.

    Warns where clips cut from one video are in both train and test, as their names tell.

    Args:
        root: folder of the videos, relative to the working folder.
        annotations: folder of the lists (``testTrainMulti_7030_splits``).
        part, split: which clips; a split leaves some out of both parts.
        max_missing_share, limit, manifest, decoder, short, min_frames, square_pixels: see ``OfficialVideos``.
    """

    data_set = HMDB

    def read_split(self) -> tuple[tuple[str, ...], tuple[OfficialEntry, ...], tuple[OfficialEntry, ...]]:
        classes, marked = _read_hmdb_split(Path(self.annotations), self.split)
        return classes, marked[_TRAIN], marked[_TEST]


def _read_hmdb_split(
    folder: Path, split: int
) -> tuple[tuple[str, ...], dict[str, tuple[OfficialEntry, ...]]]:
    """Classes, and the clips with each mark."""
    ending = f"_test_split{split}.txt"
    paths = sorted(path for path in folder.glob(f"*{ending}") if not path.name.startswith("."))
    if not paths:
        raise HMDB.error(f"{folder}: no file in it ends in {ending}")
    classes = tuple(path.name.removesuffix(ending) for path in paths)
    marked: dict[str, list[OfficialEntry]] = {"0": [], _TRAIN: [], _TEST: []}
    for action, path in zip(classes, paths, strict=True):
        for line, words in HMDB.lines(path):
            if len(words) != 2 or words[1] not in marked:
                raise HMDB.error(
                    f"{path}:{line}: expected a video and 0, 1 (train) or 2 (test), got {' '.join(words)!r}"
                )
            marked[words[1]].append(OfficialEntry((without_extension(words[0]),), action, action))
    if not marked[_TRAIN] or not marked[_TEST]:
        raise HMDB.error(f"{folder}: the files of split {split} mark no video 1 (train) or none 2 (test)")
    return classes, {mark: tuple(wanted) for mark, wanted in marked.items()}


SSV2 = DataSet(
    "Something-Something v2",
    "root holds 1.webm, 2.webm and so on, annotations holds labels.json, train.json, validation.json and "
    "test.json, or the same with something-something-v2- before their names",
    "something_something_v2",
)
_PREFIXES = ("", "something-something-v2-")


@dataclass(kw_only=True, eq=False)
class SomethingSomethingV2(OfficialVideos):
    """Something-Something v2 by its official JSON files, classes in the order of labels.json.

    A video's class is its template, without the brackets around what is filled in. The test part has labels
    only where ``test-answers.csv`` lies beside the others.

    Args:
        root: folder of the videos (``20bn-something-something-v2``), relative to the working folder.
        annotations: folder of the JSON files (``labels``).
        part: which list.
        max_missing_share, limit, manifest, decoder, short, min_frames, square_pixels: see ``OfficialVideos``.
    """

    data_set = SSV2
    annotations: str
    part: Literal["train", "validation", "test"]

    def official_list(self) -> OfficialList:
        check_choice("part", self.part, ("train", "validation", "test"))
        return _read_ssv2(Path(self.annotations), self.part)


def _read_ssv2(folder: Path, part: str) -> OfficialList:
    classes = _read_templates(_ssv2_path(folder, "labels"))
    path = _ssv2_path(folder, part)
    answers = _answers(folder / "test-answers.csv") if part == "test" else {}
    rows = SSV2.entries(path, ("id",) if part == "test" else ("id", "template"))
    known, wanted = set(classes), []
    for row in rows:
        name = str(row["id"])
        label = answers.get(name) if part == "test" else _without_brackets(row["template"])
        if label not in known and not (part == "test" and not answers):
            raise SSV2.error(f"{path}: video {name} is of the class {label!r}, which labels.json lacks")
        wanted.append(OfficialEntry((name,), "", label))
    labelled = part != "test" or bool(answers)
    return OfficialList(f"Something-Something v2 {part}", tuple(wanted), classes if labelled else ())


def _ssv2_path(folder: Path, name: str) -> Path:
    """The file of that name, under whichever of its two names; under the first if there is none."""
    paths = [folder / f"{prefix}{name}.json" for prefix in _PREFIXES]
    return next((path for path in paths if path.is_file()), paths[0])


def _without_brackets(template: object) -> str:
    return str(template).replace("[", "").replace("]", "")


def _read_templates(path: Path) -> tuple[str, ...]:
    """Templates in the order of their numbers, which the file holds as text and which count from 0."""
    given = SSV2.json(path)
    if not isinstance(given, Mapping):
        raise SSV2.error(f"{path}: it must map each template to a number")
    names = {str(number): str(name) for name, number in given.items()}
    if not names or set(names) != {str(number) for number in range(len(given))}:
        raise SSV2.error(f"{path}: its {len(given)} templates must be numbered from 0 on without a gap")
    return tuple(names[str(number)] for number in range(len(names)))


def _answers(path: Path) -> dict[str, str]:
    """Video -> template of the test part, from lines "id;template"; empty if there is no such file."""
    if not path.is_file():
        return {}
    lines = [line.strip() for line in SSV2.text(path).splitlines() if line.strip()]
    pairs = (line.partition(";") for line in lines)
    return {video.strip(): _without_brackets(template.strip()) for video, _, template in pairs}


DIVING = DataSet(
    "Diving48",
    "root holds _8Vy3dlHg2w_00000.mp4 and so on, annotations holds Diving48_vocab.json, "
    "Diving48_V2_train.json and Diving48_V2_test.json (version 1: Diving48_train.json, Diving48_test.json)",
    "diving48",
)


@dataclass(kw_only=True, eq=False)
class Diving48(OfficialVideos):
    """Diving48 by its official JSON files, classes in the order of Diving48_vocab.json.

    Scores of the two versions of the labels are not comparable. Files are read whole: they are cut to one
    dive each, and ``start_frame`` and ``end_frame`` of the lists are not used.

    Args:
        root: folder of the videos (``rgb``), relative to the working folder.
        annotations: folder of the JSON files.
        part: which list.
        version: of the labels; 2 is the corrected one.
        max_missing_share, limit, manifest, decoder, short, min_frames, square_pixels: see ``OfficialVideos``.
    """

    data_set = DIVING
    annotations: str
    part: Literal["train", "test"]
    version: Literal[1, 2] = 2

    def official_list(self) -> OfficialList:
        check_choice("part", self.part, ("train", "test"))
        folder = Path(self.annotations)
        path = folder / f"Diving48_{'V2_' if self.version == 2 else ''}{self.part}.json"
        classes = _read_dives(folder / "Diving48_vocab.json")
        return OfficialList(
            f"Diving48 version {self.version} {self.part}", _read_diving(path, classes), classes
        )


def _read_dives(path: Path) -> tuple[str, ...]:
    """A dive's take-off, somersaults, twists and position as one name."""
    given = DIVING.json(path)
    if not isinstance(given, list) or not all(isinstance(dive, list) and dive for dive in given):
        raise DIVING.error(f"{path}: it must be a list of dives, each a list of words")
    names = tuple(" ".join(str(word) for word in dive) for dive in given)
    if len(set(names)) < len(names):
        raise DIVING.error(f"{path}: a dive is in it twice")
    return names


def _read_diving(path: Path, classes: tuple[str, ...]) -> tuple[OfficialEntry, ...]:
    wanted, late = [], 0
    for row in DIVING.entries(path, ("vid_name", "label")):
        name, label = str(row["vid_name"]), row["label"]
        if not isinstance(label, int) or not 0 <= label < len(classes):
            raise DIVING.error(
                f"{path}: {name} has the label {label!r}, Diving48_vocab.json {len(classes)} dives from 0 on"
            )
        late += row.get("start_frame") not in (None, 0)
        wanted.append(OfficialEntry((without_extension(name),), "", classes[label]))
    if late:
        entries = f"{counted(late, 'entry', 'entries', verb='start')}"
        _log.warning("%s: %s later than frame 0; such files are read whole", path, entries)
    return tuple(wanted)


HOWTO = DataSet(
    "HowTo100M",
    "root holds ID.mp4, ID.webm or ID.mkv, in folders or not; list is HowTo100M_v1.csv, or a text file with "
    "an ID on each line",
    "howto100m",
)


@dataclass(kw_only=True, eq=False)
class HowTo100M(OfficialVideos):
    """HowTo100M by its list of YouTube ids, without labels.

    Copies differ, for videos vanish from the web: ``max_missing_share`` states what yours may lack.

    Args:
        root: folder of the videos, relative to the working folder.
        list: ``HowTo100M_v1.csv``, or a text file with an id on each line.
        max_missing_share, limit, manifest, decoder, short, min_frames, square_pixels: see ``OfficialVideos``.
    """

    data_set = HOWTO
    list: str

    def official_list(self) -> OfficialList:
        path = Path(self.list)
        return OfficialList(
            f"HowTo100M {path.name}", tuple(OfficialEntry((name,)) for name in _read_ids(path))
        )


def _read_ids(path: Path) -> Sequence[str]:
    if "," in HOWTO.text(path).lstrip().split("\n")[0]:
        ids = [row["video_id"] for _, row in HOWTO.rows(path, ("video_id",))]
    else:
        ids = [_only_word(path, line, words) for line, words in HOWTO.lines(path)]
        ids = ids[1:] if ids[:1] == ["video_id"] else ids
    if not ids:
        raise HOWTO.error(f"{path}: the list is empty")
    return ids


def _only_word(path: Path, line: int, words: Sequence[str]) -> str:
    if len(words) > 1:
        raise HOWTO.error(f"{path}:{line}: expected one id, got {' '.join(words)[:80]!r}")
    return without_extension(words[0].rpartition("/")[2])


EPIC = DataSet(
    "EPIC-KITCHENS-100",
    "root holds P01/videos/P01_01.MP4 or P01/P01_01.MP4 and so on, annotations holds EPIC_100_train.csv and "
    "EPIC_100_validation.csv and, for the names of classes, EPIC_100_verb_classes.csv and "
    "EPIC_100_noun_classes.csv",
    "epic_kitchens_100",
)
_SEGMENTS = ("narration_id", "video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class")
_FIRST_FRAME = 1e-3  # seconds: of an action that begins too early for anything else to be seen


@dataclass(frozen=True)
class _Narrated:
    """A row of EPIC-KITCHENS' lists, times in seconds."""

    name: str
    video: str
    start: float
    stop: float
    verb: int
    noun: int


@dataclass(kw_only=True, eq=False)
class EpicKitchens100(OfficialVideos):
    """EPIC-KITCHENS-100 by its official CSV files; labels "verb", "noun" and "action", the pair of both.

    A sample is a narrated segment of a video, or what is seen before it; both parts number classes alike.

    Args:
        root: folder of the videos, relative to the working folder.
        annotations: folder of the CSV files.
        part: which list.
        anticipate: seconds between the end of what is seen and the action, 1 in the challenge; null for the
            action's own segment.
        observe: seconds that are seen; fewer of an action near the beginning of its video.
        before: the "start" of the action, as the challenge defines it (nothing of the action is seen), or its
            "stop", from which V-JEPA 2's release counts in testing.
        known_actions: whether validation leaves out the actions that train lacks, as V-JEPA 2's release does.
        max_missing_share, limit, manifest, decoder, short, min_frames, square_pixels: see ``OfficialVideos``.
    """

    data_set = EPIC
    annotations: str
    part: Literal["train", "validation"]
    anticipate: float | None = None
    observe: float = 4.0
    before: Literal["start", "stop"] = "start"
    known_actions: bool = False

    def official_list(self) -> OfficialList:
        check_choice("part", self.part, ("train", "validation"))
        check_choice("before", self.before, ("start", "stop"))
        if self.observe <= 0 or (self.anticipate or 0) < 0:
            raise ValueError(
                f"observe must be above 0 and anticipate at least 0, got {self.observe} and {self.anticipate}"
            )
        folder = Path(self.annotations)
        parts = {part: _read_narrated(folder / f"EPIC_100_{part}.csv") for part in ("train", "validation")}
        both = [row for rows in parts.values() for row in rows]
        verbs = _read_kitchen_classes(folder / "EPIC_100_verb_classes.csv", {row.verb for row in both})
        nouns = _read_kitchen_classes(folder / "EPIC_100_noun_classes.csv", {row.noun for row in both})

        def action(row: _Narrated) -> str:
            return f"{verbs[row.verb]} {nouns[row.noun]}"

        rows, known = parts[self.part], {(row.verb, row.noun) for row in parts["train"]}
        if self.known_actions and self.part == "validation":
            rows = [row for row in rows if (row.verb, row.noun) in known]
        wanted = tuple(
            OfficialEntry(
                (row.name, row.video),
                segment=self._segment(row),
                labels={"verb": verbs[row.verb], "noun": nouns[row.noun], "action": action(row)},
            )
            for row in rows
        )
        actions = {(row.verb, row.noun): action(row) for row in both}
        classes = {
            "verb": tuple(verbs[number] for number in sorted(verbs)),
            "noun": tuple(nouns[number] for number in sorted(nouns)),
            "action": tuple(actions[pair] for pair in sorted(actions)),
        }
        return OfficialList(f"{EPIC.name} {self.part}", wanted, label_classes=classes, untrimmed=True)

    def _segment(self, row: _Narrated) -> Segment:
        if self.anticipate is None:
            return Segment(row.start, row.stop)
        end = max((row.start if self.before == "start" else row.stop) - self.anticipate, _FIRST_FRAME)
        return Segment(max(0.0, end - self.observe), end)


def _read_narrated(path: Path) -> list[_Narrated]:
    found = []
    for line, row in EPIC.rows(path, _SEGMENTS):
        try:
            start, stop = (_clock_seconds(row[f"{name}_timestamp"]) for name in ("start", "stop"))
            numbers = int(row["verb_class"]), int(row["noun_class"])
            if not 0 <= start < stop or min(numbers) < 0:
                raise ValueError
        except ValueError:
            raise EPIC.error(
                f"{path}:{line}: expected a start before a stop as 00:00:01.89 and numbers of classes, got "
                f"{', '.join(row[name] for name in _SEGMENTS[2:])}"
            ) from None
        found.append(_Narrated(row["narration_id"], row["video_id"], start, stop, *numbers))
    if not found:
        raise EPIC.error(f"{path}: the list is empty")
    return found


def _clock_seconds(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _read_kitchen_classes(path: Path, used: set[int]) -> dict[int, str]:
    """Number -> name of a class, its key; without the file the numbers that are used name themselves."""
    if not path.is_file():
        return {number: str(number) for number in used}
    names = {int(row["id"]): row["key"] for _, row in EPIC.rows(path, ("id", "key"))}
    unknown = sorted(used - set(names))
    if unknown:
        raise EPIC.error(f"{path}: lacks the class {unknown[0]}, which the lists use")
    return names


# as the API has them
kinetics, ucf101, hmdb51, something_something_v2 = Kinetics, UCF101, HMDB51, SomethingSomethingV2
diving48, howto100m, epic_kitchens_100 = Diving48, HowTo100M, EpicKitchens100

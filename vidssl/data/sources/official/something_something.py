"""Something-Something v2 by its JSON files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vidssl.data.decode.decoders import DecoderName
from vidssl.data.sources.listing import check_choice
from vidssl.data.sources.official.listed import DataSet, OfficialList, Wanted
from vidssl.data.sources.official.tables import read_entries, read_json, read_text
from vidssl.data.sources.official.videos import OfficialVideos, open_videos
from vidssl.data.sources.video_files import Short

SSV2 = DataSet(
    "Something-Something v2",
    "root holds 1.webm, 2.webm and so on, annotations holds labels.json, train.json, validation.json and "
    "test.json, or the same with something-something-v2- before their names",
    "something_something_v2",
)
_PREFIXES = ("", "something-something-v2-")


def something_something_v2(
    *,
    root: str,
    annotations: str,
    part: Literal["train", "validation", "test"],
    max_missing_share: float = 0.01,
    limit: int | None = None,
    manifest: str | None = None,
    decoder: DecoderName = "pyav",
    short: Short | None = None,
    min_frames: int = 1,
    square_pixels: bool = False,
) -> OfficialVideos:
    """Something-Something v2 by its official JSON files, classes in the order of labels.json.

    A video's class is its template, without the brackets around what is filled in. The test part has labels
    only where ``test-answers.csv`` lies beside the others.

    Args:
        root: folder of the videos (``20bn-something-something-v2``), relative to the working folder.
        annotations: folder of the JSON files (``labels``).
        part: which list.
        max_missing_share: of the listed videos, that may be missing.
        limit, manifest, decoder, short, min_frames, square_pixels: as ``video_list`` has them.
    """
    check_choice("part", part, ("train", "validation", "test"))
    return open_videos(
        SSV2,
        _read_part(Path(annotations), part),
        root,
        max_missing_share=max_missing_share,
        limit=limit,
        manifest=manifest,
        decoder=decoder,
        short=short,
        min_frames=min_frames,
        square_pixels=square_pixels,
    )


def _read_part(folder: Path, part: str) -> OfficialList:
    classes = _read_classes(_path(folder, "labels"))
    path = _path(folder, part)
    answers = _answers(folder / "test-answers.csv") if part == "test" else {}
    rows = read_entries(SSV2, path, ("id",) if part == "test" else ("id", "template"))
    known, wanted = set(classes), []
    for row in rows:
        name = str(row["id"])
        label = answers.get(name) if part == "test" else _without_brackets(row["template"])
        if label not in known and not (part == "test" and not answers):
            raise SSV2.error(f"{path}: video {name} is of the class {label!r}, which labels.json lacks")
        wanted.append(Wanted((name,), "", label))
    labelled = part != "test" or bool(answers)
    return OfficialList(f"Something-Something v2 {part}", tuple(wanted), classes if labelled else ())


def _path(folder: Path, name: str) -> Path:
    """The file of that name, under whichever of its two names; under the first if there is none."""
    paths = [folder / f"{prefix}{name}.json" for prefix in _PREFIXES]
    return next((path for path in paths if path.is_file()), paths[0])


def _without_brackets(template: object) -> str:
    return str(template).replace("[", "").replace("]", "")


def _read_classes(path: Path) -> tuple[str, ...]:
    """Templates in the order of their numbers, which the file holds as text and which count from 0."""
    given = read_json(SSV2, path)
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
    lines = [line.strip() for line in read_text(SSV2, path).splitlines() if line.strip()]
    pairs = (line.partition(";") for line in lines)
    return {video.strip(): _without_brackets(template.strip()) for video, _, template in pairs}

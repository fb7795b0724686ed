"""Diving48 by its JSON files, in the first and the second version of its labels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from vidssl.data.decode.decoders import DecoderName
from vidssl.data.sources.listing import check_choice
from vidssl.data.sources.official.listed import DataSet, OfficialList, Wanted
from vidssl.data.sources.official.tables import read_entries, read_json, without_extension
from vidssl.data.sources.official.videos import OfficialVideos, open_videos
from vidssl.data.sources.video_files import Short

DIVING48 = DataSet(
    "Diving48",
    "root holds _8Vy3dlHg2w_00000.mp4 and so on, annotations holds Diving48_vocab.json, "
    "Diving48_V2_train.json and Diving48_V2_test.json (version 1: Diving48_train.json, Diving48_test.json)",
    "diving48",
)
_log = logging.getLogger(__name__)


def diving48(
    *,
    root: str,
    annotations: str,
    part: Literal["train", "test"],
    version: Literal[1, 2] = 2,
    max_missing_share: float = 0.01,
    limit: int | None = None,
    manifest: str | None = None,
    decoder: DecoderName = "pyav",
    short: Short | None = None,
    min_frames: int = 1,
    square_pixels: bool = False,
) -> OfficialVideos:
    """Diving48 by its official JSON files, classes in the order of Diving48_vocab.json.

    Scores of the two versions of the labels are not comparable. Files are read whole: they are cut to one
    dive each, and ``start_frame`` and ``end_frame`` of the lists are not used.

    Args:
        root: folder of the videos (``rgb``), relative to the working folder.
        annotations: folder of the JSON files.
        part: which list.
        version: of the labels; 2 is the corrected one.
        max_missing_share: of the listed videos, that may be missing.
        limit, manifest, decoder, short, min_frames, square_pixels: as ``video_list`` has them.
    """
    check_choice("part", part, ("train", "test"))
    folder = Path(annotations)
    path = folder / f"Diving48_{'V2_' if version == 2 else ''}{part}.json"
    classes = _read_classes(folder / "Diving48_vocab.json")
    return open_videos(
        DIVING48,
        OfficialList(f"Diving48 version {version} {part}", _read_list(path, classes), classes),
        root,
        max_missing_share=max_missing_share,
        limit=limit,
        manifest=manifest,
        decoder=decoder,
        short=short,
        min_frames=min_frames,
        square_pixels=square_pixels,
    )


def _read_classes(path: Path) -> tuple[str, ...]:
    """A dive's take-off, somersaults, twists and position as one name."""
    given = read_json(DIVING48, path)
    if not isinstance(given, list) or not all(isinstance(dive, list) and dive for dive in given):
        raise DIVING48.error(f"{path}: it must be a list of dives, each a list of words")
    names = tuple(" ".join(str(word) for word in dive) for dive in given)
    if len(set(names)) < len(names):
        raise DIVING48.error(f"{path}: a dive is in it twice")
    return names


def _read_list(path: Path, classes: tuple[str, ...]) -> tuple[Wanted, ...]:
    wanted, late = [], 0
    for row in read_entries(DIVING48, path, ("vid_name", "label")):
        name, label = str(row["vid_name"]), row["label"]
        if not isinstance(label, int) or not 0 <= label < len(classes):
            raise DIVING48.error(
                f"{path}: {name} has the label {label!r}, Diving48_vocab.json {len(classes)} dives from 0 on"
            )
        late += row.get("start_frame") not in (None, 0)
        wanted.append(Wanted((without_extension(name),), "", classes[label]))
    if late:
        _log.warning("%s: %d entries start later than frame 0; their files are read whole", path, late)
    return tuple(wanted)

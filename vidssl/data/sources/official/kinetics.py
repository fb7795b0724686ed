"""Kinetics-400, 600, 700 and 700-2020 by the CSV files of their releases."""

from __future__ import annotations

from pathlib import Path

from vidssl.data.decode.decoders import DecoderName
from vidssl.data.sources.official.listed import DataSet, OfficialList, Wanted
from vidssl.data.sources.official.tables import read_csv
from vidssl.data.sources.official.videos import OfficialVideos, open_videos
from vidssl.data.sources.segments import Segment
from vidssl.data.sources.video_files import Short

KINETICS = DataSet(
    "Kinetics",
    "root holds ID_000010_000020.mp4 (start and end in seconds, six digits each) or ID.mp4 (the clip or the "
    "whole video), in a folder for each class or not; list is the CSV file of the part with the columns "
    "youtube_id, time_start, time_end and, where it has labels, label",
    "kinetics",
)
_COLUMNS = ("youtube_id", "time_start", "time_end")


def kinetics(
    *,
    root: str,
    list: str,
    max_missing_share: float = 0.01,
    limit: int | None = None,
    manifest: str | None = None,
    decoder: DecoderName = "pyav",
    short: Short | None = None,
    min_frames: int = 1,
    square_pixels: bool = False,
) -> OfficialVideos:
    """Kinetics-400, 600 or 700 by an official CSV list, classes in the order of their names.

    Copies differ, for videos vanish from the web: ``max_missing_share`` states what yours may lack.

    Args:
        root: folder of the videos of the part, relative to the working folder; ``replacement...`` folders
            below it take precedence.
        list: the CSV file of the part (``train.csv``, ``val.csv``).
        max_missing_share: of the listed videos, that may be missing.
        limit, manifest, decoder, short, min_frames, square_pixels: as ``video_list`` has them.
    """
    return open_videos(
        KINETICS,
        _read_list(Path(list)),
        root,
        max_missing_share=max_missing_share,
        limit=limit,
        manifest=manifest,
        decoder=decoder,
        short=short,
        min_frames=min_frames,
        square_pixels=square_pixels,
    )


def _read_list(path: Path) -> OfficialList:
    wanted, unlabelled = [], 0
    for line, row in read_csv(KINETICS, path, _COLUMNS):
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
        wanted.append(Wanted(names, label or "", label, segment))
    if not wanted:
        raise KINETICS.error(f"{path}: the list is empty")
    if 0 < unlabelled < len(wanted):
        raise KINETICS.error(f"{path}: {unlabelled} of {len(wanted)} videos have no label")
    classes = tuple(sorted({entry.label for entry in wanted if entry.label is not None}))
    return OfficialList(f"Kinetics {path.name}", tuple(wanted), classes)

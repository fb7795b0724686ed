"""HowTo100M by its list of videos, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vidssl.data.decode.decoders import DecoderName
from vidssl.data.sources.official.listed import DataSet, OfficialList, Wanted
from vidssl.data.sources.official.tables import read_csv, read_lines, read_text, without_extension
from vidssl.data.sources.official.videos import OfficialVideos, open_videos
from vidssl.data.sources.video_files import Short

HOWTO100M = DataSet(
    "HowTo100M",
    "root holds ID.mp4, ID.webm or ID.mkv, in folders or not; list is HowTo100M_v1.csv, or a text file with "
    "an ID on each line",
    "howto100m",
)


def howto100m(
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
    """HowTo100M by its list of YouTube ids, without labels.

    Copies differ, for videos vanish from the web: ``max_missing_share`` states what yours may lack.

    Args:
        root: folder of the videos, relative to the working folder.
        list: ``HowTo100M_v1.csv``, or a text file with an id on each line.
        max_missing_share: of the listed videos, that may be missing.
        limit, manifest, decoder, short, min_frames, square_pixels: as ``video_list`` has them.
    """
    path = Path(list)
    wanted = tuple(Wanted((name,)) for name in _read_ids(path))
    return open_videos(
        HOWTO100M,
        OfficialList(f"HowTo100M {path.name}", wanted),
        root,
        max_missing_share=max_missing_share,
        limit=limit,
        manifest=manifest,
        decoder=decoder,
        short=short,
        min_frames=min_frames,
        square_pixels=square_pixels,
    )


def _read_ids(path: Path) -> Sequence[str]:
    if "," in read_text(HOWTO100M, path).lstrip().split("\n")[0]:
        ids = [row["video_id"] for _, row in read_csv(HOWTO100M, path, ("video_id",))]
    else:
        ids = [_only_word(path, line, words) for line, words in read_lines(HOWTO100M, path)]
        ids = ids[1:] if ids[:1] == ["video_id"] else ids
    if not ids:
        raise HOWTO100M.error(f"{path}: the list is empty")
    return ids


def _only_word(path: Path, line: int, words: Sequence[str]) -> str:
    if len(words) > 1:
        raise HOWTO100M.error(f"{path}:{line}: expected one id, got {' '.join(words)[:80]!r}")
    return without_extension(words[0].rpartition("/")[2])

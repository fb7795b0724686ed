"""HMDB51 by ``testTrainMulti_7030_splits``: three splits into train and test."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vidssl.data.decode.decoders import DecoderName
from vidssl.data.sources.listing import check_choice
from vidssl.data.sources.official.leaks import tell_leaks
from vidssl.data.sources.official.listed import DataSet, OfficialList, Wanted
from vidssl.data.sources.official.tables import read_lines, without_extension
from vidssl.data.sources.official.videos import OfficialVideos, open_videos
from vidssl.data.sources.video_files import Short

HMDB51 = DataSet(
    "HMDB51",
    "root holds brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi and so on, annotations holds "
    "brush_hair_test_split1.txt and so on, a file for each class and split",
    "hmdb51",
)
_TRAIN, _TEST = "1", "2"  # and "0" for clips that a split leaves out


def hmdb51(
    *,
    root: str,
    annotations: str,
    part: Literal["train", "test"],
    split: Literal[1, 2, 3] = 1,
    max_missing_share: float = 0.01,
    limit: int | None = None,
    manifest: str | None = None,
    decoder: DecoderName = "pyav",
    short: Short | None = None,
    min_frames: int = 1,
    square_pixels: bool = False,
) -> OfficialVideos:
    """HMDB51 by its official lists, classes in the order of their names.

    Says so where clips cut from one video are in both train and test, as their names tell.

    Args:
        root: folder of the videos, relative to the working folder.
        annotations: folder of the lists (``testTrainMulti_7030_splits``).
        part, split: which clips; a split leaves some out of both parts.
        max_missing_share: of the listed videos, that may be missing.
        limit, manifest, decoder, short, min_frames, square_pixels: as ``video_list`` has them.
    """
    check_choice("part", part, ("train", "test"))
    classes, lists = _read_split(Path(annotations), split)
    tell_leaks(HMDB51, split, lists[_TRAIN], lists[_TEST])
    wanted = lists[_TRAIN if part == "train" else _TEST]
    return open_videos(
        HMDB51,
        OfficialList(f"HMDB51 split {split} {part}", wanted, classes),
        root,
        max_missing_share=max_missing_share,
        limit=limit,
        manifest=manifest,
        decoder=decoder,
        short=short,
        min_frames=min_frames,
        square_pixels=square_pixels,
    )


def _read_split(folder: Path, split: int) -> tuple[tuple[str, ...], dict[str, tuple[Wanted, ...]]]:
    """Classes, and the clips with each mark."""
    ending = f"_test_split{split}.txt"
    paths = sorted(path for path in folder.glob(f"*{ending}") if not path.name.startswith("."))
    if not paths:
        raise HMDB51.error(f"{folder}: no file in it ends in {ending}")
    classes = tuple(path.name.removesuffix(ending) for path in paths)
    marked: dict[str, list[Wanted]] = {"0": [], _TRAIN: [], _TEST: []}
    for action, path in zip(classes, paths, strict=True):
        for line, words in read_lines(HMDB51, path):
            if len(words) != 2 or words[1] not in marked:
                raise HMDB51.error(
                    f"{path}:{line}: expected a video and 0, 1 (train) or 2 (test), got {' '.join(words)!r}"
                )
            marked[words[1]].append(Wanted((without_extension(words[0]),), action, action))
    if not marked[_TRAIN] or not marked[_TEST]:
        raise HMDB51.error(f"{folder}: the files of split {split} mark no video 1 (train) or none 2 (test)")
    return classes, {mark: tuple(wanted) for mark, wanted in marked.items()}

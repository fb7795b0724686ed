"""UCF101 by ``ucfTrainTestlist``: three splits into train and test."""

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

UCF101 = DataSet(
    "UCF101",
    "root holds ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi and so on, annotations holds classInd.txt, "
    "trainlist01.txt to 03 and testlist01.txt to 03",
    "ucf101",
)


def ucf101(
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
    """UCF101 by its official lists, classes in the order of classInd.txt.

    Says so where clips of one group, cut from one video, are in both train and test.

    Args:
        root: folder of the videos (``UCF-101``), relative to the working folder.
        annotations: folder of the lists (``ucfTrainTestlist``).
        part, split: which list.
        max_missing_share: of the listed videos, that may be missing.
        limit, manifest, decoder, short, min_frames, square_pixels: as ``video_list`` has them.
    """
    check_choice("part", part, ("train", "test"))
    folder = Path(annotations)
    classes = _read_classes(folder / "classInd.txt")
    lists = {name: _read_list(folder / f"{name}list{split:02d}.txt", classes) for name in ("train", "test")}
    tell_leaks(UCF101, split, lists["train"], lists["test"])
    official = OfficialList(f"UCF101 split {split} {part}", lists[part], classes)
    return open_videos(
        UCF101,
        official,
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
    """Names by number, which count from 1 in the file."""
    names: dict[int, str] = {}
    for line, words in read_lines(UCF101, path):
        if len(words) != 2 or not words[0].isdigit() or int(words[0]) in names:
            raise UCF101.error(f"{path}:{line}: expected a new number and a class, got {' '.join(words)!r}")
        names[int(words[0])] = words[1]
    if sorted(names) != list(range(1, len(names) + 1)) or not names:
        raise UCF101.error(f"{path}: classes must be numbered from 1 on without a gap")
    return tuple(names[number] for number in sorted(names))


def _read_list(path: Path, classes: tuple[str, ...]) -> tuple[Wanted, ...]:
    """The videos of a list; numbers of classes, which only train lists have, must agree with folders."""
    wanted = []
    for line, words in read_lines(UCF101, path):
        folder, slash, name = words[0].partition("/")
        if not slash or len(words) > 2 or folder not in classes:
            raise UCF101.error(
                f"{path}:{line}: expected CLASS/VIDEO.avi with a class of classInd.txt, got "
                f"{' '.join(words)!r}"
            )
        number = str(classes.index(folder) + 1)
        if words[1:] not in ([], [number]):
            raise UCF101.error(
                f"{path}:{line}: class {words[1]}, but {folder} is number {number} in classInd.txt"
            )
        stem = without_extension(name)
        # the lists write HandStand where some copies of the files have Handstand
        spellings = dict.fromkeys((stem, stem.replace("HandStand", "Handstand")))
        wanted.append(Wanted(tuple(spellings), folder, folder))
    if not wanted:
        raise UCF101.error(f"{path}: the list is empty")
    return tuple(wanted)

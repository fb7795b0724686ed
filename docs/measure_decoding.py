"""Looks at files as ``vidssl data check`` does, reads frames of them by number and counts what agrees.

    python docs/measure_decoding.py --kinds --cuts 64 --noise 20 [FOLDER ...]

A frame agrees if it is, byte for byte, the one that comes out at that place when PyAV decodes the file from
its start. ``--kinds`` makes the small files of ``test_data_kinds.py``. ``--cuts N`` cuts sound files of
them (Matroska, WebM, MP4, AVI) at N places evenly over their length; ``--noise N`` overwrites a piece of
up to a tenth of every file, N times. A minute for all of it on one core.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from vidssl.data.decode.decode import Picture, read_frames
from vidssl.data.decode.examine import FileToExamine, examine
from vidssl.interfaces import UnreadableSample

SINGLE, CLIP = 6, 16  # reads of one frame, and frames of one longer read
CUT = ("h264.mp4", "vp8.webm", "vp9.webm", "sound_longer.mkv", "dropped.avi")


@dataclass
class Tally:
    """Files by status, and frames read: all, unlike sequential decoding, and refused with a sentence."""

    statuses: Counter = field(default_factory=Counter)
    read: int = 0
    unlike: int = 0
    refused: int = 0

    def row(self, name: str) -> str:
        counts = [self.statuses[status] for status in ("ok", "cut", "damaged", "unreadable")]
        cells = (name, sum(counts), *counts, self.read, self.unlike, self.refused)
        return "| " + " | ".join(map(str, cells)) + " |"


def in_order(path: Path) -> list[np.ndarray]:
    """All frames of a file, decoded from its start by PyAV alone; animated WebP is left out."""
    frames: list[np.ndarray] = []
    picture = None
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                continue
            for frame in decoded:
                picture = picture or Picture.of(frame)
                frames.append(picture.rgb(frame).copy())
    return frames


def look(path: Path, tally: Tally) -> None:
    """Examines a file; of a usable one reads frames by number."""
    entry = examine(FileToExamine(path.parent, path.name, {}))
    tally.statuses[entry.status] += 1
    facts = entry.facts
    if not entry.usable or facts is None or facts.codec == "webp" or facts.num_frames > 400:
        return
    expected, rng = in_order(path), random.Random(path.name)
    wanted = [[rng.randrange(facts.num_frames)] for _ in range(SINGLE)]
    wanted.append(sorted(rng.randrange(facts.num_frames) for _ in range(CLIP)))
    for numbers in wanted:
        tally.read += len(numbers)
        try:
            clip = read_frames(path, numbers, facts).permute(0, 2, 3, 1).numpy()
        except UnreadableSample:
            tally.refused += len(numbers)
            continue
        tally.unlike += sum(
            number >= len(expected) or not np.array_equal(frame, expected[number])
            for frame, number in zip(clip, numbers, strict=True)
        )


def make_kinds(folder: Path) -> list[Path]:
    tests = Path(__file__).parent.parent / "tests"
    sys.path[:0] = [str(tests), str(tests / "data")]
    from test_data_kinds import KINDS

    for name, kind in KINDS.items():
        kind.make(folder / name)
    return [folder / name for name in KINDS]


def spoilt(path: Path, rng: random.Random) -> bytes:
    """The content of a file with a random piece of it overwritten by noise."""
    content = bytearray(path.read_bytes())
    length = rng.randint(1, max(len(content) // 10, 1))
    start = rng.randint(0, max(len(content) - length, 0))
    content[start : start + length] = rng.randbytes(length)
    return bytes(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--kinds", action="store_true")
    parser.add_argument("--cuts", type=int, default=0)
    parser.add_argument("--noise", type=int, default=0)
    arguments = parser.parse_args()
    print("| files | number | ok | cut | damaged | unreadable | frames read | unlike | refused |")
    print("| --- | " + " | ".join(["---:"] * 8) + " |", flush=True)
    for folder in arguments.folders:
        tally = Tally()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            look(path, tally)
        print(tally.row(folder.name), flush=True)
    if not (arguments.kinds or arguments.cuts or arguments.noise):
        return
    with tempfile.TemporaryDirectory() as name:
        made, other = make_kinds(Path(name)), Path(name) / "spoilt"
        other.mkdir()
        tally = Tally()
        for path in made:
            look(path, tally)
        print(tally.row("kinds"), flush=True)
        for path in (path for path in made if path.name in CUT):
            tally, content = Tally(), path.read_bytes()
            for part in range(arguments.cuts):
                (other / path.name).write_bytes(content[: int(len(content) * (part + 0.5) / arguments.cuts)])
                look(other / path.name, tally)
            print(tally.row(f"{path.name}, cut"), flush=True)
        tally, rng = Tally(), random.Random(0)
        for path in made:
            for _ in range(arguments.noise):
                (other / path.name).write_bytes(spoilt(path, rng))
                look(other / path.name, tally)
        print(tally.row("kinds, noise"), flush=True)


if __name__ == "__main__":
    main()

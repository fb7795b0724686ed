"""A file to decode: a path or bytes, how large it may be, and why it cannot be read."""

import os
import stat
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from vidssl.errors import counted
from vidssl.interfaces import UnreadableSample


@dataclass(frozen=True)
class Content:
    """The bytes of a file, and the name that it goes by in messages."""

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


File = Path | Content


def opened(file: File) -> BinaryIO:
    """The file, to be read and moved about in; used as a context.

    Raises:
        OSError: if it cannot be opened.
    """
    return file.open("rb") if isinstance(file, Path) else BytesIO(file.data)


_WAY_OUT = "sets another, and sources then need its manifest"


@dataclass(frozen=True)
class Limits:
    """A larger file is unreadable, with the limit in its reason.

    They hold where a file is looked at for the first time. What a manifest describes was let in with the
    limits of its ``vidssl data check`` and is read as it is.

    Attributes:
        max_pixels: of a frame; the default lets 8K pass (8192 x 4320).
        max_frames: of a video; the default lets nine hours at 30 frames a second pass.
        max_seconds: for going through a file once; a film decodes faster than the default.
    """

    max_pixels: int = 36_000_000
    max_frames: int = 1_000_000
    max_seconds: float = 300.0

    def hold_for(self, reason: str) -> bool:
        """Whether a file that is unreadable for ``reason`` is so under these limits too."""
        own = (f"{self.max_pixels:,} pixels", f"{self.max_frames:,} frames", f"{self.max_seconds:g} seconds")
        return _WAY_OUT not in reason or any(f" {limit}, the limit" in reason for limit in own)

    def check_size(self, key: str, width: int, height: int) -> None:
        """Raises UnreadableSample for a frame that is too large."""
        if width * height > self.max_pixels:
            raise UnreadableSample(
                key,
                f"a frame of {width}x{height} has more than {self.max_pixels:,} pixels, the limit "
                f"('vidssl data check --max-pixels' {_WAY_OUT})",
            )

    def check_length(self, key: str, num_frames: int) -> None:
        """Raises UnreadableSample for more frames than are allowed."""
        if num_frames > self.max_frames:
            raise UnreadableSample(
                key,
                f"it has more than {self.max_frames:,} frames, the limit ('vidssl data check --max-frames' "
                f"{_WAY_OUT})",
            )

    def out_of_time(self, key: str) -> UnreadableSample:
        """The error for a file that takes too long."""
        return UnreadableSample(
            key,
            f"it cannot be read within {self.max_seconds:g} seconds, the limit "
            f"('vidssl data check --max-seconds' {_WAY_OUT})",
        )


LIMITS = Limits()


_HEAD_BYTES = 4096
_LFS_MARK = b"version https://git-lfs"
_SEGMENT = 0x8538067  # ID 18538067 without its length marker
_KNOWN_STARTS = ((b"RIFF", "AVI"), (b"\x1aE\xdf\xa3", "Matroska or WebM"), (b"\x00\x00\x01\xba", "MPEG"))


def why_not_a_file(file: File) -> str:
    """Why ``file`` cannot even be opened; empty if it can.

    A named pipe or a device is refused here: reading one can wait for ever.
    """
    if isinstance(file, Content):
        return ""
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        return "the file does not exist"
    except OSError as error:
        return f"the file cannot be reached ({error.strerror})"
    if not stat.S_ISREG(mode):
        return "it is a folder" if stat.S_ISDIR(mode) else "it is no regular file (a pipe, socket or device)"
    if not os.access(file, os.R_OK):
        return "no permission to read it"
    return ""


def why_unreadable(file: File) -> str:
    """Why FFmpeg does not open a file, judged from its first bytes and its boxes."""
    reason = why_not_a_file(file)
    if reason:
        return reason
    try:
        with opened(file) as stream:
            return _why_content(stream)
    except OSError as error:
        return f"the file cannot be read ({error.strerror})"


def _why_content(stream: BinaryIO) -> str:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(_HEAD_BYTES)
    if not head:
        return "the file is empty (0 bytes)"
    if head.startswith(_LFS_MARK):
        return (
            f"a Git-LFS pointer of {counted(size, 'byte')}, not the file itself: fetch it with 'git lfs pull'"
        )
    if _is_text(head):
        start = head[:40].decode(errors="replace").split("\n")[0].strip()
        return f"a text file, not a video (it begins with {start!r})"
    return _why_binary(stream, head, size)


def _is_text(head: bytes) -> bool:
    printable = sum(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)
    return printable > 0.95 * len(head)


def _why_binary(stream: BinaryIO, head: bytes, size: int) -> str:
    leading_zeros = len(head) - len(head.lstrip(b"\0"))
    if leading_zeros == len(head):
        return "the file begins with nothing but zeros (a copy or download that was never finished?)"
    if leading_zeros >= 16:
        return f"the header is damaged: the first {leading_zeros} bytes are zeros"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return _why_mp4(stream, size)
    for start, name in _KNOWN_STARTS:
        if head.startswith(start):
            return f"it begins like a {name} file, but its header is damaged"
    return "not a video: no known format (random or encrypted bytes, or a damaged header)"


def _why_mp4(stream: BinaryIO, size: int) -> str:
    """Walk the top-level boxes of an MP4 or MOV file: a missing index is what a cut-off download lacks."""
    names, needed = _top_level_boxes(stream, size)
    if b"moov" in names and needed <= size:
        return "an MP4 file whose index (moov) is damaged"
    if needed > size:
        index = "" if b"moov" in names else ", and the index (moov) that follows is missing"
        return f"truncated: {size} of at least {needed} bytes are there{index}"
    return "truncated or never finished: the index (moov) is missing"


def bytes_missing(file: File) -> int:
    """Bytes that a Matroska or WebM file states and that are not there; 0 for whole files and other formats.

    Its outermost elements have an ID and a length each, integers whose first byte says how long they are (RFC
    8794, 4); a recording that was never finished states none.
    """
    with opened(file) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        if stream.read(4) != _KNOWN_STARTS[1][0]:
            return 0
        name, position = 0, 0
        while name != _SEGMENT and position < size:
            stream.seek(position)
            name, _ = _variable_integer(stream)
            length, unknown = _variable_integer(stream)
            position = stream.tell() + length
            if unknown:
                return 0
        return max(position - size, 0)


def _variable_integer(stream: BinaryIO) -> tuple[int, bool]:
    """An integer of 1 to 8 bytes without its length marker, and whether all its bits are ones."""
    first = int.from_bytes(stream.read(1), "big")
    length = 9 - first.bit_length()
    bits = 7 * length
    value = int.from_bytes(bytes([first]) + stream.read(length - 1), "big") & ((1 << bits) - 1)
    return value, value == (1 << bits) - 1


def _top_level_boxes(stream: BinaryIO, size: int) -> tuple[set[bytes], int]:
    """Names of an MP4 file's outermost boxes, and the bytes that they claim in all."""
    names, position = set(), 0
    while position + 8 <= size:
        stream.seek(position)
        header = stream.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:  # a box of length 0 reaches to the end of the file
            length = size - position
        if length < 8:
            break
        names.add(header[4:8])
        position += length
    return names, position

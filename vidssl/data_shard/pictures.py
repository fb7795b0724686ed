"""A whole look at one image file."""

from __future__ import annotations

import hashlib
import os
from array import array
from dataclasses import replace
from io import BytesIO

from PIL import Image

from vidssl.data.contents import Content
from vidssl.data.decode import VideoFacts
from vidssl.data.diagnose import why_not_a_file
from vidssl.data.examine import FileToExamine
from vidssl.data.images import read_image
from vidssl.data.manifest import Entry
from vidssl.data.shard_index import IMAGE
from vidssl.interfaces import UnreadableSample


def examine_image(file: FileToExamine) -> Entry:
    """What there is to say of an image: a clip of one frame. Never raises for what is wrong with it."""
    path = file.root / file.key
    reason = why_not_a_file(path)
    if reason:
        return Entry(file.key, "unreadable", reason, labels=file.labels)
    try:
        content = Content(file.key, path.read_bytes())
        mtime_ns = os.stat(path).st_mtime_ns
    except OSError as error:
        return Entry(file.key, "unreadable", f"it cannot be read ({error.strerror})", labels=file.labels)
    return replace(examine_image_content(content), mtime_ns=mtime_ns, labels=file.labels)


def examine_image_content(content: Content) -> Entry:
    """The same of an image that lies in memory, under its name."""
    about = {"bytes": len(content.data), "sha256": hashlib.sha256(content.data).hexdigest()}
    try:
        _, _, height, width = read_image(content, content.name).shape
        with Image.open(BytesIO(content.data)) as image:
            codec = (image.format or "").lower()
    except UnreadableSample as error:
        return Entry(content.name, "unreadable", error.reason, **about)  # type: ignore[arg-type]
    facts = VideoFacts(
        num_frames=1,
        promised_frames=1,
        fps=0.0,
        height=height,
        width=width,
        rotation=0,
        codec=codec,
        no_seeking="",
        pts=array("q"),
        keyframes=(),
        tick_seconds=0.0,
    )
    return Entry(content.name, "ok", facts=facts, container=IMAGE, **about)  # type: ignore[arg-type]

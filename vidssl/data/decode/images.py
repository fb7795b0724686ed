"""Image files: as pixels, and which of them may hold videos.

FFmpeg reads GIF as any video, but of WebP single pictures only.
"""

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vidssl.data.decode.content import File, opened, why_not_a_file, why_unreadable
from vidssl.interfaces import UnreadableSample

_HEAD_BYTES = 21  # RIFF, length, WEBP, VP8X, length, flags


def read_image(file: File, key: str) -> Tensor:
    """An image as uint8 [1, 3, H, W], turned as its camera noted.

    Raises:
        UnreadableSample: under ``key``, if it cannot be decoded whole.
    """
    reason = why_not_a_file(file)
    if reason:
        raise UnreadableSample(key, reason)
    try:
        with opened(file) as stream, Image.open(stream) as image:
            pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError as error:
        raise UnreadableSample(key, why_unreadable(file)) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableSample(key, f"the image is truncated or damaged ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def is_animated_webp(file: File) -> bool:
    """Whether a file begins like an animation; False for any other WebP, and for what cannot be opened."""
    head = _head(file)
    return head[8:16] == b"WEBPVP8X" and head[:4] == b"RIFF" and bool(head[20] & 2)


def is_still_webp(file: File) -> bool:
    """Whether a file is a single picture, as the thumbnails are that lie beside downloaded videos."""
    head = _head(file)
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP" and not is_animated_webp(file)


def is_animated(file: File) -> bool:
    """Whether an image file, such as a GIF, has more than one frame; False for what cannot be opened."""
    try:
        with opened(file) as stream, Image.open(stream) as image:
            return bool(getattr(image, "is_animated", False))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _head(file: File) -> bytes:
    try:
        with opened(file) as stream:
            return stream.read(_HEAD_BYTES).ljust(_HEAD_BYTES, b"\0")
    except OSError:
        return bytes(_HEAD_BYTES)

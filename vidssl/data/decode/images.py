"""An image file as pixels."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vidssl.data.decode.content import File, opened
from vidssl.data.decode.diagnose import why_not_a_file, why_unreadable
from vidssl.interfaces import UnreadableSample


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

"""DAVIS and what lies like it: folders of frames beside folders of masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vidssl.data.sources.frame_folders import FrameFolders
from vidssl.errors import UsageError
from vidssl.interfaces import (
    NOT_JUDGED,
    DataSource,
    KnowsMasks,
    KnowsOrigins,
    Origin,
    SampleInfo,
    UnreadableSample,
)


@dataclass(kw_only=True, eq=False)
class Davis(DataSource, KnowsOrigins, KnowsMasks):
    """DAVIS (Pont-Tuset et al. 2017), or videos of one's own with masks in its folders.

    ``root`` holds JPEGImages/480p/VIDEO/00000.jpg, Annotations/480p/VIDEO/00000.png and
    ImageSets/2017/val.txt, a video a line. A mask is a PNG whose values (of the palette) number objects
    from 1 on; 0 is the ground and 255 is not judged.

    Args:
        root: folder of the data set, relative to the working folder.
        split: name of the list.
        year: folder of the list. Of "2016" all objects of a video are one.
        resolution: folder of frames and masks; "" where there is none in between.
        classes: names of what the masks' values mean from 0 on, where they number classes and no objects.
        limit: keep at most so many videos, always the same random ones.
    """

    root: str
    split: str = "val"
    year: Literal["2016", "2017", "2019"] = "2017"
    resolution: str = "480p"
    classes: tuple[str, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        root = Path(self.root)
        listed = root / "ImageSets" / self.year / f"{self.split}.txt"
        for path in (root, listed, root / "Annotations" / self.resolution):
            if not path.exists():
                raise UsageError(
                    f"{path}: not there. DAVIS's folders are JPEGImages/{self.resolution or 'VIDEO'}, "
                    f"Annotations/{self.resolution or 'VIDEO'} and ImageSets/{self.year}/{self.split}.txt "
                    "below 'root'"
                )
        self._frames = FrameFolders(
            root=str(root / "JPEGImages" / self.resolution), fps=24.0, list=str(listed), limit=self.limit
        )
        self._masks = root / "Annotations" / self.resolution
        self.mask_classes = self.classes
        self.label_classes = {}

    def __len__(self) -> int:
        return len(self._frames)

    def key(self, index: int) -> str:
        return self._frames.key(index)

    def info(self, index: int) -> SampleInfo:
        return self._frames.info(index)

    def origin(self, index: int) -> Origin:
        return self._frames.origin(index)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        return self._frames.read(index, frames)

    def object_masks(self, index: int, frames: Sequence[int]) -> Tensor:
        masks = self._read_masks(index, frames)
        if self.year == "2016":
            return (masks > 0).to(torch.uint8)  # its own files mark the one object by 255
        return masks

    def class_masks(self, index: int, frames: Sequence[int]) -> Tensor:
        masks = self._read_masks(index, frames)
        judged = masks[masks != NOT_JUDGED]
        highest = int(judged.max()) if len(judged) else 0
        if highest >= len(self.classes):
            raise UnreadableSample(
                self.key(index), f"a mask holds {highest}, and there are {len(self.classes)} names of classes"
            )
        return masks

    def _read_masks(self, index: int, frames: Sequence[int]) -> Tensor:
        key, names = self.key(index), self._frames.frame_names(index)
        found = []
        for frame in frames:
            path = self._masks / key / Path(names[frame]).with_suffix(".png")
            try:
                with Image.open(path) as image:
                    found.append(np.array(image))
            except (OSError, UnidentifiedImageError) as error:
                raise UnreadableSample(key, f"{path}: no mask that can be read ({error})") from error
            if found[-1].ndim != 2 or found[-1].dtype != np.uint8 or found[-1].shape != found[0].shape:
                raise UnreadableSample(key, f"{path}: a mask is one byte a pixel, of one size in a video")
        return torch.from_numpy(np.stack(found))

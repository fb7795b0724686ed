"""Patch tokens on disk: written as they come, so that they never lie in memory at once; mapped to be read.

A safetensors file for each order of frames, with one tensor "patches" [N, V, n, D] in half precision. How
many videos can be read is known at the end, so the header is written then, into room left for it.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from vidssl.config.protocol import FrameOrder, PatchType
from vidssl.engine.atomic import begun_beside
from vidssl.engine.checkpoint import read_tensors
from vidssl.errors import UsageError, counted

HEADER = 512  # bytes before the tokens
_CODES = {torch.float16: "F16", torch.bfloat16: "BF16"}


def patch_path(vectors: Path, order: FrameOrder, kind: PatchType) -> Path:
    """Where the patch tokens lie that belong to a file of vectors."""
    return vectors.with_name(f"{vectors.stem}-patches-{order}-{kind}.safetensors")


def read_patches(
    vectors: Path, orders: Sequence[FrameOrder], kind: PatchType, num_videos: int
) -> dict[FrameOrder, Tensor]:
    """Order -> [N, V, n, D] in half precision, mapped into memory.

    Raises:
        UsageError: if a file is damaged, or of another number of videos than the vectors.
    """
    found: dict[FrameOrder, Tensor] = {}
    for order in orders:
        path = patch_path(vectors, order, kind)
        tensors = read_tensors(path)[1]
        if "patches" not in tensors or tensors["patches"].dim() != 4:
            raise UsageError(f"{path}: damaged, it holds no patch tokens [videos, views, tokens, values]")
        found[order] = tensors["patches"]
        if len(found[order]) != num_videos:
            raise UsageError(
                f"{path}: holds {counted(len(found[order]), 'video')} and {vectors} {num_videos}: remove "
                "both files"
            )
    return found


class PatchWriter:
    """Writes patch tokens batch by batch; the files appear under their names when its context is left whole.

    Args:
        vectors: the file of vectors that they belong to.
        num_videos: at most; for the size that is logged before anything is written.
        say: gets that size.
    """

    def __init__(
        self,
        vectors: Path,
        orders: Sequence[FrameOrder],
        kind: PatchType,
        *,
        num_videos: int,
        say: Callable[[str], None],
    ) -> None:
        self.kind = kind
        self._paths = {order: patch_path(vectors, order, kind) for order in orders}
        self._num_videos = num_videos
        self._say = say
        self._files: dict[FrameOrder, BinaryIO] = {}
        self._rows = dict.fromkeys(orders, 0)
        self._shape: torch.Size | None = None

    def __enter__(self) -> "PatchWriter":
        return self

    def __call__(self, order: FrameOrder, patches: Tensor) -> None:
        """Keeps [B, V, n, D], the next videos.

        Raises:
            UsageError: if a token is too large for the type, or the disk too small.
        """
        patches = half(patches, self.kind)
        if self._shape is None:
            self._shape = patches.shape[1:]
            self._announce(patches[0].numel() * patches.element_size())
        try:
            file = self._files.get(order) or self._open(order)
            file.write(patches.contiguous().view(torch.uint8).numpy().tobytes())
        except OSError as error:
            raise self._cannot(order, error) from error
        self._rows[order] += len(patches)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for order, file in self._files.items():
            path = Path(file.name)
            with file:
                if kind is None:
                    try:
                        self._finish(order, file)
                    except OSError as failed:
                        path.unlink(missing_ok=True)
                        raise self._cannot(order, failed) from failed
            if kind is not None:
                path.unlink(missing_ok=True)

    def _announce(self, size: int) -> None:
        folder = next(iter(self._paths.values())).parent
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = size * self._num_videos * len(self._paths), shutil.disk_usage(folder).free
        self._say(
            f"patch tokens: {needed / 1e9:.3g} GB in {self.kind} go into {folder}, where "
            f"{free / 1e9:.3g} GB are free"
        )
        if needed > free:
            raise UsageError(
                f"{folder}: the disk has {free / 1e9:.3g} GB free and patch tokens need {needed / 1e9:.3g}: "
                "take fewer videos, views or orders of frames, or a disk that holds them"
            )

    def _open(self, order: FrameOrder) -> BinaryIO:
        self._files[order] = file = begun_beside(self._paths[order])
        file.write(bytes(HEADER))
        return file

    def _finish(self, order: FrameOrder, file: BinaryIO) -> None:
        assert self._shape is not None, "a file is opened when there is something to write"
        end = file.tell() - HEADER
        shape = [self._rows[order], *self._shape]
        kind = _CODES[_dtype(self.kind)]
        header = json.dumps({"patches": {"dtype": kind, "shape": shape, "data_offsets": [0, end]}})
        file.seek(0)
        file.write((HEADER - 8).to_bytes(8, "little") + header.encode().ljust(HEADER - 8))
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, self._paths[order])

    def _cannot(self, order: FrameOrder, error: OSError) -> UsageError:
        return UsageError(f"cannot write {self._paths[order]}: {error.strerror or error}")


def half(patches: Tensor, kind: PatchType) -> Tensor:
    """Patch tokens in half precision, on the CPU.

    Raises:
        UsageError: if one is not finite, or too large for it.
    """
    small = patches.to(_dtype(kind)).cpu()
    if not small.isfinite().all():
        if not patches.isfinite().all():
            broken = int((~patches.reshape(len(patches), -1).isfinite().all(1)).sum())
            raise UsageError(
                f"the patch tokens of {broken} of {counted(len(patches), 'video')} of a batch are not "
                "finite (NaN or "
                "inf): the network is broken, or run.precision=fp32 is needed"
            )
        largest = patches.abs().max().item()
        way = "set patches=bfloat16" if kind == "float16" and largest < 3e38 else "the network is broken"
        raise UsageError(f"patch tokens reach {largest:.3g}, which {kind} cannot hold: {way}")
    return small


def in_memory(kept: dict[FrameOrder, list[Tensor]], kind: PatchType) -> Callable[[FrameOrder, Tensor], None]:
    """A writer that keeps them in lists, by order of frames."""

    def keep(order: FrameOrder, patches: Tensor) -> None:
        kept.setdefault(order, []).append(half(patches, kind))

    return keep


def joined(kept: Mapping[FrameOrder, Sequence[Tensor]]) -> dict[FrameOrder, Tensor]:
    """The lists that ``in_memory`` filled, as tensors [N, V, n, D]."""
    return {order: torch.cat(list(parts)) for order, parts in kept.items()}


def _dtype(kind: PatchType) -> torch.dtype:
    return torch.float16 if kind == "float16" else torch.bfloat16

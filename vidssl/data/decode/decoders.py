"""Which library turns a file into frames: PyAV, or torchcodec, on the CPU or a GPU, where that is exact.

A decoder is chosen by what it makes of a small clip that lies beside this file, never by whether it imports:
torchcodec imports without the FFmpeg that it needs. Where torchcodec cannot be exact by the nature of a file
(packed B-frames, MPEG program streams: whatever ``VideoFacts.no_seeking`` names), PyAV reads that file.
What torchcodec does read is held against the facts of the file: number of frames, size, and the timestamp
of each frame; what does not agree is read by PyAV too, with a line in the log.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from vidssl.data.decode.content import File
from vidssl.data.decode.decode import VideoFacts, check_numbers, probe, read_frames
from vidssl.errors import UsageError

DecoderName = Literal["pyav", "torchcodec", "torchcodec_cuda", "auto"]

_log = logging.getLogger(__name__)
_PROBE_CLIP = Path(__file__).with_name("probe_clip.mp4")
_PROBE_FRAMES = (7, 2, 11)  # a seek onward and one back
_PROBE_TOLERANCE = (
    6.0  # grey levels of 255: decoders round colours each in their own way; frames are 15 apart
)
_REMEDY = (
    "install torchcodec ('vidssl[torchcodec]') and, for it, FFmpeg's shared libraries (the package ffmpeg of "
    "the system or of conda), or leave out 'decoder'"
)


class Decoder(ABC):
    """Reads frames by number out of files that have been probed.

    ``name``: as a recipe spells it.
    """

    name: DecoderName

    @abstractmethod
    def read(self, file: File, frames: Sequence[int], facts: VideoFacts) -> Tensor:
        """Exactly the frames asked for, uint8 [len(frames), 3, H, W] on the CPU, RGB, rotation applied.

        Raises:
            ValueError: if ``frames`` is empty or holds a number that is negative or past the last.
            UnreadableSample: if any of the frames cannot be decoded.
        """


class PyAV(Decoder):
    """FFmpeg as PyAV brings it along: reads every file, needs nothing of the system."""

    name: DecoderName = "pyav"

    def read(self, file: File, frames: Sequence[int], facts: VideoFacts) -> Tensor:
        return read_frames(file, frames, facts)


class TorchCodec(Decoder):
    """torchcodec with exact seeking where that is exact; PyAV for all other files.

    Args:
        device: "cpu", or "cuda" for the decoder of the GPU. Frames come back to the CPU either way.
    """

    def __init__(self, device: Literal["cpu", "cuda"]) -> None:
        self.device = device
        self.name: DecoderName = "torchcodec" if device == "cpu" else "torchcodec_cuda"
        self._told: set[str] = set()

    def read(self, file: File, frames: Sequence[int], facts: VideoFacts) -> Tensor:
        if self.device == "cuda" and get_worker_info() is not None:
            raise UsageError(
                "decoder torchcodec_cuda decodes in the process that owns the GPU: set run.workers=0"
            )
        check_numbers(file, frames, facts)
        if facts.no_seeking or facts.mirrored:  # it turns, but does not mirror
            return read_frames(file, frames, facts)
        given, why_not = _read_by_torchcodec(file, frames, facts, self.device)
        if given is not None:
            return given
        clip = read_frames(file, frames, facts)  # first: what PyAV cannot read either is an error, not a note
        self._tell(file, why_not)
        return clip

    def _tell(self, file: File, reason: str) -> None:
        if (
            reason not in self._told
        ):  # a data set of one making fails in one way: the first file stands for all
            self._told.add(reason)
            _log.warning(
                "%s and files like it are read by PyAV: %s is not exact there (%s)", file, self.name, reason
            )


def choose_decoder(name: DecoderName) -> Decoder:
    """The decoder of this name, tried on a small clip; "auto" is torchcodec on the CPU where that works.

    Raises:
        UsageError: if it does not decode that clip here as it should.
    """
    if name == "pyav":
        return PyAV()
    if name == "auto":
        reason = why_unusable("cpu")
        _log.warning(
            "decoder auto: %s", f"pyav, as torchcodec is of no use here: {reason}" if reason else "torchcodec"
        )
        return PyAV() if reason else TorchCodec("cpu")
    device: Literal["cpu", "cuda"] = "cpu" if name == "torchcodec" else "cuda"
    reason = why_unusable(device)
    if reason:
        raise UsageError(f"decoder {name} is of no use here: {reason}. To mend it, {_REMEDY}")
    return TorchCodec(device)


@lru_cache
def why_unusable(device: Literal["cpu", "cuda"]) -> str:
    """Why torchcodec does not decode a small clip as it should; empty if it does."""
    if device == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    facts = probe(_PROBE_CLIP)
    clip, reason = _read_by_torchcodec(_PROBE_CLIP, _PROBE_FRAMES, facts, device, must_use_device=True)
    if clip is None:
        return reason
    halves = clip.float().unflatten(-1, (2, -1)).mean(dim=(1, 2, 4))  # [frames, left and right]
    expected = torch.tensor([(220.0 - 15 * number, 40.0 + 15 * number) for number in _PROBE_FRAMES])
    if (halves - expected).abs().max() > _PROBE_TOLERANCE:
        turned = (halves.flip(1) - expected).abs().max() <= _PROBE_TOLERANCE
        return "this version does not turn rotated videos" if turned else "it gives other frames"
    return ""


def _read_by_torchcodec(
    file: File,
    frames: Sequence[int],
    facts: VideoFacts,
    device: Literal["cpu", "cuda"],
    must_use_device: bool = False,
) -> tuple[Tensor | None, str]:
    """Frames uint8 [len(frames), 3, H, W] on the CPU, or None and why they are not to be had exactly."""
    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError:
        return None, "it is not installed"
    except (RuntimeError, OSError) as error:  # some releases look for FFmpeg at import
        return None, _first_line(error)
    try:
        decoder = VideoDecoder(
            str(file.absolute()) if isinstance(file, Path) else file.data,
            seek_mode="exact",
            num_ffmpeg_threads=1,
            device=device,
            dimension_order="NCHW",
        )
        if len(decoder) != facts.num_frames:
            return None, "it counts another number of frames"
        if must_use_device and decoder.cpu_fallback:
            return None, f"the GPU's decoder is not used: {decoder.cpu_fallback}"
        batch = decoder.get_frames_at(list(frames))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        return None, _first_line(error)
    if tuple(batch.data.shape) != (len(frames), 3, facts.height, facts.width):
        return None, "it gives frames of another size"
    stated = torch.tensor([facts.pts[number] * facts.tick_seconds for number in frames], dtype=torch.float64)
    if (batch.pts_seconds.cpu() - stated).abs().max() > 0.5 * facts.tick_seconds:
        return None, "its timestamps are those of other frames"
    return batch.data.cpu(), ""


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200].rstrip(".") or type(error).__name__

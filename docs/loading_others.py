"""What ``measure_loading.py`` measures beside our samplers: the same views by four other libraries."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as resizing

from vidssl.data.decode.decode import VideoFacts
from vidssl.data.views.crops import crop_boxes, random_box
from vidssl.data.views.random import SingleClip
from vidssl.data.views.svt import GlobalLocal
from vidssl.data.views.times import (
    clip_frames,
    draw,
    held_frames,
    kept_frames,
    last_start,
    spread,
    vimpac_last_start,
)
from vidssl.data.views.vimpac import ClipPair
from vidssl.interfaces import SampleInfo, ViewSampler

Views = list[Tensor]
Read = Callable[[Path, Sequence[int], VideoFacts], Tensor]
BICUBIC = {"interpolation": resizing.InterpolationMode.BICUBIC, "antialias": True}


@dataclass(frozen=True)
class Cut:
    """One view: which frames, which box of them, and the side of the square that it becomes."""

    frames: Sequence[int]
    box: tuple[int, int, int, int]  # top, left, height, width
    size: int


@dataclass(frozen=True)
class Job:
    """What a sampler does with a video, written down; boxes are of frames after resizing their short side."""

    short_side: int | None
    cuts: Sequence[Cut]


def job_of(sampler: ViewSampler, info: SampleInfo, height: int, width: int, seed: int) -> Job:
    """The same draws in the same order as the sampler's."""
    random = torch.Generator().manual_seed(seed)
    total = info.num_frames
    if isinstance(sampler, GlobalLocal):
        return _svt_job(sampler, total, height, width, random)
    if isinstance(sampler, SingleClip):
        length, stride, size = sampler.num_frames, sampler.frame_stride, sampler.size
        start = draw(random, 0, last_start(total, length, stride))
        short = draw(random, *sampler.short_side)
        high, wide = resized(height, width, short)
        box = (draw(random, 0, high - size), draw(random, 0, wide - size), size, size)
        return Job(short, [Cut(clip_frames(start, total, length=length, stride=stride), box, size)])
    assert isinstance(sampler, ClipPair)
    kept = kept_frames(info, sampler.fps)
    last = vimpac_last_start(len(kept), sampler.num_frames, sampler.frame_stride)
    size = sampler.size
    ((top, left),) = crop_boxes(*resized(height, width, size), size, 1)
    cuts = []
    for start in [draw(random, 0, last), draw(random, 0, last)]:
        ticks = held_frames(start, len(kept), length=sampler.num_frames, stride=sampler.frame_stride)
        cuts.append(Cut([kept[tick] for tick in ticks], (top, left, size, size), size))
    return Job(size, cuts)


def _svt_job(sampler: GlobalLocal, total: int, height: int, width: int, random: torch.Generator) -> Job:
    wanted = [(length, sampler.extent, sampler.cut) for length in sampler.num_frames]
    wanted += [(length, sampler.local_extent, sampler.local_cut) for length in sampler.local_frames]
    clips = []
    draw(
        random, 0, total - round(sampler.extent * total)
    )  # of the part that views share with ``vary: space``
    for length, extent, _ in wanted:
        covered = max(round(extent * total), 1)
        start = draw(random, 0, total - covered)
        clips.append(spread(start, start + covered - 1, length, total))
    cuts = []
    for clip, (_, _, cut) in zip(clips, wanted, strict=True):
        box = random_box(height, width, cut.area, cut.aspect, random)
        cuts.append(Cut(clip, (box.top, box.left, box.height, box.width), cut.size))
    return Job(None, cuts)


def resized(height: int, width: int, short: int) -> tuple[int, int]:
    return tuple(int(side * short / min(height, width) + 0.5) for side in (height, width))


@dataclass(frozen=True)
class Theirs:
    """A job done with another library's reader and torchvision: all frames at once, then box by box."""

    read: Read
    paths: Sequence[Path]
    facts: Sequence[VideoFacts]

    def __call__(self, sampler: ViewSampler, index: int, seed: int) -> Views:
        path, facts = self.paths[index], self.facts[index]
        job = job_of(
            sampler, SampleInfo("", facts.num_frames, facts.fps, {}), facts.height, facts.width, seed
        )
        union = sorted({frame for cut in job.cuts for frame in cut.frames})
        row = {frame: place for place, frame in enumerate(union)}
        pixels = self.read(path, union, facts)
        if job.short_side is not None:
            size = resized(facts.height, facts.width, job.short_side)
            pixels = resizing.resize(pixels, [*size], **BICUBIC)
        return [
            resizing.resized_crop(
                picked(pixels, [row[frame] for frame in cut.frames]), *cut.box, [cut.size] * 2, **BICUBIC
            ).transpose(0, 1)
            for cut in job.cuts
        ]


def picked(pixels: Tensor, rows: Sequence[int]) -> Tensor:
    """Some of the frames, colours innermost: the fastest way, ``pixels[rows]`` takes ten times as long."""
    return pixels.permute(0, 2, 3, 1).index_select(0, torch.tensor(rows)).permute(0, 3, 1, 2)


def by_decord(path: Path, frames: Sequence[int], facts: VideoFacts) -> Tensor:
    from decord import VideoReader, cpu

    reader = VideoReader(str(path), ctx=cpu(0), num_threads=1)
    return torch.from_numpy(reader.get_batch([*frames]).asnumpy()).permute(0, 3, 1, 2)


def by_torchcodec(path: Path, frames: Sequence[int], facts: VideoFacts) -> Tensor:
    from torchcodec.decoders import VideoDecoder

    return VideoDecoder(str(path), num_ffmpeg_threads=1).get_frames_at([*frames]).data


def by_spdl(path: Path, frames: Sequence[int], facts: VideoFacts) -> Tensor:
    """Its calls without its threads, which take processor time of their own.

    Where groups of frames can be skipped, wanted ones are sampled; else they are picked as they come, since
    sampling keeps all that it decodes. Only wanted frames are converted.
    """
    import spdl.io

    starts = [keyframe.number for keyframe in facts.keyframes]
    packets = spdl.io.demux_video(str(path))
    if len({bisect_right(starts, frame) for frame in frames}) < bisect_right(starts, frames[-1]):
        graph = spdl.io.FilterGraph(f"{spdl.io.get_buffer_desc(packets.codec)},format=rgb24,buffersink")
        found = []
        for picture in spdl.io.sample_decode_video(packets, [*frames], filter_desc=None):
            graph.add_frames(picture)
            found.append(graph.get_frames())
        return spdl.io.to_torch(spdl.io.convert_frames(found)).squeeze(1).permute(0, 3, 1, 2)
    picked = "+".join(f"eq(n\\,{frame})" for frame in frames)
    found = spdl.io.decode_packets(packets, f"select={picked},format=rgb24", num_frames=len(frames))
    return spdl.io.to_torch(spdl.io.convert_frames(found)).permute(0, 3, 1, 2)


def by_pytorchvideo(path: Path, frames: Sequence[int], facts: VideoFacts) -> Tensor:
    """It knows clips by seconds only: one from the first to the last wanted frame, others thrown away."""
    from pytorchvideo.data.encoded_video import EncodedVideo

    first, last = frames[0], frames[-1]
    start, end = ((facts.pts[frame] - facts.pts[0]) * facts.tick_seconds for frame in (first, last))
    tolerance = facts.tick_seconds / 4
    video = EncodedVideo.from_path(str(path), decode_audio=False, decoder="pyav")
    clip = video.get_clip(start - tolerance, end + tolerance)["video"]  # float32 [3, T, H, W], 0 to 255
    video.close()
    return picked(clip.transpose(0, 1), [frame - first for frame in frames]).to(torch.uint8)


OTHERS: dict[str, Read] = {
    "decord": by_decord,
    "torchcodec": by_torchcodec,
    "spdl": by_spdl,
    "pytorchvideo": by_pytorchvideo,
}

"""Videos a second and core, as shares: three recipes' views from every form of file, and by other loaders.

    OMP_NUM_THREADS=1 python docs/measure_loading.py [FOLDER ...]

Takes turns in one process and on one thread: views of BEVT, SVT and VIMPAC at the papers' settings, out of
original files with and without a manifest, of files and shards that ``vidssl data`` made of them, of a token
store; and the same frames, boxes and sizes by decord, torchcodec, spdl and pytorchvideo, where they are
installed. What they give is compared with ours first. Then: what the ten views of SVT cost, over one pass
over the frames that they need, and what several crops of one decode gain (``samples_per_decode``).

Each FOLDER holds videos of one kind. Without one, videos are made: moving textures under grain, as many bytes
a frame and as long to decode as files of Kinetics and UCF101. What counts is processor time, the shortest of
some turns for each sample, summed over samples.
"""

import argparse
import gc
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from loading_others import OTHERS, Theirs, Views
from loading_videos import KINDS, make_token_store, make_videos
from rich.console import Console
from torch import Tensor

from vidssl.data.decode.decode import probe
from vidssl.data.samples import Endless
from vidssl.data.sources.jpeg_shards import JpegShards
from vidssl.data.sources.tar.source import TarShards
from vidssl.data.sources.token_store import TokenStore
from vidssl.data.sources.video_files import VideoFolder
from vidssl.data.views.random import MultiScaleClip, SingleClip
from vidssl.data.views.stored import StoredClipPair
from vidssl.data.views.svt import GlobalLocal
from vidssl.data.views.vimpac import ClipPair
from vidssl.interfaces import DataSource, SampleInfo, ViewSampler
from vidssl.tools.data.check import check_data
from vidssl.tools.data.encode import H264, Jpegs
from vidssl.tools.data.prepare import prepare_data
from vidssl.tools.data.shard import shard_data

SAMPLERS: dict[
    str, ViewSampler
] = {  # recipes/paper: bevt.yaml (but antialiased), svt.yaml, vimpac_small.yaml
    "BEVT": SingleClip(num_frames=16, frame_stride=8, size=224),
    "SVT": GlobalLocal(),
    "VIMPAC": ClipPair(num_frames=5, frame_stride=1, fps=2.0, size=128),
}
ORIGINAL, PREPARED = "original files, manifest", "prepared files: H.264, GOP 12"
STORE = "token store"
MOST_DIFFERENT = 3.0  # grey levels on average; versions of FFmpeg round MPEG-4 and colour differently
Acts = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Ours:
    """Views by a sampler, from a source that is made anew for each if files are to be looked through."""

    source: Callable[[], DataSource]
    order: Sequence[int]  # its number of each original: shards have an order of their own

    def __call__(self, sampler: ViewSampler, index: int, seed: int) -> Views:
        given = sampler.sample(self.source(), self.order[index], torch.Generator().manual_seed(seed))
        return [slot for slots in given.values() for slot in slots]


@dataclass(frozen=True)
class Forms:
    """One kind of videos in every form.

    Attributes:
        originals: the files.
        ways: to views, by name.
        roots: where those forms lie that are files for each video.
        store: what ids are read from.
    """

    originals: Sequence[Path]
    ways: dict[str, Ours]
    roots: Mapping[str, Path]
    store: Ours


def made_forms(originals: Path, work: Path) -> Forms:
    """Makes a manifest, prepared files, shards and a token store of a folder of videos."""
    work.mkdir()
    manifest, files, jpegs, tars = (work / name for name in ("manifest.jsonl", "h264", "jpegs", "tars"))
    with Console(quiet=True) as console:
        check_data(originals, out=manifest, processes=1, console=console)
        prepare_data(originals, files, H264(short_side=256), processes=1, console=console)
        prepare_data(originals, jpegs, Jpegs(short_side=256, quality=90), processes=1, console=console)
        shard_data(originals, str(tars), processes=1, console=console)
    folder = partial(VideoFolder, root=str(originals))
    source = folder(manifest=str(manifest))
    make_token_store(work / "tokens", source)
    kept: dict[str, DataSource] = {
        ORIGINAL: source,
        PREPARED: VideoFolder(root=str(files), manifest=f"{files}.manifest.jsonl"),
        "JPEG shards": JpegShards(root=str(jpegs)),
        "tar shards of the original files": TarShards(root=str(tars)),
    }
    keys = keys_of(source)
    ways = {name: Ours(lambda each=each: each, order(each, keys)) for name, each in kept.items()}
    ways["original files, no manifest, first look"] = Ours(folder, order(source, keys))
    tokens = TokenStore(root=str(work / "tokens"))
    store = Ours(lambda: tokens, order(tokens, keys))
    return Forms([originals / key for key in keys], ways, {ORIGINAL: originals, PREPARED: files}, store)


def keys_of(source: DataSource) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def order(source: DataSource, keys: Sequence[str]) -> list[int]:
    """Where a source has the videos of these keys, whatever it makes of their endings."""
    own = [Path(key).stem for key in keys_of(source)]
    return [own.index(Path(key).stem) for key in keys]


def others(forms: Forms) -> dict[str, Theirs]:
    """Those that work here and give what we give; a line on stderr for each that does not."""
    facts = [probe(path) for path in forms.originals]
    found = {}
    for name, read in OTHERS.items():
        theirs = Theirs(read, forms.originals, facts)
        try:
            difference = max(
                float((one.float() - other.float()).abs().mean())
                for sampler in SAMPLERS.values()
                for one, other in zip(forms.ways[ORIGINAL](sampler, 0, 1), theirs(sampler, 0, 1), strict=True)
            )
        except (ImportError, RuntimeError) as error:
            loud(f"{name} is left out: {str(error).splitlines()[0]}")
            continue
        if difference > MOST_DIFFERENT:
            loud(f"{name} is left out: its views differ from ours by {difference:.1f} grey levels")
            continue
        found[name] = theirs
    return found


def loud(text: str) -> None:
    print(f"NOTE: {text}", file=sys.stderr, flush=True)


def seconds(ways: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """The shortest processor time of each, taken in turns."""
    shortest = dict.fromkeys(ways, math.inf)
    names = [*ways]
    for turn in range(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            started = time.process_time()
            ways[name]()
            shortest[name] = min(shortest[name], time.process_time() - started)
    return shortest


def summed(acts: Callable[[int, int], Acts], videos: int, given: argparse.Namespace) -> dict[str, float]:
    """Seconds of each way for all samples; ``acts`` of a video's number and a seed."""
    total: dict[str, float] = {}
    for sample in range(given.samples):
        for name, taken in seconds(acts(sample % videos, sample), given.turns).items():
            total[name] = total.get(name, 0.0) + taken
    return total


def print_speeds(kind: str, forms: Forms, given: argparse.Namespace) -> None:
    ways = {**forms.ways, **others(forms)}
    times = {}
    for name, sampler in SAMPLERS.items():

        def acts(index: int, seed: int, sampler: ViewSampler = sampler) -> Acts:
            todo: dict[str, Callable[[], object]] = {
                way: partial(act, sampler, index, seed) for way, act in ways.items()
            }
            if isinstance(sampler, ClipPair):
                todo[STORE] = partial(forms.store, StoredClipPair(), index, seed)
            return todo

        times[name] = summed(acts, len(forms.originals), given)
    print(f"\n| {kind} | {' | '.join(times)} |\n| --- |{' ---: |' * len(times)}")
    for way in [*ways, STORE]:
        cells = (f"{each[ORIGINAL] / each[way]:.2f}" if way in each else "" for each in times.values())
        print(f"| {way} | {' | '.join(cells)} |")
    rates = (f"{name} {given.samples / each[ORIGINAL]:.1f}" for name, each in times.items())
    print(f"\nvideos a second and core, {ORIGINAL}: {', '.join(rates)}", flush=True)


class Asked(DataSource):
    """A source that remembers which frames were asked for last."""

    def __init__(self, source: DataSource) -> None:
        self.source, self.frames, self.label_classes = source, [0], source.label_classes

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def info(self, index: int) -> SampleInfo:
        return self.source.info(index)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        self.frames = [*frames]
        return self.source.read(index, frames)


def one_pass(path: Path, frames: Sequence[int]) -> Tensor:
    """The plainest reading of some frames: the file from its start, those that are wanted made RGB."""
    wanted, found = {*frames}, []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                found.append(frame.reformat(format="rgb24", threads=1).to_ndarray())
            if number == frames[-1]:
                break
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def print_union(kind: str, forms: Forms, given: argparse.Namespace) -> None:
    """Ten views of SVT, over one pass over the frames that they need, and over reading these as we do."""
    svt = SAMPLERS["SVT"]
    for form in (ORIGINAL, PREPARED, "JPEG shards"):
        given_form, root = forms.ways[form], forms.roots.get(form)
        source = Asked(given_form.source())
        way = Ours(lambda source=source: source, given_form.order)

        def acts(
            index: int, seed: int, way: Ours = way, source: Asked = source, root: Path | None = root
        ) -> Acts:
            views, number = partial(way, svt, index, seed), way.order[index]
            views()
            todo: dict[str, Callable[[], object]] = {
                "views": views,
                "read": partial(source.read, number, source.frames),
            }
            return todo | (
                {} if root is None else {"pass": partial(one_pass, root / source.key(number), source.frames)}
            )

        took = summed(acts, len(source), given)
        over_pass = f"{took['views'] / took['pass']:.2f}" if "pass" in took else ""
        print(f"| {kind} | {form} | {over_pass} | {took['views'] / took['read']:.2f} |", flush=True)


def print_per_decode(kind: str, forms: Forms, given: argparse.Namespace) -> None:
    """Clips of VideoMAE a second, several to a decode, over one to a decode."""
    clip = MultiScaleClip(num_frames=16, frame_stride=4, size=224)  # recipes/paper/videomae_base_k400.yaml
    for form in (ORIGINAL, PREPARED, "JPEG shards"):
        way = forms.ways[form]
        source = way.source()

        def draw(each: int, source: DataSource = source) -> None:
            options = {"batch_size": 4 * len(source), "tries": 1, "samples_per_decode": each}
            samples = Endless(source, clip, seed=0, **options)
            for place in range(4 * len(source)):
                assert samples[place].views is not None

        took = seconds({str(each): partial(draw, each) for each in (1, 2, 4)}, given.turns)
        gains = " | ".join(f"{took['1'] / took[each]:.2f}" for each in took)
        rate = 4 * len(source) / took["1"]
        print(f"| {kind} | {form} | {rate:.1f} | {gains} |", flush=True)


def print_threads(kind: str, forms: Forms, given: argparse.Namespace) -> None:
    """BEVT's clips by two threads of one process, over one thread: time passed and processor time."""
    way, places = forms.ways[ORIGINAL], range(16 * len(forms.originals))

    def draw(place: int) -> None:
        way(SAMPLERS["BEVT"], place % len(forms.originals), place)

    def taken(threads: int) -> tuple[float, float]:
        passed, busy = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(draw, places))
        return time.perf_counter() - passed, time.process_time() - busy

    turns = [(taken(1), taken(2)) for _ in range(given.turns)]
    found = [min(two[k] for _, two in turns) / min(one[k] for one, _ in turns) for k in (0, 1)]
    print(f"| {kind} | {found[0]:.2f} | {found[1]:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, help="of videos; default: they are made")
    parser.add_argument("--samples", type=int, default=4, help="of each sampler and kind")
    parser.add_argument("--turns", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or 'CPU'}, 1 thread of {os.cpu_count()} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as made:
        folders = {str(folder): folder.absolute() for folder in given.folders}
        for kind in () if folders else KINDS:
            folders[kind.name] = make_videos(kind, Path(made) / kind.ending, 2)
        forms = {
            name: made_forms(folder, Path(made) / f"forms{number}")
            for number, (name, folder) in enumerate(folders.items())
        }
        for name, each in forms.items():
            print_speeds(name, each, given)
        print("\n| ten views of SVT | | over one pass | over reading |\n| --- | --- | ---: | ---: |")
        for name, each in forms.items():
            print_union(name, each, given)
        print("\n| VideoMAE | | clips a second | 1 a decode | 2 | 4 |")
        print("| --- | --- | ---: | ---: | ---: | ---: |")
        for name, each in forms.items():
            print_per_decode(name, each, given)
        print("\n| two threads over one | time passed | processor time |\n| --- | ---: | ---: |")
        for name, each in forms.items():
            print_threads(name, each, given)


if __name__ == "__main__":
    main()
